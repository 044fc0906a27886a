"""Pauses of real guests: who may pause, what is left as it was, and who lets go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

import vmi_inside
from tests.control import ROOT
from tests.control.inside import nodename, ticks
from tests.lab.guest import LabGuest
from vmi_inside.errors import Busy, Unsupported


def test_a_pause_stops_the_clock(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    jiffies = guest.kernel.symbol("jiffies_64")
    with guest.paused() as pause:
        first = guest.read_memory(jiffies, 8)
        with guest.paused() as inner:
            assert inner is pause
        time.sleep(0.5)
        assert guest.read_memory(jiffies, 8) == first
        assert guest.machine is not None
        assert guest.machine.paused
    assert pause.seconds >= 0.5
    assert not guest.machine.paused
    assert ticks(lab)
    assert guest.read_memory(jiffies, 8) != first


def test_what_was_paused_stays_so(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    assert guest.pause()
    try:
        assert not guest.pause()
        with guest.paused() as pause:
            assert pause.found
        assert guest.vcpus[0].registers["rip"]
        assert lab.domain.state()[0] == 3  # VIR_DOMAIN_PAUSED
    finally:
        assert guest.resume()
    assert not guest.resume()
    assert ticks(lab)


def test_an_exception_lets_go(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    with pytest.raises(ZeroDivisionError), guest.paused():
        raise ZeroDivisionError
    assert ticks(lab)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_lets_go(lab_boot: Callable[..., LabGuest], number: signal.Signals) -> None:
    lab = lab_boot(workload="none")
    code = (
        "import sys, time, vmi_inside\n"
        "with vmi_inside.attach(sys.argv[1], connect=sys.argv[2], pausing=True) as guest, guest.paused():\n"
        "    print('paused', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, lab.target, lab.uri or ""], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        cwd=ROOT,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == b"paused\n"
        assert lab.domain.state()[0] == 3
        child.send_signal(number)
        child.wait()
    assert ticks(lab)


def test_pausing_alone_is_a_smaller_consent(lab_guest: LabGuest) -> None:
    with lab_guest.attach(pausing=True) as guest, guest.paused(), pytest.raises(Unsupported, match="writable=True"):
        guest.write_memory(nodename(guest), b"x")
    with lab_guest.attach() as guest:
        with pytest.raises(Unsupported, match="read-only"):
            guest.paused()
        assert not hasattr(guest.memory, "write")


def test_two_controllers(lab: LabGuest, guest: vmi_inside.Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmi_inside.control.store.PATIENCE", 0.2)
    monkeypatch.setattr("vmi_inside.control.store.Store.lock.__wrapped__.__defaults__", (0.2,))
    mine = pytest.raises(Busy, match=f"pid {os.getpid()}")
    with lab.attach(writable=True) as other, guest.paused(), mine, other.paused():
        pass
    assert ticks(lab)
