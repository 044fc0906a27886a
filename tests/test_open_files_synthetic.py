"""Open files of made-up guests: every kind of file, and guests that lie about theirs."""

from __future__ import annotations

import pytest

from tests.synthetic.files import FilesGuest
from tests.synthetic.guest import HOLE, NOWHERE
from tests.synthetic.linux import Task
from vmi_inside.linux.processes.open_files import OpenFiles, process_open_files

FIFO, SOCK = 0o010600, 0o140777


def populate(guest: FilesGuest) -> dict[int, Task]:
    """One process with a file of each kind, one that shares its table, one kernel thread."""
    init, twin, worker = guest.task(1, "init"), guest.task(70000, "twin"), guest.task(2, "kthreadd", flags=0x200000)
    guest.memory_of(init, b"init\0", exe=guest.regular("sbin", "init", number=3, size=5000))
    netns = guest.new("ns_common", ops=guest.new("proc_ns_operations", name=guest.string("net")))
    guest.open(init, {
        0: guest.regular("dev", "null", f_flags=2),
        1: guest.regular("var", "log", "a b\nc", f_flags=0o101001, f_pos=1 << 40),
        2: guest.regular("tmp", "gone", deleted=True, size=4),
        3: guest.made("pipefs", "", 4711, FIFO, f_flags=1),
        4: guest.made("sockfs", "TCP", 815, SOCK, f_flags=2),
        5: guest.made("anon_inodefs", "[eventfd]", 9),
        6: guest.made("anon_inodefs", "[eventpoll]", 9),
        7: guest.made("anon_inodefs", "inotify", 9),
        8: guest.made("anon_inodefs", "bpf-map", 9),
        9: guest.made("tmpfs", "memfd:x", 10, 0o100777, f_flags=0o100002),
        10: guest.made("tmpfs", "dev/zero", 11, 0o100777),
        11: guest.made("nsfs", "", 4026531840, 0o100444, private=netns),
        12: guest.made("pidfs", "", 77, 0o100700),
        13: guest.regular("opened", "for path", f_flags=0o10000000),
    })  # fmt: skip
    closing = guest.alloc(8, "bits")
    guest.word(closing, 1 << 1 | 1 << 9)
    guest.put("fdtable", guest.space.read_u64(init.files + guest.offset("files_struct", "fdt")), close_on_exec=closing)
    guest.give(twin, files=init.files)
    for each in (init, worker):
        guest.place(each)
    return {1: init, 70000: twin, 2: worker}


def cells(table: OpenFiles, *names: str, pid: int = 1) -> list[tuple]:
    mine = table.where(table.pid == pid)
    return list(zip(*(mine.column(name).tolist() for name in names), strict=True))


@pytest.mark.parametrize(
    "kind",
    [{}, {"levels": 5, "scattered": True}, {"older": True}],
    ids=["newer", "five levels, scattered", "older"],
)
def test_every_kind(kind: dict) -> None:
    guest = FilesGuest(**kind)
    populate(guest)
    guest.finish()
    table = process_open_files(guest.kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert cells(table, "descriptor", "type", "path", "deleted") == [
        ("cwd", "dir", "/", False),
        ("rtd", "dir", "/", False),
        ("txt", "reg", "/sbin/init", False),
        ("0", "reg", "/dev/null", False),
        ("1", "reg", "/var/log/a b\nc", False),
        ("2", "reg", "/tmp/gone (deleted)", True),
        ("3", "fifo", "pipe:[4711]", False),
        ("4", "sock", "socket:[815]", False),
        ("5", "eventfd", "anon_inode:[eventfd]", False),
        ("6", "epoll", "anon_inode:[eventpoll]", False),
        ("7", "inotify", "anon_inode:inotify", False),
        ("8", "bpf", "anon_inode:bpf-map", False),
        ("9", "memfd", "/memfd:x (deleted)", True),
        ("10", "reg", "/dev/zero (deleted)", True),
        ("11", "ns", "net:[4026531840]", False),
        ("12", "pidfd", "anon_inode:[pidfd]", False),
        ("13", "reg", "/opened/for path", False),
    ]
    numbers = cells(table, "fd", "access", "flags", "offset", "inode", "size", "device")
    assert numbers[:6] == [
        (-1, "", "", 0, 2, 0, "8:1"),
        (-2, "", "", 0, 2, 0, "8:1"),
        (-3, "", "", 0, 3, 5000, "8:1"),
        (0, "u", "02", 0, 7, 100, "8:1"),
        (1, "w", "02101001", 1 << 40, 7, 100, "8:1"),
        (2, "r", "00", 0, 7, 4, "8:1"),
    ]
    assert numbers[12][:3] == (9, "u", "02100002")
    assert numbers[16][:3] == (13, "", "010000000")
    assert [row[0] for row in cells(table, "descriptor", pid=2)] == ["cwd", "rtd"]
    # Who shares a table has all of it, and places of its own: here none.
    assert cells(table, "fd", "path", "address", pid=70000) == cells(table, "fd", "path", "address")[3:]
    assert set(cells(table, "name", pid=70000)) == {("twin",)}


def test_some_columns_of_some_processes_cost_less() -> None:
    guest = FilesGuest()
    populate(guest)
    guest.finish()
    process_open_files(guest.kernel)
    guest.memory.reset()
    process_open_files(guest.kernel)
    everything = guest.memory.rows
    guest.memory.reset()
    table = process_open_files(guest.kernel, ["pid", "fd"], pids=frozenset((2, 5)))
    assert guest.memory.rows < everything / 3
    assert (table.columns, table.pid.tolist()) == (("pid", "fd", "fault"), [2, 2])
    with pytest.raises(AttributeError, match="no column 'nonsense'"):
        process_open_files(guest.kernel, ["nonsense"])


def test_rounds_do_not_grow_with_files() -> None:
    guest = FilesGuest()
    init = guest.task(1, "init")
    names = [guest.regular("srv", f"file-{number}") for number in range(200)]
    guest.open(init, dict(enumerate(names)), max_fds=256)
    guest.finish()
    process_open_files(guest.kernel)
    guest.memory.reset()
    assert len(process_open_files(guest.kernel)) == 200
    assert guest.memory.gathers < 60


def test_more_descriptors_than_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when many tasks are made to share one table that is as large as can be."""
    monkeypatch.setattr("vmi_inside.linux.files.descriptors._IN_ALL", 4)
    guest = FilesGuest()
    for pid, files in ((1, 3), (10, 1), (11, 3)):
        guest.open(guest.task(pid, f"task{pid}"), {fd: guest.regular(f"file{fd}") for fd in range(files)})
    table = process_open_files(guest.finish().kernel)
    rows = [(row.pid, row.fd) for row in table if row.fd >= 0]
    assert rows == [(1, 0), (1, 1), (1, 2), (10, 0)]
    assert [note for note in table.notes if "those of 1 tasks are left out" in note]


def test_a_file_of_an_overlay_has_the_overlays_path() -> None:
    guest = FilesGuest()
    init = guest.task(1, "init")
    shown = guest.regular("merged", "name")
    real = guest.new("backing_file")
    for at, members in ((real, {"f_mode": 1 << 24}), (shown, {})):
        guest.put("file", at, f_inode=guest.inode("ext4", 0o100644, 12), **members)
    hidden = guest.file("lower", "name")
    for end in ("mnt", "dentry"):
        offset = guest.offset("file", f"f_path.{end}")
        guest.word(real + offset, guest.space.read_u64(hidden + offset))
        guest.poke("backing_file", real, f"user_path.{end}", guest.space.read_u64(shown + offset))
    dentry = guest.space.read_u64(shown + guest.offset("file", "f_path.dentry"))
    guest.put("dentry", dentry, d_sb=guest.system("ext4")[0])
    # That bit meant something else once: what lies behind this file is no path.
    other = guest.regular("plain", f_mode=1 << 25)
    guest.open(init, {0: real, 1: other})
    guest.finish()
    table = process_open_files(guest.kernel)
    assert table.path.tolist() == ["/merged/name", "/plain"]
    assert table.inode[0] == 12


@pytest.mark.parametrize("wild", [NOWHERE, HOLE, (1 << 64) - 8, 8, 0x1234_5678_9ABC_DEF0])
def test_wild_pointers_mark_their_rows_only(wild: int) -> None:
    guest = FilesGuest()
    tasks = populate(guest)
    table = guest.space.read_u64(tasks[1].files + guest.offset("files_struct", "fdt"))
    array = guest.space.read_u64(table + guest.offset("fdtable", "fd"))
    guest.word(array + 8 * 5, wild)  # no file
    guest.put("file", guest.space.read_u64(array + 8 * 6), f_inode=wild)
    guest.put("file", guest.space.read_u64(array + 8 * 7), f_path__dentry=wild)
    guest.put("file", guest.space.read_u64(array + 8 * 8), f_path__mnt=wild)
    guest.put("fs_struct", guest.space.read_u64(tasks[2].task + guest.offset("task_struct", "fs")), pwd__dentry=wild)
    guest.finish()
    found = process_open_files(guest.kernel)
    faults = {(row.pid, row.descriptor): row.fault for row in found if row.pid != 70000}
    assert [key for key, fault in faults.items() if fault] == [(1, "5"), (1, "6"), (1, "7"), (1, "8"), (2, "cwd")]
    assert faults[1, "5"] == "file unreadable"
    assert "inode unreadable" in faults[1, "6"]
    assert len(found) == 17 + 14 + 2


def test_tables_that_lie() -> None:
    guest = FilesGuest()
    tasks = populate(guest)
    table = guest.space.read_u64(tasks[1].files + guest.offset("files_struct", "fdt"))
    guest.put("fdtable", table, max_fds=(1 << 32) - 1, close_on_exec=NOWHERE)
    guest.give(tasks[2], fs=NOWHERE, files=NOWHERE)
    guest.finish()
    found = process_open_files(guest.kernel)
    assert len(found) < 1 << 20
    assert any("descriptor tables" in note for note in found.notes)
    assert any("working directories" in note for note in found.notes)
