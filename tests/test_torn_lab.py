"""A guest that forks, connects and exits as fast as it can, read again and again: no crash, no row that never was.

Every table is read twice in a row, and held against itself (`identities`): a row that is not marked must be the same
one again, or gone. Every child of `workload churn` says besides who it is by its name, user, port and file, which a row
must put together as they were. `--torn N` does so N times (3 unless given), `-s` shows the share of marked rows of each
table.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from tests.fuzz.readings import well_formed
from tests.identities import IDENTITIES, changed
from tests.lab.guest import LabGuest
from vmi_inside.table import Table
from vmi_inside.tables import TABLES

pytestmark = pytest.mark.lab

MAKERS: Final = 3
CHILD: Final = re.compile(r"churn-(\d+)")
_AT_ONCE: Final = 8  # tables of one snapshot: with all of them a busy guest has to stand still for it
#: The kernel writes names in words: the first may stand there alone for a moment.
_WORD: Final = 8
#: Words of `fault` that say what is so, and not that something changed meanwhile: they stand in a still picture, too.
STATES: Final = ("runs: its stack is on a processor",)


@pytest.fixture
def busy(lab_each: LabGuest) -> Iterator[LabGuest]:
    lab_each.ask(f"(workload churn {MAKERS} >/dev/null 2>&1 &); sleep 0.5; ls /tmp/churn")
    yield lab_each
    lab_each.ask("killall maker answerer; sleep 0.2; rm -rf /tmp/churn", check=False)


class Torn:
    """What was read of a busy guest: rows and marked rows by table, and rows that were never so."""

    def __init__(self) -> None:
        self.readings = 0
        self.rows: Counter[str] = Counter()
        self.marked: Counter[str] = Counter()
        self.words: Counter[str] = Counter()
        self.invented: list[str] = []
        self.children: set[int] = set()

    def add(self, name: str, table: Table) -> None:
        """Count a table's rows, and look at each that is not marked."""
        well_formed(table)
        self.readings += 1
        faults = table.column("fault").tolist()
        self.rows[name] += len(table)
        for word in faults:
            if word and word not in STATES:
                self.marked[name] += 1
                self.words[f"{name}: {word}"] += 1
        check = getattr(self, f"_{name}", None)
        for row in (row for row, fault in zip(table, faults, strict=True) if check and not fault):
            check(row)

    def again(self, name: str, before: Table, after: Table) -> None:
        """Hold two readings of a table, one after the other, against each other."""
        differ, alone = changed(name, before, after)
        self.invented += differ
        if IDENTITIES[name].still:
            self.invented += alone

    def share(self) -> float:
        """Of all rows those that are marked."""
        return sum(self.marked.values()) / max(sum(self.rows.values()), 1)

    def told(self) -> str:
        """The figures, a line for each table with marked rows."""
        lines = [f"{self.readings} readings, {sum(self.rows.values())} rows, {self.share():.3%} marked, "
                 f"{len(self.children)} children seen"]  # fmt: skip
        lines += [f"  {name}: {count} of {self.rows[name]}, {count / self.rows[name]:.3%}"
                  for name, count in self.marked.most_common()]  # fmt: skip
        lines += [f"  {count} x {word}" for word, count in self.words.most_common(20)]
        return "\n".join([*lines, *(f"  never so: {row[:1000]}" for row in self.invented)])

    def _child(self, row: object, pid: int, name: str) -> int:
        """The number in a child's name, which must be its own; 0 for others."""
        match = CHILD.fullmatch(name)
        if match is None:
            return 0
        self.children.add(pid)
        if int(match[1]) != pid and not (len(name) == _WORD and f"churn-{pid}".startswith(name)):
            self.invented.append(f"{pid} is called {name}: {row}")
        return pid

    def _waits(self, row: Any) -> None:
        if row.wchan.startswith("0x"):
            self.invented.append(f"{row.pid} waits at no function: {row}")

    def _processes(self, row: Any) -> None:
        pid = self._child(row, row.pid, row.name)
        if pid and row.uid not in (0, 10000 + pid % 1000):
            self.invented.append(f"{pid} is user {row.uid}: {row}")
        self._waits(row)

    def _threads(self, row: Any) -> None:
        self._child(row, row.tid, row.name)
        self._waits(row)

    def _process_stack(self, row: Any) -> None:
        self._child(row, row.tid, row.name)
        if row.how == "orc" and row.symbol.startswith("0x"):
            self.invented.append(f"{row.tid} returns to no function: {row}")

    def _process_credentials(self, row: Any) -> None:
        pid = self._child(row, row.pid, row.name)
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

    def _named(self, row: Any) -> None:
        self._child(row, row.pid, row.name)

    _process_namespaces = _process_limits = _process_signals = _process_memory = _process_envs = _named


@contextmanager
def counted(lab: LabGuest) -> Iterator[Torn]:
    """What is read inside; the figures are told however it ends."""
    torn = Torn()
    try:
        yield torn
    finally:
        print(f"{lab.shape.kernel}: {torn.told()}")
    assert torn.invented == []


def test_live(busy: LabGuest, request: pytest.FixtureRequest) -> None:
    with counted(busy) as torn, busy.attach() as guest:
        for _ in range(request.config.getoption("--torn")):
            for name, reading in TABLES.items():
                before, after = guest.read(reading), guest.read(reading)
                torn.add(name, before)
                torn.add(name, after)
                torn.again(name, before, after)
        assert torn.children, "nothing of what comes and goes was seen"
        assert torn.share() < 0.1


def test_snapshot(busy: LabGuest, request: pytest.FixtureRequest) -> None:
    """The same of one moment, some tables at a time: nothing changed meanwhile, so nothing is marked."""
    with counted(busy) as torn, busy.attach(pausing=True) as guest:
        for _ in range(-(-request.config.getoption("--torn") // 3)):
            for names in batched(TABLES, _AT_ONCE):
                made = guest.snapshot(*names, pause=True)
                assert made.whole
                for name, table in made.tables.items():
                    torn.add(name, table)
        assert +torn.marked == Counter()


def batched(names: Iterable[str], size: int) -> Iterator[list[str]]:
    """The names, so many at a time."""
    left = list(names)
    while left:
        yield left[:size]
        del left[:size]
