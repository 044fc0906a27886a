"""Memory maps, held against every /proc/PID/maps of the guest, line by line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

import vmi_inside
from tests.lab.guest import LabGuest

LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)")
Line = tuple[int, int, int, str, int, str, int, str]


def inside(guest: LabGuest) -> set[Line]:
    told = guest.ask('cd /proc; for p in [0-9]*; do echo "= $p"; cat $p/maps; done 2>/dev/null; true', timeout=120)
    found: set[Line] = set()
    pid = 0
    for line in told.splitlines():
        if line.startswith("= "):
            pid = int(line[2:])
            continue
        match = LINE.fullmatch(line)
        assert match, line
        start, end, offset, major, minor = (int(match[part], 16) for part in (1, 2, 4, 5, 6))
        device = f"{major}:{minor}" if major or minor else ""
        found.add((pid, start, end, match[3], offset, device, int(match[7]), match[8]))
    return found


def outside(seen: vmi_inside.Guest) -> set[Line]:
    table = seen.process_memory_map()
    assert table.notes == ()
    assert set(table.fault.tolist()) <= {""}
    return {row[:8] for row in table}


@pytest.fixture(params=["6.1-cloud", "new-cloud", "5.10-cloud"])
def guest(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> Iterator[LabGuest]:
    return lab_boot() if request.param == "6.1-cloud" else lab_boot(kernel=request.param)


def test_every_region_of_every_process(guest: LabGuest) -> None:
    # The agent's memory grows while it answers, its shell lives only then; what differs but once has moved on.
    agent = int(guest.ask("echo $PPID"))
    with guest.attach() as seen:
        told, found = inside(guest), outside(seen)
        differing = {line for line in told ^ found if line[0] != agent}
        if differing:
            differing &= inside(guest) ^ outside(seen)
    assert differing == set()
    assert len(told & found) > 2000
    names = {line[7] for line in told & found}
    assert {"[heap]", "[stack]", "[vdso]", "/dev/zero (deleted)", "/memfd:from-memory (deleted)"} <= names


def test_one_process_costs_little_and_is_the_same(lab_guest: LabGuest) -> None:
    with lab_guest.attach() as seen:
        every = seen.process_memory_map()
        one = seen.process_memory_map(["pid", "start", "path"], pids=[1])
        assert one.columns == ("pid", "start", "path", "fault")
        mine = every.where(every.pid == 1)
        assert one.start.tolist() == mine.start.tolist()
        assert one.path.tolist() == mine.path.tolist()
        assert mine.pseudo.tolist() == [not path.startswith("/") for path in mine.path]
        assert len(seen.process_memory_map(pids=[2])) == 0, "a kernel thread has no memory of its own"
