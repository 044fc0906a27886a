"""Several tables as one picture: read from pages that were copied at one moment, however busy the guest is."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.lab.guest import LabGuest
from tests.synthetic import LinuxGuest
from vmi_inside import saved, snapshot, sql
from vmi_inside.diff import diff
from vmi_inside.drivers.captured import CapturedMemory
from vmi_inside.errors import BadSnapshot, NoSuchDomain, Unsupported, VmiError
from vmi_inside.memory import PhysicalMemory
from vmi_inside.snapshot import Snapshot
from vmi_inside.types import U8, U64, Mask

TABLES = ("processes", "threads", "process_open_sockets")


class Restless:
    """A memory that changes behind its readers' backs: `change` is called before each of their gathers."""

    def __init__(self, memory: PhysicalMemory, change: Callable[[], None]) -> None:
        self.memory = memory
        self.runs = memory.runs
        self.change = change
        self.gathers = 0

    def gather(self, pa: U64, out: U8) -> Mask:
        self.gathers += 1
        self.change()
        return self.memory.gather(pa, out)

    def read(self, pa: int, size: int) -> bytes | memoryview | None:
        return self.memory.read(pa, size)

    def close(self) -> None:
        self.memory.close()


def populated(count: int = 30) -> LinuxGuest:
    guest = LinuxGuest(scattered=True)
    guest.task(1, "init")
    for pid in range(100, 100 + count):
        guest.task(pid, f"task-{pid}", 1)
    guest.finish()
    return guest


def take(guest: LinuxGuest, memory: Any = None, **options: Any) -> Snapshot:
    wanted = snapshot.wanted(options.pop("tables", TABLES))
    return snapshot.take("web01", guest.kernel, memory or guest.memory, wanted, **options)


def test_a_quiet_guest_is_copied_once() -> None:
    guest = populated()
    stood: list[int] = []

    @contextmanager
    def pause() -> Iterator[SimpleNamespace]:
        before = guest.memory.gathers
        held = SimpleNamespace(seconds=0.0)
        yield held
        held.seconds = 0.25
        stood.append(guest.memory.gathers - before)

    taken = take(guest, pause=pause)
    assert stood == [1]  # one gather while the guest stands still
    assert (taken.whole, taken.notes) == (True, ())
    assert taken.processes().pid.tolist() == [1, *range(100, 130)]
    assert taken.threads(columns=["tid"]).columns == ("tid", "fault")
    assert taken.paused == 0.25
    assert taken.took > 0
    assert {name: set(table.fault) for name, table in taken.tables.items()}["processes"] == {""}
    # What the guest does later is not seen.
    guest.put("task_struct", guest.tasks[100].task, comm=b"other")
    assert "task-100" in taken.processes().name


def test_what_grows_while_it_is_looked_at_is_caught_up_with() -> None:
    guest = populated(8)
    pending = [lambda pid=pid: (guest.task(pid, f"new-{pid}", 1), guest.finish()) for pid in range(500, 503)]

    def change() -> None:
        if pending and memory.gathers % 40 == 0:
            pending.pop(0)()

    memory = Restless(guest.memory, change)
    taken = take(guest, memory, tables=("processes",))
    assert taken.whole
    assert pending == [] or taken.processes().pid.tolist()[-1] < 500 + 3
    assert set(taken.processes().fault) == {""}


def test_a_guest_that_never_stops_changing_is_said_to_be_so() -> None:
    guest = populated(8)
    pids = iter(range(1000, 100_000))

    def change() -> None:
        guest.put("task_struct", guest.tasks[100].task, real_cred=guest.new("cred", uid__val=next(pids)))
        guest.alloc(1 << 15, "spread")
        guest._slabs.clear()  # each new struct on a page of its own

    memory = Restless(guest.memory, change)
    taken = take(guest, memory, tables=("processes",))
    assert not taken.whole
    assert "changes too quickly" in taken.notes[0]
    assert len(taken.processes()) == 9


def test_but_not_while_it_stands_still() -> None:
    guest = populated(8)
    pids = iter(range(1000, 100_000))
    stands = False

    def change() -> None:
        if not stands:
            guest.put("task_struct", guest.tasks[100].task, real_cred=guest.new("cred", uid__val=next(pids)))
            guest._slabs.clear()

    @contextmanager
    def pause() -> Iterator[SimpleNamespace]:
        nonlocal stands
        stands = True
        yield SimpleNamespace(seconds=0.5)
        stands = False

    memory = Restless(guest.memory, change)
    guest.kernel.space.memory = memory
    taken = take(guest, memory, tables=("processes",), pause=pause)
    assert (taken.whole, len(taken.processes())) == (True, 9)
    assert taken.paused == 3.5  # six in vain, and one for the reading


def test_what_may_be_captured_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmi_inside.drivers.captured.LIMIT", 8 << 12)
    with pytest.raises(Unsupported, match="fewer tables"):
        take(populated())


def test_captured_memory_is_the_memory() -> None:
    guest = populated()
    captured = CapturedMemory(guest.memory)
    rng = np.random.default_rng(7)
    run = guest.memory.runs[1]
    pa = (run.start + rng.integers(0, run.size >> 12, 200) * 4096 + rng.integers(0, 4000, 200)).astype(np.uint64)
    pa[::17] = 3 << 30  # no RAM
    for width in (1, 8, 96):
        expected = np.empty((len(pa), width), np.uint8)
        ok = guest.memory.gather(pa, expected)
        found = np.empty_like(expected)
        assert captured.gather(pa, found).tolist() == ok.tolist()
        assert np.array_equal(found, expected)
    assert captured.missed > 100
    captured.prepare()
    captured.capture()
    captured.settle()
    guest.memory.reset()
    for width in (1, 8, 96):
        found = np.empty((len(pa), width), np.uint8)
        ok = captured.gather(pa, found)
        assert ok[1:17].all()
        assert not ok[::17].any()
    good = int(pa[1])
    assert bytes(captured.read(good, 50) or b"") == bytes(guest.memory.read(good, 50) or b"")
    assert captured.read(3 << 30, 8) is None


def test_a_table_that_it_does_not_hold() -> None:
    taken = take(populated(), tables=("processes",))
    with pytest.raises(Unsupported, match="holds no threads"):
        taken.threads()
    with pytest.raises(Unsupported, match="no table 'nix'"):
        snapshot.wanted(["nix"])


# -- in files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_kept_and_read_back(tmp_path: Path, name: str) -> None:
    taken = take(populated())
    saved.save(taken, tmp_path / name)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [name]
    back = saved.load(tmp_path / name)
    assert (back.name, back.taken, back.whole) == (taken.name, taken.taken, taken.whole)
    for table in TABLES:
        assert back.tables[table].to_dicts() == taken.tables[table].to_dicts()
        assert [c.dtype for c in back.tables[table]._data.values()] == [
            c.dtype for c in taken.tables[table]._data.values()
        ]
    assert len(diff(taken, back)) == 0
    assert next(iter(sql.query(back, "select count(*) from processes")))[0] == 31


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("mine")
    with pytest.raises(VmiError, match="there is a file"):
        saved.save(take(populated()), path)
    assert path.read_text() == "mine"
    saved.save(take(populated()), path, replace=True)
    assert saved.load(path).name == "web01"
    with pytest.raises(VmiError, match="cannot be written"):
        saved.save(take(populated()), tmp_path / "none" / "a.json")


def bad_files() -> dict[str, bytes]:
    taken = take(populated(2), tables=("processes",))
    good = json.loads(json.dumps({
        "format": "vmi-inside snapshot", "version": 1, "name": "x", "taken": 1.0, "took": 0.0, "paused": 0.0,
        "whole": True, "notes": [],
        "tables": {"processes": {"columns": {n: c.tolist() for n, c in taken.processes()._data.items()}, "notes": []}},
    }))  # fmt: skip

    def damaged(change: Callable[[dict[str, Any]], object]) -> bytes:
        told = json.loads(json.dumps(good))
        change(told)
        return json.dumps(told).encode()

    columns = lambda told: told["tables"]["processes"]["columns"]  # noqa: E731
    return {
        "empty": b"",
        "no JSON": b"{",
        "a list": b"[]",
        "deep": b"[" * 100_000,
        "gzip cut short": gzip.compress(json.dumps(good).encode())[:-20],
        "another version": damaged(lambda told: told.update(version=2)),
        "no columns": damaged(lambda told: told["tables"]["processes"].pop("columns")),
        "a short column": damaged(lambda told: columns(told)["pid"].pop()),
        "text for a number": damaged(lambda told: columns(told).update(pid=["1", "2", "3"])),
        "a huge number": damaged(lambda told: columns(told).update(pid=[1 << 70, 1, 1])),
        "a negative address": damaged(lambda told: columns(told).update(address=[-1, 1, 1])),
        "a number for text": damaged(lambda told: columns(told).update(name=[1, 2, 3])),
        "no fault": damaged(lambda told: columns(told).pop("fault")),
        "tables as a list": damaged(lambda told: told.update(tables=[])),
    }


@pytest.mark.parametrize("kind", sorted(bad_files()))
def test_files_that_are_no_snapshots(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad"
    path.write_bytes(bad_files()[kind])
    with pytest.raises(BadSnapshot) as caught:
        saved.load(path)
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(NoSuchDomain):
        saved.load(tmp_path / "none")


# -- compared -----------------------------------------------------------------------------------------------------


def test_what_came_went_and_changed() -> None:
    guest = populated(4)
    before = take(guest, tables=("processes",))
    guest.put("cred", guest.tasks[101].cred, uid__val=7)
    guest.put("task_struct", guest.tasks[102].task, __state=0, state=0, utime=10**9)  # changes of itself
    del guest.tasks[103], guest._pids[103]
    guest.task(900, "late", 1)
    guest.finish()
    after = take(guest, tables=("processes",))
    found = diff(before, after)
    assert [tuple(row)[:6] for row in found] == [
        ("processes", "removed", "pid=103 name=task-103 uid=0", "", "", ""),
        ("processes", "changed", "pid=101 name=task-101 uid=7", "uid", "0", "7"),
        ("processes", "added", "pid=900 name=late uid=0", "", "", ""),
    ]
    assert len(diff(before, before)) == 0
    with pytest.raises(Unsupported, match="holds no threads"):
        diff(before, after, ["threads"])


def test_workers_of_the_kernel_are_at_this_and_that() -> None:
    guest = populated(1)
    before = take(guest, tables=("processes",))
    before.tables["processes"].name[1] = "kworker/0:1-events"
    after = take(guest, tables=("processes",))
    after.tables["processes"].name[1] = "kworker/0:1+mm_percpu_wq"
    assert len(diff(before, after)) == 0
    after.tables["processes"].name[1] = "kworker/0:2"
    assert diff(before, after).column("column_name").tolist() == ["name"]


# -- on a real guest ----------------------------------------------------------------------------------------------


def test_a_busy_guest_in_one_picture(lab_guest: LabGuest) -> None:
    """While processes come and go, each socket and file of the picture belongs to a process of the picture."""
    lab_guest.ask("for i in $(seq 100); do sleep 0.1; cat /proc/self/stat; done >/dev/null 2>&1 &")
    with lab_guest.attach() as guest:
        whole = 0
        for _ in range(8):
            taken = guest.snapshot()
            if not taken.whole:
                assert "changes too quickly" in taken.notes[0]
                continue
            whole += 1
            processes = set(taken.processes().pid.tolist())
            holders = taken.process_open_sockets().pid
            assert set(holders[holders > 0].tolist()) <= processes
            assert set(taken.process_open_files().pid.tolist()) <= processes
            assert set(taken.processes().fault) == {""}
        assert whole
        before = guest.snapshot("processes")
        lab_guest.ask("sleep 21 </dev/null >/dev/null 2>&1 &")
        after = guest.snapshot("processes")
        (new,) = [row.pid for row in after.processes() if row.cmdline == "sleep 21"]
        assert [row.change for row in diff(before, after) if row.row.startswith(f"pid={new} ")] == ["added"]
    lab_guest.ask(f"kill {new}")


def test_a_guest_that_stands_still_for_its_picture(lab_fresh: Callable[..., LabGuest]) -> None:
    guest = lab_fresh(workload="tree,tcp,sleepers=200")
    guest.ask("while :; do sleep 0.01 & cat /proc/self/stat; done >/dev/null 2>&1 &")
    with guest.attach(pausing=True) as seen:
        for _ in range(5):
            taken = seen.snapshot(pause=True)
            assert taken.whole
            assert taken.paused > 0
            processes = set(taken.processes().pid.tolist())
            assert set(taken.process_open_files().pid.tolist()) <= processes
            assert {name: set(table.fault) for name, table in taken.tables.items()} == {
                name: {""} for name in taken.tables
            }
    assert guest.domain.state()[0] == 1, "running"
    with guest.attach() as seen, pytest.raises(VmiError, match="pausing=True"):
        seen.snapshot(pause=True)
