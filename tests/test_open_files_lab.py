"""Open files, held against /proc/PID/fd, fdinfo, cwd, root and exe of every process of the guest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

import vmi_inside
from tests.lab.guest import LabGuest
from vmi_inside.linux.processes.open_files import OpenFiles

#: stat's file types, by the upper bits of a mode.
KINDS = {0o01: "fifo", 0o02: "chr", 0o04: "dir", 0o06: "blk", 0o10: "reg", 0o12: "lnk", 0o14: "sock"}
PLACES = {"cwd": "cwd", "root": "rtd", "exe": "txt"}
Key = tuple[int, str]


@pytest.fixture(params=["6.1-cloud", "new-cloud"])
def guest(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> Iterator[LabGuest]:
    return lab_boot() if request.param == "6.1-cloud" else lab_boot(kernel=request.param)


def links(guest: LabGuest) -> dict[Key, str]:
    """What `readlink` says, by process and descriptor."""
    listed = guest.ask("cd /proc; ls -l [0-9]*/fd/ [0-9]*/cwd [0-9]*/root [0-9]*/exe 2>/dev/null; true", timeout=120)
    found: dict[Key, str] = {}
    pid = 0
    for line in listed.splitlines():
        if line.endswith("/fd/:"):
            pid = int(line.partition("/")[0])
        elif " -> " in line:
            left, _, target = line.partition(" -> ")
            name = left.split()[-1]
            owner, slash, place = name.rpartition("/")
            found[(int(owner), PLACES[place]) if slash else (pid, name)] = target
    return found


def numbers(guest: LabGuest, command: str) -> dict[Key, list[str]]:
    """Lines of `PID/DIR/FD words`, by process and descriptor."""
    found: dict[Key, list[str]] = {}
    for line in guest.ask(f"cd /proc; {command} 2>/dev/null; true", timeout=120).splitlines():
        match = re.match(r"(\d+)/(?:fd|fdinfo)/(\d+)[ :](.*)", line)
        if match:
            found.setdefault((int(match[1]), match[2]), []).append(match[3])
    return found


def by_key(table: OpenFiles) -> dict[Key, tuple]:
    return {(row.pid, row.descriptor): row for row in table}


def read(seen: vmi_inside.Guest) -> dict[Key, tuple]:
    table = seen.process_open_files()
    assert table.notes == ()
    assert set(table.fault.tolist()) <= {""}
    return by_key(table)


def lasting(guest: LabGuest, differences: Callable[[], dict[Key, object]]) -> dict[Key, object]:
    """What differs, and still does when both sides are asked again: a guest lives on while it is compared.

    The agent's own files are left out: its pipes to the shell are there only while it answers.
    """
    agent = int(guest.ask("echo $PPID"))
    first = differences()
    again = differences() if first else {}
    return {key: again[key] for key in first.keys() & again.keys() if key[0] != agent}


def test_every_descriptor_and_where_it_leads(guest: LabGuest) -> None:
    with guest.attach() as seen:

        def differences() -> dict[Key, object]:
            told, found = links(guest), {key: row.path for key, row in read(seen).items()}
            assert len(told.keys() & found.keys()) > 3000
            return {key: (told.get(key), found.get(key)) for key in told | found if told.get(key) != found.get(key)}

        assert lasting(guest, differences) == {}
        for row in seen.process_open_files():
            assert row.deleted == row.path.endswith(" (deleted)"), row
            assert row.fd == {"cwd": -1, "rtd": -2, "txt": -3}.get(row.descriptor, row.fd)
            assert row.descriptor in ("cwd", "rtd", "txt", str(row.fd))


def test_what_each_descriptor_is(guest: LabGuest) -> None:
    with guest.attach() as seen:
        assert lasting(guest, lambda: wrong_rows(guest, read(seen))) == {}


def wrong_rows(guest: LabGuest, found: dict[Key, tuple]) -> dict[Key, object]:
    infos = numbers(guest, "find [0-9]*/fdinfo -type f | xargs grep -HsE '^(pos|flags):'")
    stats = numbers(guest, "find [0-9]*/fd -type l | xargs stat -L -c '%n %f %s %i %d'")
    shared = found.keys() & infos.keys() & stats.keys()
    assert len(shared) > 2500
    wrong: dict[Key, object] = {}
    for key in shared:
        row = found[key]
        told = dict(line.split(":\t") for line in infos[key])
        mode, size, inode, device = stats[key][0].split()
        access = "rwu "[int(told["flags"], 8) & 3].strip()
        kind = KINDS.get(int(mode, 16) >> 12)
        mine = (row.offset, row.flags, row.access, row.inode, row.device)
        if mine != (int(told["pos"]), told["flags"], access, int(inode), f"{int(device) >> 8}:{int(device) & 255}"):
            wrong[key] = (mine, told, stats[key])
        if (row.size != int(size) and kind != "sock") or (kind != row.type and kind and row.type in KINDS.values()):
            wrong[key] = (row, stats[key])
    return wrong


def test_kinds(guest: LabGuest) -> None:
    with guest.attach() as seen:
        table = seen.process_open_files()
        files = table.where(table.name == "files")
        kinds = {row.type for row in files}
        assert {"fifo", "eventfd", "timerfd", "signalfd", "epoll", "inotify", "memfd", "dir", "chr", "reg"} <= kinds
        one = files.where(files.fd == 5000)
        assert one.path.tolist() == ["/tmp/gone (deleted)"]
        assert (one.offset.tolist(), one.size.tolist(), one.access.tolist()) == ([2], [4], ["u"])
        assert "ns" in table.type
        pid = int(files.pid[0])
        few = seen.process_open_files(["fd", "path"], pids=[pid])
        assert few.columns == ("fd", "path", "fault")
        assert few.path.tolist() == files.path.tolist()
