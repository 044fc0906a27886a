"""Kernel stacks, held against every /proc/PID/task/TID/stack and wchan of the guest."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from tests.lab.guest import LabGuest
from tests.proc import lasting
from vmi_inside.linux.processes import unwind
from vmi_inside.linux.processes.sleeping import MEMBERS, Stacks
from vmi_inside.linux.processes.view import View, process_view
from vmi_inside.linux.symbols.code import Code
from vmi_inside.linux.tasks import PIDTYPE_PID


def inside(guest: LabGuest) -> dict[int, list[str]]:
    """`function+0x12` of every frame, innermost first, by thread."""
    told = guest.ask("cd /proc; grep -aH '' [0-9]*/task/[0-9]*/stack 2>/dev/null; true", timeout=120)
    found: dict[int, list[str]] = {}
    for tid, symbol, more in re.findall(
        r"^\d+/task/(\d+)/stack:\[<0>\] ([^/\s]+)/0x[0-9a-f]+(.*)$", told, re.MULTILINE
    ):
        found.setdefault(int(tid), []).append(symbol + more)
    return found


def outside(seen: Any) -> dict[int, list[str]]:
    table = seen.process_stack()
    assert table.notes == ()
    # What runs while it is looked at has no stack to be read.
    assert {fault for fault in table.fault if "runs" not in fault and "ran" not in fault} == {""}
    found: dict[int, list[str]] = {}
    for row in table:
        if not row.fault:
            assert row.frame == len(found.setdefault(row.tid, []))
            assert row.how == "orc"
            found[row.tid].append(row.symbol)
    return found


def test_every_stack(lab_each: LabGuest) -> None:
    with lab_each.attach() as seen:
        threads = seen.threads(["tid", "name"])
        # RCU's own thread waits otherwise while the lab_each is asked than when it is left alone.
        asked = [row.tid for row in threads if row.name in ("rcu_sched", "rcu_preempt")]

        def differences() -> dict[Any, object]:
            told, found = inside(lab_each), outside(seen)
            for tid in asked:
                told.pop(tid, None)
            assert len(told.keys() & found.keys()) > 280
            assert sum(map(len, found.values())) > 1000
            return {tid: (told[tid], found[tid]) for tid in told.keys() & found.keys() if told[tid] != found[tid]}

        assert lasting(lab_each, differences) == {}
        by_tid = dict(zip(threads.tid.tolist(), threads.name.tolist(), strict=True))
        stacks = {by_tid[tid]: stack for tid, stack in outside(seen).items() if tid in by_tid}
        assert any(symbol.endswith(" [sctp]") for symbol in stacks["wait-module"])
        waits = {name: stack[0].partition("+")[0] for name, stack in stacks.items()}
        assert {waits[f"wait-{name}"] for name in ("poll", "select", "epoll", "message", "lock")} <= {
            "do_sys_poll", "do_poll", "do_select", "poll_schedule_timeout", "poll_schedule_timeout.constprop.0",
            "ep_poll", "do_epoll_wait", "do_msgrcv", "__x64_sys_flock", "__do_sys_flock", "flock_lock_inode_wait",
            "locks_lock_inode_wait",
        }  # fmt: skip
        one = seen.process_stack(["tid", "symbol"], pids=[2])
        assert one.columns == ("tid", "symbol", "fault")
        assert set(one.tid.tolist()) == {2}
        assert one.symbol[0].startswith("kthreadd+")


def test_a_scan_finds_what_was_called_and_more(lab_each: LabGuest) -> None:
    with lab_each.attach() as seen, seen.kernel.operation():
        kernel = seen.kernel
        view = process_view(kernel, None, MEMBERS, View, PIDTYPE_PID)
        code = Code(kernel)
        exact = unwind.frames(kernel, view.tasks, code)
        stacks = Stacks(kernel, view.tasks)
        loose = unwind._scan(kernel, stacks, code, False)
        assert (exact.how, loose.how) == ("orc", "scan")
        assert len(loose.address) > len(exact.address)
        missed = 0
        for row in np.unique(exact.owner).tolist():
            mine = iter(loose.address[loose.owner == row].tolist())
            missed += not all(each in mine for each in exact.address[exact.owner == row].tolist())
        assert missed <= 3  # which ran in between


def test_wait_channels(lab_each: LabGuest) -> None:
    with lab_each.attach() as seen:

        def differences() -> dict[Any, object]:
            told = lab_each.ask(
                "cd /proc; for i in [0-9]*; do echo $i $(cat $i/wchan); done 2>/dev/null; true", timeout=120
            )
            words = (line.split() for line in told.splitlines())
            channels = {int(each[0]): each[1] for each in words if len(each) == 2}
            table = seen.processes(["pid", "name", "wchan", "kernel_thread"])
            assert set(table.fault.tolist()) == {""}
            return {
                row.pid: (row, channels[row.pid]) for row in table if row.pid in channels and not row.kernel_thread
                and row.wchan != channels[row.pid].replace("0", "", channels[row.pid] == "0")
            }  # fmt: skip

        if lab_each.shape.kernel != "5.10-cloud":  # which follows frame pointers that are not there
            assert lasting(lab_each, differences) == {}
        rows = seen.threads(["name", "wchan"])
        assert {row.wchan for row in rows if row.name.startswith("worker-")} & {"__do_sys_pause", "__ia32_sys_pause"}
