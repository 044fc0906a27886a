"""Kernel functions that sleep, called by one of the guest's workers; and controllers that die while they do."""

from __future__ import annotations

import time

import pytest

from tests.gates.arena import Arena
from vmi_inside.control.deferred import KIND, Deferring
from vmi_inside.control.work import Calls
from vmi_inside.errors import NotUndoable, Unsafe


def test_a_function_that_sleeps(one_kernel: Arena) -> None:
    guest = one_kernel.guest
    assert guest.call_deferred("schedule_timeout_uninterruptible", 5) == 0
    assert guest.call_deferred("int_sqrt", 1 << 20) == 1 << 10  # what it gives comes back
    deferring = Deferring(guest)
    calls = Calls(guest.kernel.symbol("int_sqrt"), [[at * at] for at in range(200)])
    assert deferring.run(lambda: calls, "roots", {}) == list(range(200))
    assert one_kernel.text_is_padding_for_calls()


def test_a_function_that_takes_too_long_goes_on_and_is_cleared_away_later(one_kernel: Arena) -> None:
    guest = one_kernel.guest
    with pytest.raises(Unsafe, match=r"1 of 1 calls have not ended in 0\.2 s"):
        guest.call_deferred("msleep", 4000, timeout=0.2)
    assert not one_kernel.text_is_padding_for_calls()
    (entry,) = [one for one in guest.journal() if one.kind == KIND]
    assert entry in guest.standing()
    # Somebody is in it: it is taken out once that is over, however it is asked for.
    guest.undo(entry.id)
    assert one_kernel.text_is_padding_for_calls()
    assert [one.state for one in guest.journal() if one.kind == KIND] == ["undone"]
    with pytest.raises(NotUndoable):
        guest.undo(entry.id)


def test_what_a_dead_controller_left_is_completed(one_kernel: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    here, guest = one_kernel, one_kernel.guest
    deferring = Deferring(guest)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    calls = Calls(guest.kernel.symbol("msleep"), [[1]] * 3)
    # It dies when code and rows are in the guest, and nothing is queued yet.
    with monkeypatch.context() as patch:
        patch.setattr(Deferring, "_start", die)
        with pytest.raises(Killed):
            deferring.run(lambda: calls, "three naps", {})
    assert not here.text_is_padding_for_calls()
    with here.lab.attach(writable=True) as next_one:
        time.sleep(0.1)
        assert next_one.call_deferred("int_sqrt", 81) == 9
    assert here.text_is_padding_for_calls()
    assert [one.state for one in guest.journal() if one.kind == KIND] == ["undone", "undone"]
