"""Signals as people name them."""

from __future__ import annotations

import signal

import pytest

from vmi_inside.control import signals
from vmi_inside.errors import ControlError


@pytest.mark.parametrize(
    ("told", "number"),
    [
        ("TERM", 15), ("SIGTERM", 15), ("sigkill", 9), ("9", 9), ("RTMIN", 34), ("RTMIN+1", 35), (64, 64),
        (signal.SIGUSR1, 10),
    ],
)  # fmt: skip
def test_by_name_and_number(told: int | str, number: int) -> None:
    assert signals.number(told) == number
    assert signals.number(signals.name(number).removeprefix("signal ")) == number


@pytest.mark.parametrize("told", ["", "SIG", "NONE", "0", "65", "RTMIN+31", "TERM+x", "-9", 0, -1, 65, "9" * 30])
def test_what_is_no_signal(told: int | str) -> None:
    with pytest.raises(ControlError, match="is no signal like TERM"):
        signals.number(told)
