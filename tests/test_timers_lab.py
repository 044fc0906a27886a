"""Timers, held against /proc/timer_list and /proc/net/tcp of the guest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest

from tests.lab.guest import LabGuest
from vmi_inside.linux.timers import Timers

BASES = ["monotonic", "realtime", "boottime", "tai"]
#: tr of /proc/net/tcp: a retransmission or a probe is due, a keepalive.
TCP = {"tcp_write_timer": ("01", "04"), "tcp_keepalive_timer": ("02",)}
Key = tuple[int, str, str, int]


@pytest.fixture(params=["6.1-cloud", "new-cloud", "6.12-cloud", "5.10-cloud"])
def guest(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> LabGuest:
    return lab_boot() if request.param == "6.1-cloud" else lab_boot(kernel=request.param)


def told(guest: LabGuest) -> set[Key]:
    """CPU, base, function and end of each high-resolution timer."""
    found: set[Key] = set()
    cpu, base, function = 0, "", ""
    for line in guest.ask("cat /proc/timer_list").splitlines():
        if match := re.match(r"cpu: (\d+)", line):
            cpu = int(match[1])
        elif match := re.match(r" clock (\d+):", line):
            index = int(match[1])
            base = BASES[index % 4] + (" soft" if index >= 4 else "")
        elif match := re.match(r" #\d+: <[0-9a-f]+>, (.+), S:", line):
            function = match[1]
        elif match := re.match(r" # expires at \d+-(\d+) nsecs", line):
            found.add((cpu, base, function, int(match[1])))
    return found


def seen(table: Timers) -> set[Key]:
    rows = table.where(table.kind == "hrtimer")
    return {(row.cpu, row.base, row.function, row.expires) for row in rows}


def test_high_resolution_timers(guest: LabGuest) -> None:
    pids = guest.ask("sleep 1000 >/dev/null 2>&1 & echo $!; sleep 2000 >/dev/null 2>&1 & echo $!").split()
    try:
        with guest.attach() as attached:
            for _ in range(5):  # ticks come and go
                before = told(guest)
                table = attached.timers()
                mine, after = seen(table), told(guest)
                others = {key[:3] for key in mine} - {key[:3] for key in before | after}
                if before & after <= mine and not others:
                    break
        assert before & after <= mine
        assert not others  # their ends move on, but what they are stays
        assert len(before & after) >= 4
        sleepers = {str(row.pid): row for row in table if row.kind == "hrtimer" and row.pid >= 0}
        assert set(pids) <= set(sleepers)
        first, second = (sleepers[pid].remaining for pid in pids)
        assert 900 < first < 1001
        assert 1900 < second < 2001
        assert {sleepers[pid].function for pid in pids} == {"hrtimer_wakeup"}
    finally:
        guest.ask(f"kill {' '.join(pids)}")


def test_timers_of_the_wheels(guest: LabGuest) -> None:
    spaces = {}  # one process of each network namespace
    for link in guest.ask("ls -l /proc/[0-9]*/ns/net 2>/dev/null; true").splitlines():
        left, _, space = link.partition(" -> ")
        spaces.setdefault(space, left.split()[-1].split("/")[2])
    files = " ".join(f"/proc/{pid}/net/tcp /proc/{pid}/net/tcp6" for space, pid in spaces.items() if space)
    lines = guest.ask(f"cat {files} 2>/dev/null; true").splitlines()
    with guest.attach() as attached:
        for _ in range(5):  # what a sleeper is woken by lies on its stack, and may be gone when it is looked at
            table = attached.timers()
            if set(table.fault) == {""}:
                break
        modules = set(attached.kernel_modules(["name"]).name)
    wheel = table.where(table.kind == "timer")
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert set(table.owner) - {"kernel"} <= modules
    for function, states in TCP.items():
        due = []
        for line in lines:
            words = line.split()
            state, when = words[5].split(":") if len(words) > 10 and words[0] != "sl" else ("", "")
            if state in states and words[3] != "03":  # of half-open ones the timer is another
                due.append(int(when, 16) / 100)
        mine = sorted(wheel.remaining[wheel.function == function].tolist())
        assert len(mine) == len(due) > 0
        assert all(abs(a - b) < 3 for a, b in zip(mine, sorted(due), strict=True)), (mine, due)
    work = Counter(wheel.work[wheel.function == "delayed_work_timer_fn"])
    assert work["vmstat_shepherd"] == 1
    assert "" not in work
    assert len(set(wheel.base)) >= 2
