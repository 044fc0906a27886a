"""What control keeps on disk, and how a guest is held, with a machine that is only told about."""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vmi_inside.control.journal import Journal, Write
from vmi_inside.control.pausing import Pausing, uninterrupted
from vmi_inside.control.store import Store
from vmi_inside.errors import Busy, ControlError, GuestGone


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store("8a2b-guest", tmp_path / "state")


class Told:
    """A machine that notes what it is told."""

    name, identity, instance = "web", "8a2b-guest", "1:2"

    def __init__(self, standing: bool = False) -> None:
        self.paused = standing
        self.told: list[str] = []
        self.notices: list[str] = []
        self.fails: list[Exception] = []

    def pause(self) -> None:
        self.told.append("pause")
        self.paused = True

    def resume(self) -> None:
        self.told.append("resume")
        if self.fails:
            raise self.fails.pop()
        self.paused = False

    @contextmanager
    def debugger(self) -> Any:
        yield None

    def end_debugger(self) -> None:
        self.told.append("end debugger")

    def close(self) -> None:
        pass


def pausing(machine: Told, store: Store, left: list[dict[str, Any]] | None = None, unfinished: bool = False) -> Pausing:
    found = [] if left is None else left
    return Pausing(machine, store, lambda: unfinished and not found, lambda told: found.append(dict(told)), None)


# -- the store --------------------------------------------------------------------------------------------------------


def test_only_its_owner_may_look(store: Store) -> None:
    store.append({"id": 1})
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert store.path("journal").stat().st_mode & 0o777 == 0o600
    store.path("journal").chmod(0o640)
    with pytest.raises(ControlError, match="not trusted"):
        store.append({"id": 2})
    with pytest.raises(ControlError, match="not trusted"):
        store.lines()


def test_a_journal_is_read_on_from_where_it_was(store: Store) -> None:
    mine, other = Journal(store), Journal(store)
    assert mine.entries() == []
    first = mine.begin("write", "one", "boot", {})
    assert [entry.state for entry in mine.entries()] == ["open"]
    mine.entries()[0].state = "broken"  # what is given is the caller's
    other.end(other.entries()[0], "done")
    second = other.begin("write", "two", "boot", {})
    assert [(entry.id, entry.state) for entry in mine.entries()] == [(first.id, "done"), (second.id, "open")]
    with open(store.path("journal"), "ab") as file:
        file.write(b'{"id":2,"event":"do')  # torn: it is read when it is whole
    assert mine.entries()[1].state == "open"
    with open(store.path("journal"), "ab") as file:
        file.write(b'ne"}\n')
    assert mine.entries()[1].state == "done"
    kept = store.path("journal").read_bytes().splitlines(keepends=True)
    store.path("journal").unlink()
    store.append(json.loads(kept[0]))  # another file, as when it was put aside
    assert [(entry.id, entry.state) for entry in mine.entries()] == [(first.id, "open")]


def test_a_journal_of_many_pieces_is_read_to_its_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a new change takes the number of one that was not read, and cannot be taken back."""
    monkeypatch.setattr("vmi_inside.control.store._PIECE", 512)
    for number in range(40):
        assert Journal(store).begin("write", f"change {number}", "boot", {}).id == number + 1
    with open(store.path("journal"), "ab") as file:
        file.write(b'{"id":40,"event":"do')
    assert [entry.id for entry in Journal(store).entries()] == list(range(1, 41))


def test_what_is_planned_is_written_by_its_number(store: Store) -> None:
    one, moved = Write(0x1000, b"ab", b"cd"), Write(0x2000, b"12", b"34", code=True)
    journal = Journal(store)
    entry = journal.begin("gate", "why", "boot", {}, planned=[one, moved])
    assert journal.entries()[0].writes == ()  # planned is not made
    journal.writes(entry, [Write(0x2000, b"56", b"34", code=True), one])
    assert [record.get("writes") for record in store.lines()][1][1] == 0
    assert journal.entries()[0].writes == (Write(0x2000, b"56", b"34", code=True), one)
    store.append({"id": entry.id, "event": "writes", "writes": [7, -1, "x"]})  # of no plan
    assert Journal(store).entries()[0].writes == (Write(0x2000, b"56", b"34", code=True), one)


def test_what_others_own_is_not_trusted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append({"id": 1})
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ControlError, match="not trusted"):
        store.lines()
    with pytest.raises(ControlError, match="not trusted"):
        store.append({"id": 2})


def test_links_are_not_followed(store: Store, tmp_path: Path) -> None:
    store.append({"id": 1})
    store.path("journal").rename(tmp_path / "elsewhere")
    store.path("journal").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ControlError, match="cannot open"):
        store.append({"id": 2})


def test_a_folder_that_others_may_write_to(store: Store) -> None:
    store.append({"id": 1})
    store.folder.chmod(0o777)
    with pytest.raises(ControlError, match="not trusted"):
        store.append({"id": 2})


@pytest.mark.parametrize("identity", ["", "../x", "a/b", "x" * 65, "a\0b"])
def test_identities_that_name_no_file(identity: str) -> None:
    with pytest.raises(ControlError, match="identity"):
        Store(identity)


def test_torn_and_senseless_lines(store: Store) -> None:
    store.append({"id": 1, "event": "x"})
    with open(store.path("journal"), "ab") as file:
        file.write(b"[" * 100_000 + b'\nnull\n[1]\n\xff\xfe\n{"id": 2, "eve')
    assert store.lines() == [{"id": 1, "event": "x"}]
    store.append({"id": 3})
    assert store.lines() == [{"id": 1, "event": "x"}, {"id": 3}]


def test_one_at_a_time(store: Store) -> None:
    other = Store("8a2b-guest", store.folder)
    with store.lock("web"), pytest.raises(Busy, match=f"pid {os.getpid()}"), other.lock("web", patience=0.05):
        pass
    with other.lock("web", patience=0.05):
        pass


# -- the journal ------------------------------------------------------------------------------------------------------


def test_entries_and_their_states(store: Store) -> None:
    journal = Journal(store)
    first = journal.begin("write", "because", "boot", {"a": [1]})
    journal.writes(first, [Write(0xFFFF_8000_0000_0000, b"\0\1", b"\2\3", code=True)])
    assert [one.state for one in journal.entries()] == ["open"]
    journal.end(first, "done")
    second = journal.begin("undo", "back", "boot", {"undoes": 1})
    assert [one.state for one in journal.entries()] == ["done", "open"]
    journal.end(second, "done")
    told = journal.entries()
    assert [(one.id, one.state) for one in told] == [(1, "undone"), (2, "done")]
    assert told[0].writes == first.writes
    assert told[0].detail == {"a": [1]}


@pytest.mark.parametrize(
    "record",
    [
        {"id": "1", "event": "begin"},
        {"id": 1, "event": "begin"},
        {"id": 1, "event": "begin", "kind": 1, "reason": 2, "user": 3, "time": "never", "boot": 4, "detail": {}},
        {"id": 1, "event": "begin", "kind": "", "reason": "", "user": "", "time": 0, "boot": "", "detail": 7},
        {"id": 9, "event": "done"},
        {"event": []},
        {"id": 1, "event": {}},
        {"id": 1, "event": "begin", "kind": "", "reason": "", "user": "", "time": 10**400, "boot": "", "detail": {}},
    ],
)
def test_records_that_make_no_sense(store: Store, record: dict[str, Any]) -> None:
    store.append(record)
    assert Journal(store).entries() == []
    assert Journal(store).begin("write", "", "boot", {}).id == 1


@pytest.mark.parametrize("undoes", [[], {}, None, "1", 1e9])
def test_undone_is_only_what_is_there(store: Store, undoes: object) -> None:
    journal = Journal(store)
    entry = journal.begin("undo", "", "boot", {"undoes": undoes})
    journal.end(entry, "done")
    assert [one.state for one in journal.entries()] == ["done"]


def test_writes_that_make_no_sense(store: Store) -> None:
    journal = Journal(store)
    entry = journal.begin("write", "", "boot", {})
    good = Write(1, b"a", b"b").to_json()
    bad = [{**good, "address": "x"}, {**good, "old": "zz"}, {**good, "old": "0102"}, 5, {}, {**good, "old": None}]
    store.append({"id": entry.id, "event": "writes", "writes": [*bad, good]})
    store.append({"id": entry.id, "event": "writes", "writes": 5})
    assert journal.entries()[0].writes == (Write(1, b"a", b"b"),)


# -- pausing ----------------------------------------------------------------------------------------------------------


def test_blocks_nest(store: Store) -> None:
    machine = Told()
    held = pausing(machine, store)
    with held.paused() as outer, held.paused() as inner:
        assert outer is inner
        assert machine.told == ["pause"]
        assert store.held() == {"instance": "1:2", "found": False}
    assert machine.told == ["pause", "resume"]
    assert store.held() is None


def test_found_standing_left_standing(store: Store) -> None:
    machine = Told(standing=True)
    with pausing(machine, store).paused() as pause:
        assert pause.found
    assert machine.told == []


def test_a_guest_that_cannot_be_let_go_is_remembered(store: Store) -> None:
    machine = Told()
    machine.fails = [ControlError("no")]
    with pytest.raises(ControlError, match="no"), pausing(machine, store).paused():
        pass
    assert store.held() == {"instance": "1:2", "found": False}
    left: list[dict[str, Any]] = []
    with pausing(machine, store, left).locked():
        assert not machine.paused
    assert left == [{"instance": "1:2", "found": False}]
    assert store.held() is None
    machine.fails = [GuestGone("gone")]
    with pytest.raises(GuestGone), pausing(machine, store).paused():
        pass
    assert store.held() is None


def test_what_a_dead_controller_left(store: Store) -> None:
    store.hold({"instance": "1:2", "found": False, "stub": True, "points": [[1, 5, 1]]})
    machine, left = Told(standing=True), []
    with pausing(machine, store, left).locked():
        assert not machine.paused
    assert left[0]["points"] == [[1, 5, 1]]
    # Of another run of the machine nothing is left, and who paused this one had reasons.
    store.hold({"instance": "7:7", "found": False, "points": [[1, 5, 1]]})
    machine, left = Told(standing=True), []
    with pausing(machine, store, left).locked():
        assert machine.paused
    assert "points" not in left[0]
    store.path("held").touch(mode=0o600)  # empty: the host went down
    with pausing(machine, store).locked():
        assert machine.paused


def test_unfinished_entries_are_looked_after(store: Store) -> None:
    machine, left = Told(), []
    with pausing(machine, store, left, unfinished=True).locked():
        pass
    assert len(left) == 1
    assert machine.told == ["pause", "resume"]


def test_signals_wait() -> None:
    done = []

    def work() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_marker_is_json(store: Store) -> None:
    store.hold({"a": 1})
    assert json.loads(store.path("held").read_text()) == {"a": 1}
    store.let_go()
    store.let_go()
    assert store.held() is None
