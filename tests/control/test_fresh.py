"""Control of guests that end or reboot meanwhile, and of a QEMU without libvirt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import vmi_inside
from tests.lab import LabError
from tests.lab.guest import LabGuest
from vmi_inside.errors import GuestGone, NotUndoable, Unsafe, VmiError

ROOT = Path(__file__).parents[2]
#: A reboot leaves the old kernel in memory, and attaching says so.
pytestmark = pytest.mark.filterwarnings("ignore::vmi_inside.guest.Notice")


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def nodename(guest: vmi_inside.Guest) -> int:
    uts = guest.kernel.struct("uts_namespace")
    return guest.kernel.symbol("init_uts_ns") + uts.member("name.nodename").offset


def test_a_qemu_without_libvirt(lab_qemu: Callable[..., LabGuest]) -> None:
    lab = lab_qemu(workload="none", backing="memfd")
    with lab.attach(writable=True) as guest:
        with guest.paused() as pause:
            assert guest.machine is not None
            assert guest.machine.paused
            with pytest.raises(LabError, match="in time"):
                lab.ask("true", timeout=1)
        assert pause.seconds > 0.9
        assert len(guest.vcpus) == 2
        assert guest.vcpus[1].registers["cr3"]
        entry = guest.write_memory(nodename(guest), b"changed\0")
        assert lab.ask("hostname").strip() == "changed"
        guest.undo(entry.id)
        assert lab.ask("hostname").strip() == "lab"
        pid = int(lab.ask("sleep 1000 </dev/null >/dev/null 2>&1 & echo $!"))
        guest.signal(pid)
        assert lab.ask(f"sleep .2; test -e /proc/{pid} || echo gone").strip() == "gone"
        assert guest.machine.notices == []


def test_rebooted_in_between(lab_fresh: Callable[..., LabGuest]) -> None:
    lab = lab_fresh(workload="none")
    with lab.attach(writable=True) as guest:
        entry = guest.write_memory(nodename(guest), b"changed\0")
        lab.ask("sync; reboot -f </dev/null >/dev/null 2>&1 &")
        deadline = time.monotonic() + 120
        while lab.console_tail(1 << 20).count("lab: ready") < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        with pytest.raises(GuestGone, match="attach again"):
            guest.write_memory(nodename(guest), b"changed\0")
        with pytest.raises(GuestGone, match="attach again"):
            guest.undo(entry.id)
        with pytest.raises(GuestGone, match="attach again"):
            guest.signal(os.getpid())
    with lab.attach(writable=True) as guest:
        assert guest.standing() == []
        with pytest.raises(NotUndoable, match="rebooted"):
            guest.undo(entry.id)
        assert lab.ask("hostname").strip() == "lab"


def test_a_guest_that_panics_in_the_middle(lab_fresh: Callable[..., LabGuest]) -> None:
    lab = lab_fresh(workload="none")
    with lab.attach(writable=True) as guest:
        words = guest.kernel.symbol("linux_banner")
        with pytest.raises(Unsafe, match="has not returned"):
            guest.call("panic", words)
    deadline = time.monotonic() + 120
    while lab.console_tail(1 << 20).count("lab: ready") < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "Kernel panic - not syncing: Linux version" in lab.console_tail(1 << 20)
    assert lab.ask("hostname").strip() == "lab"
    with lab.attach(writable=True) as guest:
        assert guest.vcpus[0].registers
    assert lab.ask("hostname").strip() == "lab"


def test_ended_while_it_is_held(lab_fresh: Callable[..., LabGuest]) -> None:
    lab = lab_fresh(workload="none")
    with lab.attach(writable=True) as guest:

        def change() -> None:
            with guest.transaction("the end of it", code=True) as change:
                change.write(nodename(guest), b"changed\0")
                os.kill(lab.pid, signal.SIGKILL)
                time.sleep(0.5)
                assert change.registers

        with pytest.raises(GuestGone):
            change()
        with pytest.raises(VmiError):
            guest.signal(1, force=True)
    command = [sys.executable, "-m", "vmi_inside.cli", "undo", lab.name, "--connect", lab.uri or "", "--all"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode in (3, 4)
    assert ended.stderr.count("\n") == 1


def test_a_debugger_that_is_connected(lab_fresh: Callable[..., LabGuest], tmp_path: Path) -> None:
    import socket

    lab = lab_fresh(workload="none")
    with lab.attach(writable=True) as guest:
        guest.machine._hmp(f"gdbserver unix:{tmp_path}/gdb,server=on,wait=off")  # type: ignore[union-attr]
        with socket.socket(socket.AF_UNIX) as gdb:
            gdb.connect(f"{tmp_path}/gdb")
            time.sleep(0.3)
            with pytest.raises(VmiError, match="a debugger is connected"):
                guest.signal(2, force=True)
            assert [entry.state for entry in guest.journal()] == ["put back"]
            assert guest.machine.paused  # type: ignore[union-attr]  # by that debugger
        guest.machine._hmp("gdbserver none")  # type: ignore[union-attr]
        guest.resume()
    assert lab.ask("echo yes").strip() == "yes"
