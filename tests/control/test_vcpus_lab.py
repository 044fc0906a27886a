"""Single vCPUs of real guests: registers, one kept standing while others run, breakpoints."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import vmi_inside
from tests.control import ROOT
from tests.control.inside import healthy, ticks
from tests.lab.guest import LabGuest
from vmi_inside.control import machine
from vmi_inside.errors import Busy, ControlError


def test_registers_read_and_written(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    with guest.paused():
        for vcpu in guest.vcpus:
            before = vcpu.registers
            assert before["cr3"] & ~0xFFF
            assert before["efer"] & 0x400  # long mode is active
            vcpu.set_registers({"r15": before["r15"] ^ 0x55})
            assert vcpu.registers == {**before, "r15": before["r15"] ^ 0x55}
            vcpu.set_registers({"r15": before["r15"]})
            assert vcpu.registers == before
        with pytest.raises(ControlError, match="no register"):
            guest.vcpus[0].set_registers({"xyz": 1})
    assert ticks(lab)


def test_one_vcpu_stands_while_the_other_runs(lab_boot: Callable[..., LabGuest]) -> None:
    lab = lab_boot(workload="none")
    count = lab.shape.vcpus
    assert count == 2
    burn = "taskset $((1 << cpu)) sh -c 'while :; do :; done' </dev/null >/dev/null 2>&1 &"
    pids = lab.ask(f"for cpu in 0 1; do {burn} echo $!; done").split()
    try:
        with lab.attach(writable=True) as guest:

            def spent() -> list[int]:
                by_pid = {row.pid: row.user_time + row.system_time for row in guest.processes()}
                return [by_pid[int(pid)] for pid in pids]

            time.sleep(1)
            guest.vcpus[1].pause()
            assert guest.vcpus[1].paused
            where = guest.vcpus[1].registers["rip"]
            first = second = spent()
            deadline = time.monotonic() + 30
            while second[0] - first[0] <= 300 and time.monotonic() < deadline:  # a busy host gives it little
                time.sleep(0.5)
                second = spent()
            assert guest.vcpus[1].registers["rip"] == where
            assert second[0] - first[0] > 300
            assert second[1] == first[1]
            guest.vcpus[1].resume()
            while (last := spent())[1] <= second[1] and time.monotonic() < deadline + 30:
                time.sleep(0.5)
            assert last[1] > second[1]
        assert ticks(lab)
    finally:
        lab.ask(f"kill -9 {' '.join(pids)}")


def test_killed_while_one_vcpu_stands(lab_boot: Callable[..., LabGuest]) -> None:
    lab = lab_boot(workload="none")
    code = (
        "import sys, time, vmi_inside\n"
        "guest = vmi_inside.attach(sys.argv[1], connect=sys.argv[2], pausing=True)\n"
        "guest.vcpus[1].pause()\n"
        "print('stands', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, lab.target, lab.uri or ""], stdout=subprocess.PIPE, cwd=ROOT
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"stands\n"
        child.kill()
        child.wait()
    assert lab.ask("taskset 2 echo yes; taskset 1 echo yes", timeout=20).split() == ["yes", "yes"]
    with lab.attach(pausing=True) as guest:
        assert guest.vcpus[1].registers


def test_breakpoints_and_watched_memory(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    at = guest.kernel.symbol("__x64_sys_getppid")
    jiffies = guest.kernel.symbol("jiffies_64")
    for kind in (machine.SOFTWARE, machine.HARDWARE):
        caller = subprocess.Popen(
            [sys.executable, "-c", "import sys; from tests.control.inside import agent; agent(*sys.argv[1:])",
             lab.uri or "", lab.name, "sleep 1; for i in 1 2 3 4; do sh -c :; done"], cwd=ROOT,
        )  # fmt: skip
        with guest.vcpus.debugger() as debugger:
            debugger.set(kind, at)
            debugger.cont()
            stop = debugger.wait(20)
            assert stop is not None
            assert debugger.registers(stop.vcpu)["rip"] == at
            debugger.clear(kind, at)
        assert caller.wait(20) == 0
    with guest.vcpus.debugger() as debugger:
        debugger.set(machine.WRITE, jiffies, 8)
        debugger.cont()
        stop = debugger.wait(10)
        assert stop is not None
        assert stop.watch == jiffies
    assert ticks(lab)
    assert healthy(lab)


def test_a_debugger_of_the_users_own(lab: LabGuest, guest: vmi_inside.Guest, tmp_path: Path) -> None:
    assert guest.machine is not None
    guest.machine._hmp(f"gdbserver unix:{tmp_path}/gdb,server=on,wait=off")  # type: ignore[attr-defined]
    try:
        with pytest.raises(Busy, match="gdb stub"):
            guest.vcpus[0].registers  # noqa: B018
        assert ticks(lab)
    finally:
        guest.machine._hmp("gdbserver none")  # type: ignore[attr-defined]
    assert guest.vcpus[0].registers
