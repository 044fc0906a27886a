"""Kernel stacks, held against every /proc/PID/task/TID/stack and wchan of the guest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.lab.guest import LabGuest
from tests.test_process_details_lab import KERNELS, lasting
from vmi_inside.linux import unwind
from vmi_inside.linux.code import Code
from vmi_inside.linux.tasks import PIDTYPE_PID
from vmi_inside.linux.view import View, process_view


@pytest.fixture(params=KERNELS)
def guest(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> Iterator[LabGuest]:
    return lab_boot() if request.param == "6.1-cloud" else lab_boot(kernel=request.param)


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


def test_every_stack(guest: LabGuest) -> None:
    with guest.attach() as seen:
        threads = seen.threads(["tid", "name"])
        # RCU's own thread waits otherwise while the guest is asked than when it is left alone.
        asked = [row.tid for row in threads if row.name in ("rcu_sched", "rcu_preempt")]

        def differences() -> dict[Any, object]:
            told, found = inside(guest), outside(seen)
            for tid in asked:
                told.pop(tid, None)
            assert len(told.keys() & found.keys()) > 280
            assert sum(map(len, found.values())) > 1000
            return {tid: (told[tid], found[tid]) for tid in told.keys() & found.keys() if told[tid] != found[tid]}

        assert lasting(guest, differences) == {}
        names = {symbol.partition("+")[0] for stack in outside(seen).values() for symbol in stack}
        assert {"do_wait", "kthreadd", "do_nanosleep", "ptrace_stop", "pipe_read"} & names
        one = seen.process_stack(["tid", "symbol"], pids=[2])
        assert one.columns == ("tid", "symbol", "fault")
        assert set(one.tid.tolist()) == {2}
        assert one.symbol[0].startswith("kthreadd+")


def test_a_scan_finds_what_was_called_and_more(guest: LabGuest) -> None:
    with guest.attach() as seen, seen.kernel.operation():
        kernel = seen.kernel
        view = process_view(kernel, None, unwind.MEMBERS, View, PIDTYPE_PID)
        code = Code(kernel)
        exact = unwind.frames(kernel, view.tasks, code)
        stacks = unwind._Stacks(kernel, view.tasks)
        loose = unwind._scan(kernel, stacks, code, False)
        assert (exact.how, loose.how) == ("orc", "scan")
        assert len(loose.address) > len(exact.address)
        missed = 0
        for row in np.unique(exact.owner).tolist():
            mine = iter(loose.address[loose.owner == row].tolist())
            missed += not all(each in mine for each in exact.address[exact.owner == row].tolist())
        assert missed <= 3  # which ran in between
