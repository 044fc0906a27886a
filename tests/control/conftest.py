"""Guests that are controlled, and a folder for their journals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vmi_inside
from tests.lab.guest import LabGuest


@pytest.fixture(params=["6.1", "6.12"])
def lab(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> LabGuest:
    """Two vCPUs, five-level paging, RAM that is QEMU's own; one vCPU, four levels, RAM that is shared."""
    if request.param == "6.1":
        return lab_boot(workload="none")
    return lab_boot(kernel="6.12-cloud", cpu="la57-off", backing="memfd", vcpus=1, workload="none")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The journals' folder, for this test alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "vmi-inside" / "guests"


@pytest.fixture
def guest(lab: LabGuest) -> Iterator[vmi_inside.Guest]:
    with lab.attach(writable=True) as seen:
        yield seen
        seen.undo_all()  # what a failed test leaves would fail others
