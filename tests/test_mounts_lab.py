"""Mounts, held against /proc/PID/mountinfo of the guest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from tests.lab.guest import LabGuest
from vmi_inside.linux.files.mounts import Mounts

#: What a file system's own options are cut down to: those that all of them may have.
GENERAL = ("rw", "ro", "sync", "dirsync", "mand", "lazytime")
#: Mounts of all kinds, in a namespace of their own, which stays until its process ends.
PLACES = r"""
cd /tmp && mkdir -p vmi/a vmi/b vmi/c vmi/d && touch vmi/ns
mount -t tmpfs -o nosuid,noexec,nodiratime,size=1m 'a device' vmi/a && mount --make-shared vmi/a
mkdir -p vmi/a/deep/er 'vmi/a/with space'
mount --bind vmi/a/deep vmi/b && mount -o remount,bind,ro,nodev vmi/b && mount --make-slave vmi/b
mount --bind vmi/a/deep/er vmi/c && mount --make-slave vmi/c && mount --make-shared vmi/c
mount -t tmpfs none vmi/d -o ro,noatime,sync && mount --make-unbindable vmi/d
mount -t tmpfs x 'vmi/a/with space' -o nodev,strictatime,dirsync
mount --bind /proc/self/ns/net vmi/ns
rmdir vmi/a/deep/er
echo $$ >/tmp/vmi.pid
exec sleep 3600
"""


@pytest.fixture(params=["6.1-cloud", "new-cloud", "6.12-cloud", "5.10-cloud"])
def guest(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> LabGuest:
    return lab_boot() if request.param == "6.1-cloud" else lab_boot(kernel=request.param)


@pytest.fixture
def places(guest: LabGuest) -> Iterator[int]:
    """The pid of a process in whose namespace `PLACES` are mounted."""
    guest.ask(f"rm -f /tmp/vmi.pid; unshare -m sh -c '{PLACES.replace(chr(39), chr(34))}' >/tmp/vmi.out 2>&1 &")
    pid = int(
        guest.ask("i=0; until [ -s /tmp/vmi.pid ] || [ $i = 50 ]; do sleep 0.2; i=$((i+1)); done; cat /tmp/vmi.pid")
    )
    try:
        yield pid
    finally:
        guest.ask(f"kill {pid}; sleep 0.5; rm -rf /tmp/vmi /tmp/vmi.pid /tmp/vmi.out")


def told(guest: LabGuest, pid: int) -> list[tuple]:
    """What mountinfo has: id, parent, device, root, place, options, tags, type, source, the file system's options."""
    rows = []
    for line in guest.ask(f"cat /proc/{pid}/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        words = [re.sub(r"\\(\d{3})", lambda hit: chr(int(hit[1], 8)), word) for word in left.split(" ")]
        kind, source, options = (right.replace("\\040", " ") if " " not in right else right).split(" ", 2)
        tags = [tag for tag in words[6:] if tag and not tag.startswith("propagate_from")]
        source = re.sub(r"\\(\d{3})", lambda hit: chr(int(hit[1], 8)), source)
        general = ",".join(word for word in options.split(",") if word in GENERAL)
        rows.append((*words[:6], " ".join(tags), kind, source, general))
    return rows


def seen(table: Mounts, namespace: int) -> list[tuple]:
    return [
        (str(row.id), str(row.parent), row.number, row.root, row.path, row.flags, row.propagation, row.type, row.device,
         row.super_flags)
        for row in table if row.mnt_namespace == namespace
    ]  # fmt: skip


def number(guest: LabGuest, pid: int) -> int:
    return int(guest.ask(f"readlink /proc/{pid}/ns/mnt").strip()[5:-1])


def test_mounts_of_all_kinds(guest: LabGuest, places: int) -> None:
    with guest.attach() as attached:
        table = attached.mounts()
    assert table.notes == ()
    assert set(table.fault) == {""}
    said = told(guest, places)
    mine = seen(table, number(guest, places))
    # What processes cannot reach from their root is not shown to them.
    assert [row for row in mine if row[0] in {each[0] for each in said}] == said
    assert {row[4] for row in said} >= {"/tmp/vmi/a", "/tmp/vmi/b", "/tmp/vmi/ns", "/tmp/vmi/a/with space"}
    tags = " ".join(row[6] for row in said)
    for word in ("shared:", "master:", "unbindable"):
        assert word in tags
    assert any(row[3].endswith("//deleted") for row in said)
    assert any(row[3].startswith("net:[") for row in said)


def test_every_namespace(guest: LabGuest) -> None:
    listed = guest.ask("ls -l /proc/[0-9]*/ns/mnt 2>/dev/null; true")
    with guest.attach() as attached:
        table = attached.mounts()
        some = attached.mounts(["path", "mnt_namespace"])
    assert some.columns == ("path", "mnt_namespace", "fault")
    assert some.path.tolist() == table.path.tolist()
    spaces = {}
    for line in listed.splitlines():
        left, _, name = line.partition(" -> mnt:")
        if name:
            spaces.setdefault(int(name[1:-1]), int(left.split()[-1].split("/")[2]))
    assert len(spaces) >= 3
    assert set(spaces) <= set(table.mnt_namespace.tolist())
    for space, pid in spaces.items():
        # A process with another root sees less, and from there.
        mine = {row[0]: (row[:4], row[5:]) for row in seen(table, space)}
        for row in told(guest, pid):
            assert mine[row[0]] == (row[:4], row[5:])


def test_how_full_they_are(guest: LabGuest) -> None:
    guest.ask("mkdir -p /tmp/vmi.full && mount -t tmpfs -o size=64k,nr_inodes=100 vmi /tmp/vmi.full && "
              "mkdir /tmp/vmi.none && mount -t tmpfs -o size=0,nr_inodes=0 vmi /tmp/vmi.none && "
              "head -c 10000 /dev/zero >/tmp/vmi.full/file")  # fmt: skip
    try:
        with guest.attach() as attached:
            table = attached.mounts()
        mine = {
            row.path: [row.blocks_size, row.blocks, row.blocks_free, row.blocks_available, row.inodes, row.inodes_free]
            for row in table.where(table.mnt_namespace == number(guest, 1)) if row.blocks >= 0
        }  # fmt: skip
        assert {"/", "/dev", "/tmp", "/tmp/vmi.full", "/tmp/vmi.none"} <= set(mine)
        assert table.blocks[table.type == "proc"].tolist()[:1] == [-1]
        for path, counts in mine.items():
            said = [int(word) for word in guest.ask(f"stat -f -c '%S %b %f %a %c %d' {path}").split()]
            assert counts == said or path in ("/", "/tmp"), path  # these two others write to
        assert mine["/tmp/vmi.full"][1:] == [16, 13, 13, 100, 98]
        assert mine["/tmp/vmi.none"][1:] == [0, 0, 0, 0, 0]
    finally:
        guest.ask("umount /tmp/vmi.full /tmp/vmi.none; rmdir /tmp/vmi.full /tmp/vmi.none")
