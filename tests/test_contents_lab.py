"""Processes' memory and cached files, held against sums that the guest makes of every region and file itself."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import vmi_inside
from tests.lab.guest import LabGuest
from vmi_inside.errors import NoFile, NoProcess, NotInMemory, PageFault
from vmi_inside.linux.contents.content import State
from vmi_inside.linux.contents.process_contents import ProcessContents
from vmi_inside.linux.contents.regions import Region

#: What can be summed up within reason: one of the workload's regions is 1 TiB.
LARGEST = 8 << 20
FOLDER = "/tmp/contents test"


@pytest.fixture(params=["6.1-cloud", "new-cloud", "5.10-cloud"])
def guest(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> LabGuest:
    return lab_boot() if request.param == "6.1-cloud" else lab_boot(kernel=request.param)


@contextmanager
def folder(guest: LabGuest, setup: str, cleanup: str = "true") -> Iterator[None]:
    """A folder in the guest for one test."""
    guest.ask(f"rm -rf '{FOLDER}'; mkdir -p '{FOLDER}' && cd '{FOLDER}' && {{ {setup}\n}}", timeout=120)
    try:
        yield
    finally:
        guest.ask(f"cd '{FOLDER}' && {{ {cleanup}\n}}; cd /; rm -rf '{FOLDER}'", timeout=120)


@contextmanager
def fresh(guest: LabGuest, seen: vmi_inside.Guest, name: str) -> Iterator[ProcessContents]:
    """The memory of a process of the workload that nobody read before: reading brings pages in."""
    before = named(seen, name)
    guest.ask(f"workload start {name}", timeout=120)
    new = sorted(named(seen, name).keys() - before.keys())
    try:
        yield seen.process_contents(new[0])
    finally:
        guest.ask(f"kill -9 {' '.join(map(str, new))}")


def named(seen: vmi_inside.Guest, *names: str) -> dict[int, str]:
    table = seen.processes(["pid", "name"])
    return {row.pid: row.name for row in table if row.name in names}


# -- processes ----------------------------------------------------------------------------------------------------


def sums_inside(guest: LabGuest, wanted: dict[int, list[Region]]) -> dict[tuple[int, int], str]:
    lines = [
        f"echo {pid} {region.start} $(dd if=/proc/{pid}/mem bs=4096 skip={region.start >> 12} "
        f"count={region.size >> 12} 2>/dev/null | sha256sum)"
        for pid, regions in wanted.items()
        for region in regions
    ]
    told = guest.ask("\n".join(lines), timeout=300)
    return {(int(line[0]), int(line[1])): line[2] for line in map(str.split, told.splitlines())}


def test_every_byte_of_processes_memory(guest: LabGuest) -> None:
    with guest.attach() as seen, fresh(guest, seen, "mappings") as new:
        chosen = {**named(seen, "threads", "titles", "from-memory", "files"), new.pid: "mappings"}
        assert len(chosen) >= 4
        memories = {pid: seen.process_contents(pid) for pid in chosen}
        wanted = {
            pid: [region for region in memory.regions() if region.size <= LARGEST and not device(region)]
            for pid, memory in memories.items()
        }
        kinds: Counter[int] = Counter()
        found = {}
        for pid, regions in wanted.items():
            for region in regions:
                content = memories[pid].content(region.start, region.size)
                assert content.whole, region
                assert list(content.gaps()) == []
                found[pid, region.start] = hashlib.sha256(content.data).hexdigest()
                kinds.update(content.state.tolist())
        assert found == sums_inside(guest, wanted)
        assert set(kinds) == {State.PRESENT, State.CACHED, State.UNTOUCHED}


def device(region: Region) -> bool:
    """What the guest cannot read through /proc/PID/mem either; newer ones do not read what the process may not."""
    return (region.rest == State.UNREADABLE and region.path != "[vdso]") or not region.permissions.startswith("r")


def test_as_many_pages_are_present_as_the_guest_counts(guest: LabGuest) -> None:
    with guest.attach() as seen, fresh(guest, seen, "mappings") as memory:
        found = {
            region.start: 4 * sum(int((held.state == State.PRESENT).sum()) for held in pages)
            for region, pages in memory.held()
            if not device(region) and region.path != "[vdso]"
        }
        told = re.findall(
            r"^([0-9a-f]+)-[0-9a-f]+ .*?^Rss: +(\d+) kB", guest.ask(f"cat /proc/{memory.pid}/smaps"), re.M | re.S
        )
        inside = {int(start, 16): int(resident) for start, resident in told}
        assert len(found) > 10
        assert found == {start: inside[start] for start in found}
        # Pages that are read and never written are the one page of zeros, which the guest does not count either.
        many = next(region for region in memory.regions() if region.size == 1 << 20)
        sums_inside(guest, {memory.pid: [many]})
        assert int((memory.content(many.start, many.size).state == State.UNTOUCHED).sum()) == 128


def test_reading_a_process(guest: LabGuest) -> None:
    with guest.attach() as seen, fresh(guest, seen, "mappings") as memory:
        assert memory.name == "mappings"
        regions = memory.regions()
        assert memory.read(regions[0].start, 4) == b"\x7fELF"
        many = next(region for region in regions if region.size == 1 << 20)
        assert memory.read(many.start + 1, many.size - 1) == b"\1" * ((1 << 19) - 1) + bytes(1 << 19)
        with pytest.raises(PageFault):
            memory.read(0, 8)
        with pytest.raises(NotInMemory):
            memory.read(next(region for region in regions if region.path == "[vvar]").start, 1 << 14)
        hole = next(region for region in regions if region.size == 1 << 40)
        assert memory.read(hole.start + (1 << 39), 10) == bytes(10)
        assert sum(len(part.data) for part in memory.parts([hole])) == 0
        everything = seen.content(regions[0].start - 4096, 8192, pid=memory.pid)
        assert [(low, high) for low, high, _ in everything.gaps()] == [(regions[0].start - 4096, regions[0].start)]
        for wrong in (2, 4_000_000):
            with pytest.raises(NoProcess):
                seen.process_contents(wrong)


def test_swapped_pages_are_told_apart(lab_fresh: Callable[..., LabGuest]) -> None:
    """Anonymous pages and a tmpfs file pushed out to swap, and counted as the guest does."""
    lab_guest = lab_fresh(memory=512, workload="none")  # swap lies in its memory, too
    setup = """
        dd if=/dev/zero of=swap bs=1M count=48 2>/dev/null; losetup /dev/loop6 "$PWD/swap"
        mkswap /dev/loop6 >/dev/null; swapon /dev/loop6
        mkdir -p /sys/fs/cgroup/swapped; echo +memory >/sys/fs/cgroup/cgroup.subtree_control
        cat >holder <<'END'
echo $$ >/sys/fs/cgroup/swapped/cgroup.procs
held=$(dd if=/dev/urandom bs=1M count=3 2>/dev/null | od -An -tx1)
dd if=/dev/urandom of=shmem bs=4096 count=200 2>/dev/null
echo $$ >pid
exec 0<>fifo; read forever
END
        mkfifo fifo; setsid sh holder >/dev/null 2>&1 & n=0
        while [ ! -s pid ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n+1)); done
        sha256sum shmem >sum; echo 12M >/sys/fs/cgroup/swapped/memory.reclaim 2>/dev/null; true"""
    cleanup = """kill -9 $(cat pid); sleep 0.5; swapoff /dev/loop6; losetup -d /dev/loop6;
        echo -memory >/sys/fs/cgroup/cgroup.subtree_control; rmdir /sys/fs/cgroup/swapped"""
    with folder(lab_guest, setup, cleanup), lab_guest.attach() as seen:
        pid = int(lab_guest.ask(f"cat '{FOLDER}/pid'"))
        told = int(re.search(r"VmSwap:\s+(\d+) kB", lab_guest.ask(f"cat /proc/{pid}/status"))[1])  # type: ignore[index]
        memory = seen.process_contents(pid)
        counts: Counter[int] = Counter()
        swapped: list[int] = []
        for _, pages in memory.held():
            for held in pages:
                counts.update(held.state.tolist())
                swapped += held.va[held.state == State.SWAPPED].tolist()
        assert told > 1000
        assert 4 * counts[State.SWAPPED] == told
        with pytest.raises(NotInMemory, match="swap"):
            memory.read(swapped[0], 1)
        content = seen.file_content(f"{FOLDER}/shmem")
        lost = sum(end - start for start, end in content.missing())
        assert lost
        assert lost + 4096 * len(content.pages) == content.size == 200 * 4096
        sum_inside = lab_guest.ask(f"cat '{FOLDER}/sum'; sha256sum '{FOLDER}/shmem'").split()
        assert sum_inside[0] == sum_inside[2], "the guest reads its file back from swap"
        again = seen.file_content(f"{FOLDER}/shmem")
        assert again.missing() == []
        assert hashlib.sha256(again.read()).hexdigest() == sum_inside[0]


# -- files --------------------------------------------------------------------------------------------------------

MAKE = """
dd if=/dev/urandom of=big bs=65536 count=48 2>/dev/null; printf abc >abc; : >empty; truncate -s 1000000 sparse
dd if=/dev/urandom of=holes bs=4096 count=1 seek=700 2>/dev/null; echo x >'with a blank'; chmod 4751 abc; chown 7:8 abc
touch -d '2001-02-03 04:05:06' abc; ln abc hard; ln -s abc soft; ln -s ../abc folder-soft; mkdir sub; ln -s .. sub/up
ln -s "/$(head -c 3000 /dev/zero | tr '\\0' t)" long; mkdir huge; mount -t tmpfs -o huge=always tmpfs huge
dd if=/dev/urandom of=huge/h bs=1M count=5 2>/dev/null; sync
"""


def test_what_files_hold(guest: LabGuest) -> None:
    with folder(guest, MAKE, "umount huge"), guest.attach() as seen:
        told = guest.ask(
            f"cd '{FOLDER}'; sha256sum \"$PWD\"/* huge/h /bin/busybox /bin/workload /modules/*.ko 2>/dev/null; true"
        )
        sums = dict(reversed(line.split("  ", 1)) for line in told.splitlines())
        sums[f"{FOLDER}/huge/h"] = sums.pop("huge/h")
        assert len(sums) > 25
        for path, told_sum in sums.items():
            content = seen.file_content(path)
            assert content.missing() == []
            assert content.fault == ""
            assert hashlib.sha256(content.read()).hexdigest() == told_sum, path
            pieces = b"".join(chunk.data.tobytes() for chunk in content.chunks(8192))
            assert len(pieces) == len(content.pages) * 4096 - (-content.size % 4096 if len(content.pages) else 0), path
        assert seen.file_content(f"{FOLDER}/sub/up/soft").read() == b"abc"
        assert len(seen.file_content(f"{FOLDER}/sparse").pages) == 0
        with pytest.raises(NoFile, match="no file"):
            seen.file_content(f"{FOLDER}/nothing")
        with pytest.raises(NoFile, match="no regular file"):
            seen.file_content(FOLDER)


def test_every_file_as_the_guest_lists_it(guest: LabGuest) -> None:
    script = f"""cd '{FOLDER}'; find / /tmp /run -xdev ! -path '/proc*' ! -path '/sys*' ! -path '/dev/*' >all
        while read -r each; do stat -c '%n|%i|%s|%f|%u|%g|%Y|%d' "$each"; done <all
        echo =; find / /tmp /run -xdev -type l | while read -r each; do echo "$each|$(readlink "$each")"; done"""
    with folder(guest, MAKE, "umount huge"), guest.attach() as seen:
        listed, _, links = guest.ask(script, timeout=120).partition("=\n")
        table = seen.cached_files()
        assert table.notes == ()
        assert set(table.fault.tolist()) == {""}
        by_path = {(row.path, row.device, row.inode): row for row in table}
        wrong, compared = [], 0
        for line in listed.splitlines():
            name, *told = line.rsplit("|", 7)
            if name.endswith("/all") or len(told) != 7:  # what is gone by now
                continue
            inode, size, mode, uid, gid, mtime, device = told
            row = by_path.get((name, f"{int(device) >> 8}:{int(device) & 255}", int(inode)))
            compared += 1
            if row is None:
                wrong.append((line, None))
                continue
            access = (int(uid), int(gid), f"{int(mode, 16) & 0o7777:04o}")
            if (row.uid, row.gid, row.mode) != access or (row.mtime != int(mtime) and row.type == "reg"):
                wrong.append((line, row))
            if row.type != "dir" and row.size != int(size):
                wrong.append((line, row))
        assert wrong == []
        assert compared > 300
        targets = {row.path: row.target for row in table if row.type == "lnk"}
        told_links = dict(line.split("|", 1) for line in links.splitlines())
        assert {path: targets.get(path) for path in told_links} == told_links
        gone = table.where(table.path == "/tmp/gone (deleted)")
        assert gone.deleted.tolist() == [True]
        assert seen.file_content("/tmp/gone").read() == b"gone"
        assert set(table.mount[table.path == f"{FOLDER}/huge/h"].tolist()) == {f"{FOLDER}/huge"}
        assert bool(table.bare.any())
        assert not table.bare[table.path == "/bin/busybox"].any()


def test_files_of_a_disk(guest: LabGuest) -> None:
    """Pages that only the disk has are missing, and dirty ones are counted."""
    setup = """
        dd if=/dev/zero of=image bs=1M count=16 2>/dev/null; losetup /dev/loop5 "$PWD/image"
        mke2fs /dev/loop5 >/dev/null
        mkdir disk; mount -t ext4 /dev/loop5 disk; dd if=/dev/urandom of=disk/file bs=4096 count=900 2>/dev/null
        sync; echo 3 >/proc/sys/vm/drop_caches; dd if=disk/file of=part bs=4096 skip=300 count=20 2>/dev/null"""
    with folder(guest, setup, "umount disk; losetup -d /dev/loop5"), guest.attach() as seen:
        content = seen.file_content(f"{FOLDER}/disk/file")
        assert content.size == 900 * 4096
        missing = content.missing()
        assert missing
        assert {300, 319} <= set(content.pages.tolist())
        assert sum(end - start for start, end in missing) + 4096 * len(content.pages) == content.size
        known = content.read()
        part = guest.ask(f"sha256sum '{FOLDER}/part'").split()[0]
        assert hashlib.sha256(known[300 * 4096 : 320 * 4096]).hexdigest() == part
        assert all(not any(known[start:end]) for start, end in missing)
        whole = guest.ask(f"sha256sum '{FOLDER}/disk/file'").split()[0]
        again = seen.file_content(f"{FOLDER}/disk/file")
        assert again.missing() == []
        assert hashlib.sha256(again.read()).hexdigest() == whole

        guest.ask(f"dd if=/dev/urandom of='{FOLDER}/disk/new' bs=4096 count=17 2>/dev/null")
        row = file_row(seen, f"{FOLDER}/disk/new")
        assert (row.dirty, row.pages, row.cached, row.filesystem) == (17, 17, 1.0, "ext4")
        guest.ask("sync")
        assert file_row(seen, f"{FOLDER}/disk/new").dirty == 0


def file_row(seen: vmi_inside.Guest, path: str) -> tuple:
    table = seen.cached_files()
    found = table.where(np.flatnonzero(table.path == path))
    assert len(found) == 1
    return found[0]


def test_one_of_several_files_of_a_path(lab_guest: LabGuest) -> None:
    setup = "echo below >file; mkdir over; echo under >over/file; mount -t tmpfs tmpfs over; echo above >over/file"
    with folder(lab_guest, setup, "umount over"), lab_guest.attach() as seen:
        path = f"{FOLDER}/over/file"
        with pytest.raises(NoFile, match="2 files have the path"):
            seen.file_content(path)
        table = seen.cached_files(["path", "device", "inode"])
        contents = {
            seen.file_content(path, device=row.device, inode=row.inode).read() for row in table if row.path == path
        }
        assert contents == {b"under\n", b"above\n"}


def test_a_process_that_ended(lab_guest: LabGuest) -> None:
    with lab_guest.attach() as seen:
        pid = int(lab_guest.ask("setsid sleep 1000 >/dev/null 2>&1 & echo $!"))
        memory: ProcessContents = seen.process_contents(pid)
        assert memory.regions()
        lab_guest.ask(f"kill -9 {pid}; sleep 0.2")
        with pytest.raises(NoProcess):
            memory.regions()
