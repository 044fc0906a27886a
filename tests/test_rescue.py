"""What the small process does that outlives a controller; that it lets real guests go is told by the labs' tests."""

from __future__ import annotations

import contextlib
import syslog
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

import vmi_inside.guest
from vmi_inside import rescue
from vmi_inside.errors import Busy, GuestGone, NoSuchDomain, NotRunning, VmiError


@pytest.mark.parametrize(
    ("errors", "recovered", "told"),
    [
        ([], True, []),
        ([Busy("web01: another vmi-inside has the guest in hand")] * 2, True, []),
        ([NoSuchDomain("no domain")], False, []),
        ([Busy("busy"), GuestGone("web01: ended")], False, []),
        ([NotRunning("web01: is shut off")], False, []),
        (
            [VmiError("libvirtd hangs")] * rescue._TRIES,
            False,
            ["vmi-inside: web01: its controller died, and it could not be let go: libvirtd hangs"],
        ),
    ],
)
def test_a_guest_is_let_go_as_soon_as_it_can_be(
    monkeypatch: pytest.MonkeyPatch, errors: list[Exception], recovered: bool, told: list[str]
) -> None:
    """It is tried again while something is in the way; a guest that is gone is left; the log tells what was in vain."""
    left, logged, calls = list(errors), [], []

    @contextlib.contextmanager
    def attach(target: str, **how: object) -> Iterator[SimpleNamespace]:
        calls.append((target, how))
        if left:
            raise left.pop(0)
        yield SimpleNamespace(watch=1, recover=lambda: calls.append("recovered"))

    monkeypatch.setattr(vmi_inside.guest, "attach", attach)
    monkeypatch.setattr(rescue, "_WAIT", 0)
    monkeypatch.setattr(syslog, "syslog", lambda _, words: logged.append(words))
    rescue._rescue("web01", "qemu:///system", "", "")
    assert (calls[-1] == "recovered", logged, left) == (recovered, told, [])
    assert calls[0] == (
        "web01", {"connect": "qemu:///system", "writable": False, "pausing": True, "profile": None},
    )  # fmt: skip
