"""The guest's own code called from outside: signals, settings, calls that wait or never return."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

import vmi_inside
from tests.control import ROOT
from tests.control.inside import healthy, sleeper, status, ticks, uid
from tests.lab.guest import LabGuest
from vmi_inside.control.borrow import borrow
from vmi_inside.control.gates.holes import spare_words
from vmi_inside.control.groups import in_cgroup, in_group
from vmi_inside.control.places import KERNEL, pieces
from vmi_inside.errors import ControlError, NotUndoable, Unsafe, Unsupported, VmiError

ROUNDS = 100 if os.environ.get("VMI_CONTROL_ALL") else 15


def test_signals_end_as_they_should(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    for number, told in ((signal.SIGTERM, "143"), (signal.SIGKILL, "137"), (signal.SIGUSR1, "138")):
        pid = sleeper(lab)
        guest.signal(pid, number)
        assert status(lab) == told
    assert [entry.kind for entry in guest.journal()] == ["signal"] * 3
    with pytest.raises(NotUndoable, match="wrote nothing"):
        guest.undo(1)
    assert healthy(lab)


def test_stopped_and_gone_on(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    pid = sleeper(lab)

    def state() -> str:
        return lab.ask(f"sleep .1; grep State /proc/{pid}/status").split()[1]

    guest.signal(pid, signal.SIGSTOP)
    assert state() == "T"
    guest.nice(pid, 7)
    assert lab.ask(f"cut -d' ' -f19 /proc/{pid}/stat").strip() == "7"
    guest.signal(pid, signal.SIGCONT)
    assert state() == "S"
    guest.signal(pid, signal.SIGKILL)
    assert status(lab) == "137"
    with pytest.raises(ControlError, match="no process"):
        guest.signal(pid)


def test_what_a_parent_sees(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    def told() -> list[str]:
        return lab.ask("sleep .2; cat /tmp/told").splitlines()[1:]

    lab.ask("rm -f /tmp/told; workload wait /tmp/told sleep 1000 </dev/null >/dev/null 2>&1 &")
    pid = int(lab.ask("while [ ! -s /tmp/told ]; do :; done; cat /tmp/told").split()[1])
    for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM):
        guest.signal(pid, number)
        assert told()
    assert told() == ["stopped 19", "continued", "stopped 19", "continued", "killed 15"]


def test_one_that_sleeps_and_is_not_to_be_disturbed(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    """In state D: a parent of vfork, which a signal ends if it is fatal. Others wait for it to wake."""
    lab.ask("workload start dstate")
    pid, child = (
        next(row.pid for row in guest.processes() if (row.name, row.state) == (name, state))
        for name, state in (("dstate", "D"), ("dstate-child", "S"))
    )

    def pending() -> int:
        return int(lab.ask(f"sleep .1; sed -n 's/ShdPnd:\\t//p' /proc/{pid}/status"), 16)

    assert pending() == 0
    guest.signal(pid, "TSTP")
    assert pending() == 1 << signal.SIGTSTP - 1
    guest.signal(pid, signal.SIGKILL)
    assert lab.ask(f"sleep .2; grep State /proc/{pid}/status").split()[1] == "Z"  # its parent waits for nobody
    parent = next(row.parent for row in guest.processes() if row.pid == pid)
    guest.signal([child, parent], signal.SIGKILL)
    assert lab.ask(f"sleep .2; test -e /proc/{pid} || echo gone").strip() == "gone"
    assert healthy(lab)


def test_whom_not_to_signal(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    for pid, words in ((1, "ancestor"), (2, "thread of the kernel")):
        with pytest.raises(Unsafe, match=words):
            guest.signal(pid, signal.SIGKILL)
        with pytest.raises(Unsafe, match=words):
            guest.nice(pid, 3)
    assert guest.journal() == []


def test_a_busy_guest(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    burners = lab.ask(
        "for i in 1 2 3; do sh -c 'while :; do :; done' </dev/null >/dev/null 2>&1 & echo $!;"
        "dd if=/dev/zero of=/dev/null bs=64k </dev/null >/dev/null 2>&1 & echo $!; done"
    ).split()
    try:
        for _ in range(5):
            pid = sleeper(lab)
            guest.signal(pid)
            assert status(lab) == "143"
            guest.call("get_random_u32")
    finally:
        guest.signal([int(pid) for pid in burners], signal.SIGKILL)
    assert lab.ask(f"sleep .5; ls -d {' '.join(f'/proc/{pid}' for pid in burners)} 2>/dev/null", check=False) == ""
    assert healthy(lab)


def test_a_call_and_what_it_returns(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    pid = sleeper(lab)
    task = int(next(row.address for row in guest.processes() if row.pid == pid))
    found = guest.call("pid_vnr", guest.call("get_task_pid", task, 0))
    assert found in (0, pid)  # 0 where the interrupted task is in another pid namespace
    assert guest.call("task_prio", task) == 20
    with pytest.raises(VmiError, match="no symbol"):
        guest.call("no_such_function")
    guest.signal(pid, signal.SIGKILL)
    assert healthy(lab)


def test_interrupted_in_a_call(lab_boot: Callable[..., LabGuest]) -> None:
    lab = lab_boot(workload="none")
    code = (
        "import os, signal, sys, threading, vmi_inside\n"
        "threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "with vmi_inside.attach(sys.argv[1], connect=sys.argv[2], writable=True) as guest:\n"
        "    while True:\n"
        "        guest.call('__const_udelay', 100_000 * 4295)\n"  # a tenth of a second
    )
    done = subprocess.run(
        [sys.executable, "-c", code, lab.target, lab.uri or ""], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"
    with lab.attach(writable=True) as guest:
        calls = [entry for entry in guest.journal() if entry.kind == "call"]
        assert {entry.state for entry in calls} <= {"done", "put back"}
        assert guest.call("get_random_u32") >= 0
    assert ticks(lab)
    assert healthy(lab)


def test_a_function_that_does_not_return(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    spin = guest.kernel.symbol("__x64_sys_getuid")  # becomes an endless loop for a moment
    with guest.transaction("a loop", code=True) as change, borrow(change) as vcpu:
        before = change.read(spin, 2)
        change.code(spin, b"\xeb\xfe")
        with pytest.raises(Unsafe, match="has not returned"):
            vcpu.call(spin, timeout=0.5)
        change.code(spin, before)
    assert uid(lab) == "0"
    assert healthy(lab)


def test_a_call_that_waits_for_a_lock(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    word, before = next(iter(spare_words(guest.kernel)))
    [place] = pieces(guest.kernel, KERNEL, word, 8)
    guest.memory.write(place.pa, (1).to_bytes(8, "little"))  # type: ignore[attr-defined]  # held, by nobody
    try:
        for _ in range(2):
            with pytest.raises(Unsafe, match=r"has not returned in 0\.3 s, and the vCPU was put back"):
                guest.call("_raw_spin_lock", word, timeout=0.3)
    finally:
        guest.memory.write(place.pa, before.to_bytes(8, "little"))  # type: ignore[attr-defined]
    assert [entry.state for entry in guest.journal()] == ["put back", "put back"]
    assert guest.call("get_random_u32") >= 0
    for _ in range(20):  # tasks change on every CPU
        assert ticks(lab)
    assert healthy(lab)


def test_what_is_a_processs_ends_with_it(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    pid = sleeper(lab)
    told = f"grep -E '^(Uid|Gid|Cap)' /proc/{pid}/status; cat /proc/{pid}/limits"
    before = lab.ask(told)
    entries = [
        guest.set_ids(pid, 1000, 1001), guest.drop_capabilities(pid), guest.set_limit(pid, "nofile", 64, 128),
        guest.write_memory(guest.place("task_struct.comm", pid), b"renamed\0"),
    ]  # fmt: skip
    assert re.search(r"Uid:\s+1000\s+1000\s+1000\s+1000\s", lab.ask(told))
    assert len(guest.undo_all()) == 4
    assert lab.ask(told) == before
    entries = [guest.set_ids(pid, 1000), guest.set_limit(pid, "nofile", 64, 128)]
    guest.signal(pid, signal.SIGKILL)
    assert status(lab) == "137"
    for entry in entries:
        with pytest.raises(NotUndoable, match="has ended"):
            guest.undo(entry.id)
    assert guest.standing() == []
    with pytest.raises(Unsafe, match="ancestor"):
        guest.set_ids(1, 1000)
    assert healthy(lab)


def test_settings(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    told = lab.ask(
        "cd /proc/sys; for f in kernel/* vm/* net/core/*; do [ -f $f ] && v=$(cat $f 2>/dev/null) &&"
        " echo $f=$v; done; true"
    )
    same = 0
    for line in told.splitlines():
        name, _, value = line.partition("=")
        try:
            found = guest.sysctl(name)
        except (Unsupported, ControlError):
            continue
        same += found.split() == value.split()
        assert found.split() == value.split() or value != lab.ask(f"cat /proc/sys/{name}").strip(), name
    assert same > 100
    for name, value in (("kernel.printk", "1 2 3 4"), ("vm/swappiness", "7"), ("net.ipv4.ip_forward", "1")):
        try:
            entry = guest.set_sysctl(name, value)
        except Unsupported:
            continue
        path = f"/proc/sys/{name.replace('.', '/')}"
        assert lab.ask(f"cat {path}").split() == value.split()
        guest.undo(entry.id)
        assert lab.ask(f"cat {path}").split() != value.split()


def test_a_paused_guest_is_not_made_to_run(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    pid = sleeper(lab)
    with guest.paused(), pytest.raises(Unsafe, match="paused"):
        guest.signal(pid)
    guest.pause()
    try:
        with pytest.raises(Unsafe, match="paused"):
            guest.signal(pid)
        assert guest.machine is not None
        assert guest.machine.paused
    finally:
        guest.resume()
    guest.vcpus[0].pause()
    with pytest.raises(Unsafe, match="paused"):
        guest.signal(pid)
    code = guest.kernel.symbol("__x64_sys_getppid")
    guest.undo(guest.write_memory(code, bytes.fromhex("b892100000c3"), code=True).id)
    guest.vcpus[0].resume()
    guest.signal(pid)
    assert status(lab) == "143"


def test_a_group_and_a_cgroup(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    script = "for i in 1 2 3; do sleep 1000 & done; wait"
    leader = int(lab.ask(f"setsid sh -c '{script}' </dev/null >/dev/null 2>&1 & sleep .5; echo $!"))
    group = sorted(in_group(guest.kernel, leader))
    told = lab.ask("for s in /proc/[0-9]*/stat; do cut -d' ' -f1,5 $s 2>/dev/null; done")
    assert group == sorted(int(line.split()[0]) for line in told.splitlines() if line.split()[1] == str(leader))
    assert len(group) == 4
    lab.ask("mkdir -p /sys/fs/cgroup/box/in")
    lab.ask("".join(f"echo {pid} >/sys/fs/cgroup/box/in/cgroup.procs; " for pid in group))
    assert sorted(in_cgroup(guest.processes(), "/box")) == group
    guest.signal(group, signal.SIGKILL)
    assert lab.ask("sleep .3; cat /sys/fs/cgroup/box/in/cgroup.procs").split() == []
    lab.ask("rmdir /sys/fs/cgroup/box/in /sys/fs/cgroup/box")


def test_a_hundred_rounds(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    before = guest.read_memory(guest.kernel.symbol("_text"), 1 << 20)
    at = guest.kernel.symbol("__x64_sys_getppid")
    for _ in range(ROUNDS):
        with guest.paused():
            pass
        entry = guest.write_memory(at, bytes.fromhex("b892100000c3"), code=True)
        pid = sleeper(lab)
        assert lab.ask("sh -c 'echo $PPID'").strip() == "4242"
        guest.signal(pid, signal.SIGKILL)
        assert status(lab) == "137"
        guest.undo(entry.id)
    assert guest.read_memory(guest.kernel.symbol("_text"), 1 << 20) == before
    assert lab.ask("sh -c 'echo $PPID'").strip() != "4242"
    assert healthy(lab)
