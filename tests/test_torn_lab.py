"""A guest that forks, connects and exits as fast as it can, read again and again: no crash, no row that never was.

Every child of `workload churn` says who it is by its name, user, port and file. A row that is not marked must put these
together as they were. `--torn N` reads everything N times (3 unless given; the campaign's length is 1000).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fuzz.readings import well_formed
from tests.lab.guest import LabGuest
from vmi_inside.table import Table
from vmi_inside.tables import TABLES

pytestmark = pytest.mark.lab

MAKERS = 3
CHILD = re.compile(r"churn-(\d+)")


@pytest.fixture
def busy(lab_each: LabGuest) -> Iterator[LabGuest]:
    lab_each.ask(f"(workload churn {MAKERS} >/dev/null 2>&1 &); sleep 0.5; ls /tmp/churn")
    yield lab_each
    lab_each.ask("killall maker answerer; sleep 0.2; rm -rf /tmp/churn", check=False)


class Torn:
    """What was read of a busy guest: rows and marked rows by table, and rows that were never so."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.marked: Counter[str] = Counter()
        self.invented: list[str] = []
        self.children: set[int] = set()

    def add(self, name: str, table: Table) -> None:
        well_formed(table)
        faults = table.column("fault").tolist()
        self.rows[name] += len(table)
        self.marked[name] += sum(map(bool, faults))
        check = getattr(self, f"_{name}", None)
        for row in (row for row, fault in zip(table, faults, strict=True) if check and not fault):
            check(row)

    def share(self) -> float:
        """Of all rows those that are marked."""
        return sum(self.marked.values()) / max(sum(self.rows.values()), 1)

    def _child(self, row: object, pid: int, name: str) -> int:
        """The number in a child's name, which must be its own; 0 for others."""
        match = CHILD.fullmatch(name)
        if match is None:
            return 0
        self.children.add(pid)
        if int(match[1]) != pid:
            self.invented.append(f"{pid} is called {name}: {row}")
        return pid

    def _processes(self, row: Any) -> None:
        pid = self._child(row, row.pid, row.name)
        if pid and row.uid not in (0, 10000 + pid % 1000):
            self.invented.append(f"{pid} is user {row.uid}: {row}")

    def _threads(self, row: Any) -> None:
        self._child(row, row.tid, row.name)

    def _process_credentials(self, row: Any) -> None:
        pid = self._child(row, row.pid, row.name) if hasattr(row, "name") else 0
        if pid and row.uid not in (0, 10000 + pid % 1000):
            self.invented.append(f"{pid} is user {row.uid}: {row}")

    def _process_open_sockets(self, row: Any) -> None:
        pid = self._child(row, row.pid, row.name)
        if pid and row.family == "inet" and row.local_port not in (0, 20000 + pid % 10000):
            self.invented.append(f"{pid} has port {row.local_port}: {row}")

    def _process_open_files(self, row: Any) -> None:
        match = re.match(r"/tmp/churn/(\d+)", row.path)
        if match and int(match[1]) != row.pid:
            self.invented.append(f"{row.pid} has {row.path}: {row}")


def test_live(busy: LabGuest, request: pytest.FixtureRequest, record_property: object) -> None:
    torn = Torn()
    with busy.attach() as guest:
        for _ in range(request.config.getoption("--torn")):
            for name in TABLES:
                torn.add(name, guest.read(TABLES[name]))
    told = {name: f"{torn.marked[name]} of {torn.rows[name]}" for name in torn.rows if torn.marked[name]}
    print(f"{busy.shape.kernel}: {len(torn.children)} children seen, {torn.share():.2%} marked: {told}")
    assert torn.children, "nothing of what comes and goes was seen"
    assert torn.invented == []
    assert torn.share() < 0.1


NAMES = ("processes", "threads", "process_credentials", "process_open_sockets", "process_open_files")


def test_snapshot(busy: LabGuest, request: pytest.FixtureRequest) -> None:
    torn = Torn()
    with busy.attach(pausing=True) as guest:
        for _ in range(request.config.getoption("--torn")):
            made = guest.snapshot(*NAMES, pause=True)
            assert made.whole
            for name in NAMES:
                torn.add(name, made.tables[name])
    print(f"{busy.shape.kernel}: {len(torn.children)} children seen, marked: {torn.marked} of {torn.rows}")
    assert torn.invented == []
    assert +torn.marked == Counter()
