"""Work that may never end, and what is done about it."""

from __future__ import annotations

import threading

import pytest

from vmi_inside.drivers.bounded import Bounded


def test_what_work_gives_and_raises() -> None:
    bounded = Bounded()
    assert bounded.run(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(KeyError, match="x"):
        bounded.run({}.__getitem__, "x")
    assert bounded.run(threading.current_thread) is not threading.current_thread()
    bounded.close()


def test_work_that_hangs_is_waited_for_once_more_and_not_again() -> None:
    bounded, go, done = Bounded(0.05), threading.Event(), []
    with pytest.raises(TimeoutError, match=r"no answer in 0\.05 s"):
        bounded.run(go.wait)
    for _ in range(3):
        with pytest.raises(TimeoutError, match="not answered for long"):
            bounded.run(done.append, 1)
    assert not done  # nothing is piled up behind it
    go.set()
    while True:  # it goes on when what hung has ended
        try:
            assert bounded.run(lambda: 7, seconds=5) == 7
        except TimeoutError:
            continue
        break
    bounded.close()


def test_closing_does_not_wait_for_what_hangs() -> None:
    bounded, go = Bounded(0.01), threading.Event()
    with pytest.raises(TimeoutError):
        bounded.run(go.wait)
    bounded.keep(object())
    bounded.close()
    go.set()
