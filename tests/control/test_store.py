"""What control keeps on disk, and how a guest is held, with a machine that is only told about."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vmi_inside.control import journal as journals
from vmi_inside.control.journal import Entry, Journal, Write
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
    mine.entries()[0].detail["mine"] = True
    assert (mine.entries()[0].detail, mine.entries()[0].command) == ({}, "")
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


def test_the_same_writes_are_kept_once(store: Store) -> None:
    journal = Journal(store)
    for _ in range(3):
        there, back = Write(0x1000, b"old", b"new"), Write(0x1000, b"new", b"old")
        for one in (there, back):
            entry = journal.begin("kind", "reason", "boot", {}, planned=[one])
            journal.writes(entry, [one])
            journal.end(entry, "done")
    entries = journal.entries()
    assert [entry.writes for entry in entries] == [(there,), (back,)] * 3
    assert len({id(one) for entry in entries for one in (*entry.writes, *entry.planned)}) == 2


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


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file grows beyond `room` bytes: what is written ends in the middle, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk(store: Store) -> None:
    """It is told, nothing that was there is lost, and what was cut off there does not spoil what comes later."""
    store.append({"id": 1})
    store.hold({"found": True})
    with full_disk(store.path("journal").stat().st_size + 5):
        with pytest.raises(ControlError, match=r"cannot write the journal .*8a2b-guest\.journal: File too large"):
            store.append({"id": 2, "event": "done"})
        with pytest.raises(ControlError, match=r"cannot write .*8a2b-guest\.held: File too large"):
            store.hold({"found": False, "points": list(range(99))})
    assert store.held() == {"found": True}
    assert sorted(path.name for path in store.folder.iterdir()) == ["8a2b-guest.held", "8a2b-guest.journal"]
    store.append({"id": 3})
    assert store.lines() == [{"id": 1}, {"id": 3}]


@pytest.mark.parametrize("sync", [lambda store: store.append({"id": 2}), lambda store: store.sync()])
def test_a_disk_that_fails(store: Store, monkeypatch: pytest.MonkeyPatch, sync: Any) -> None:
    store.append({"id": 1})

    def fsync(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ControlError, match=r"cannot write the journal .*: Input/output error"):
        sync(store)
    monkeypatch.undo()
    assert store.lines()[0] == {"id": 1}


def test_what_is_in_the_way(store: Store, tmp_path: Path) -> None:
    store.sync()  # nothing is there yet
    (tmp_path / "state").write_text("a file")
    with pytest.raises(ControlError, match=r"cannot make .*/state"):
        store.append({"id": 1})
    (tmp_path / "state").unlink()
    store.append({"id": 1})
    store.path("journal").unlink()
    store.path("journal").mkdir()
    for use in (lambda: store.append({"id": 1}), store.sync):
        with pytest.raises(ControlError, match=r"cannot open .*\.journal: Is a directory"):
            use()
    with pytest.raises(ControlError, match="not trusted"):
        store.lines()


@pytest.mark.parametrize(("raw", "told"), [(b"", {}), (b"[1]", {}), (b"{", {}), (b"[" * 100_000, {}), (b"{}", {})])
def test_a_marker_that_makes_no_sense_still_says_that_the_guest_was_held(
    store: Store, raw: bytes, told: dict[str, Any]
) -> None:
    store.hold({"found": True})
    store.path("held").write_bytes(raw)
    assert store.held() == told


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


BEGIN = {"event": "begin", "kind": "", "reason": "", "user": "", "time": 0, "boot": "", "detail": {}}


@pytest.mark.parametrize(
    "record",
    [
        {"id": 1, "event": "begin"},
        {**BEGIN, "id": "1"},
        {**BEGIN, "id": None},
        {**BEGIN, "id": 1, "time": "never"},
        {**BEGIN, "id": 1, "time": 10**400},
        {**BEGIN, "id": 1, "detail": 7},
        {"id": 9, "event": "done"},
        {"event": []},
        {"id": 1, "event": {}},
    ],
)
def test_records_that_make_no_sense(store: Store, record: dict[str, Any]) -> None:
    """They are left out, and cost nothing of what stands around them."""
    store.append(record)
    assert Journal(store).entries() == []
    entry = Journal(store).begin("write", "", "boot", {})
    assert entry.id == 1
    store.append(record)
    Journal(store).end(entry, "done")
    assert [(one.id, one.kind, one.state) for one in Journal(store).entries()] == [(1, "write", "done")]


def test_an_entry_is_read_as_it_was_begun(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "_user", lambda: "operator as root")
    monkeypatch.setattr(journals.time, "time", lambda: 1234.5)
    planned = (Write(0x1000, b"a", b"b", code=True), Write(0x2000, b"cd", b"ef", space="physical"))
    Journal(store).begin("write", "of something else", "boot 1", {})
    begun = Journal(store).begin("gate", "because", "boot 2", {"a": [1]}, "vmi-inside deny", planned)
    assert begun == Entry(
        2, "gate", "because", "operator as root", 1234.5, "boot 2", {"a": [1]}, command="vmi-inside deny",
        planned=planned,
    )  # fmt: skip
    assert Journal(store).entries()[1] == Journal(store).find(2) == begun
    assert Journal(store).find(3) is None


ONE, OTHER = Write(0x1000, b"a", b"b"), Write(0x2000, b"c", b"d")


@pytest.mark.parametrize(
    ("events", "state", "detail", "writes"),
    [
        ([], "open", {"at": "begin"}, ()),
        ([("writes", [ONE]), ("writes", [OTHER])], "open", {"at": "begin"}, (ONE, OTHER)),
        ([("writes", [ONE]), ("taken back", None), ("writes", [OTHER])], "open", {"at": "begin"}, (OTHER,)),
        ([("note", {"at": "note"}), ("note", "nothing")], "open", {"at": "note"}, ()),
        ([("writes", [ONE]), ("done", {"at": "end"})], "done", {"at": "end"}, (ONE,)),
        ([("put back", 5)], "put back", {"at": "begin"}, ()),
        ([("broken", {"at": "end"})], "broken", {"at": "end"}, ()),
        # what comes behind an entry's end is not of it
        ([("done", None), ("broken", {"x": 1}), ("writes", [ONE]), ("note", {"x": 1})], "done", {"at": "begin"}, ()),
        ([("undone", {"x": 1}), ("no such event", {"x": 1}), ("open", None)], "open", {"at": "begin"}, ()),
        ([("begin", {"x": 1})], "open", {"at": "begin"}, ()),
    ],
)
def test_what_records_make_of_an_entry(
    store: Store, events: list[tuple[str, Any]], state: str, detail: dict[str, str], writes: tuple[Write, ...]
) -> None:
    entry = Journal(store).begin("write", "", "boot", {"at": "begin"})
    for event, told in events:
        of_writes = {"writes": [one.to_json() for one in told]} if event == "writes" else {"detail": told}
        more = {"kind": "again", "reason": "", "user": "", "time": 0, "boot": ""} if event == "begin" else {}
        store.append({"id": entry.id, "event": event, **of_writes, **more})
    store.append({"id": entry.id + 1, "event": "done", "detail": {"x": 1}})  # of none that is there
    store.append({**BEGIN, "id": entry.id + 2, "kind": "later"})  # as it was written before commands and plans were
    found, later = Journal(store).entries()
    assert (found.kind, found.state, found.detail, found.writes) == ("write", state, detail, writes)
    assert later == Entry(entry.id + 2, "later", "", "", 0, "")


def test_what_it_is_told_itself_an_entry_says_too(store: Store) -> None:
    """A journal's own entry and what another reads of it are the same after every step."""
    journal = Journal(store)
    entry = journal.begin("gate", "", "boot", {}, planned=[ONE])
    entry.detail = {"step": 1}
    steps = [
        lambda: journal.writes(entry, [ONE]), lambda: journal.writes(entry, [OTHER]), lambda: journal.note(entry),
        lambda: journal.taken_back(entry), lambda: journal.end(entry, "put back"),
    ]  # fmt: skip
    for number, step in enumerate(steps):
        if number == len(steps) - 1:
            entry.detail = {"step": 2}
        step()
        found = Journal(store).entries()[0]
        assert (found.state, found.writes) == (entry.state, entry.writes)
        assert found.detail == (entry.detail if number >= 2 else {})
    assert (entry.state, entry.writes) == ("put back", ())


@pytest.mark.parametrize(
    ("step", "synced"),
    [
        (lambda journal, entry: journal.writes(entry, [ONE]), False),
        (lambda journal, entry: journal.writes(entry, [ONE, OTHER]), True),
        (lambda journal, entry: journal.writes(entry, [Write(ONE.address, b"x", b"y")]), False),  # a planned place
        (lambda journal, entry: journal.writes(entry, [Write(ONE.address, b"xx", b"yy")]), True),
        (lambda journal, entry: journal.writes(entry, [Write(ONE.address, b"a", b"b", space="physical")]), True),
        (lambda journal, entry: journal.note(entry), False),
        (lambda journal, entry: journal.taken_back(entry), True),
        (lambda journal, entry: journal.end(entry, "done"), True),
        (lambda journal, entry: journal.end(entry, "done", sync=False), False),
        (lambda journal, _: journal.begin("write", "", "boot", {}), True),
        (lambda journal, _: journal.sync(), True),
    ],
)
def test_what_is_on_the_disk_when_it_returns(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: Any, synced: bool
) -> None:
    """In the pause nothing waits for a disk that was foreseen; all else is there before the guest is changed."""
    journal = Journal(store)
    entry = journal.begin("gate", "", "boot", {}, planned=[ONE])
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    step(journal, entry)
    assert bool(calls) == synced


@pytest.mark.parametrize(
    ("user", "behind", "told"),
    [("root", None, "root"), ("root", "ann", "ann as root"), ("ann", "ann", "ann"), (None, None, "{uid}")],
)
def test_who_asked_for_it(monkeypatch: pytest.MonkeyPatch, user: str | None, behind: str | None, told: str) -> None:
    def name() -> str:
        if user is None:
            raise OSError("no such user")
        return user

    monkeypatch.setattr(journals.getpass, "getuser", name)
    monkeypatch.delenv("SUDO_USER", raising=False)
    if behind:
        monkeypatch.setenv("SUDO_USER", behind)
    assert journals._user() == told.format(uid=os.getuid())


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
