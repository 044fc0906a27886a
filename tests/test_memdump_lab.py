"""Cores of processes, taken apart as debuggers do, and held against what the guest says of them."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vmi_inside
from tests.lab.guest import LabGuest
from vmi_inside.drivers.notes import Notes
from vmi_inside.linux.contents.core_dump import Core, write_core


@pytest.fixture(params=["6.1-cloud", "new-cloud", "5.10-cloud"])
def guest(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> LabGuest:
    return lab_boot() if request.param == "6.1-cloud" else lab_boot(kernel=request.param)


class Parsed:
    """A core by ELF's own layout: its loads (address, offset, size in the file, size in memory, flags) and notes."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        assert raw[:7] == b"\x7fELF\x02\x01\x01"
        kind, machine, _, _, table, _, _, _, size, count, *_ = struct.unpack_from("<HHIQQQIHHHHHH", raw, 16)
        assert (kind, machine, size) == (4, 62, 56)
        headers = [struct.unpack_from("<IIQQQQQQ", raw, table + 56 * row) for row in range(count)]
        self.loads = [(each[3], each[2], each[5], each[6], each[1]) for each in headers if each[0] == 1]
        (note,) = [each for each in headers if each[0] == 4]
        self.notes = Notes.parse(raw[note[2] : note[2] + note[5]])
        assert not self.notes.damaged
        assert all(each.name == "CORE" for each in self.notes.all)

    def of(self, kind: int) -> list[bytes]:
        return [note.data for note in self.notes.all if note.type == kind]

    def read(self, address: int, size: int) -> bytes | None:
        for start, offset, there, _, _ in self.loads:
            if start <= address and address + size <= start + there:
                return self.raw[offset + address - start : offset + address - start + size]
        return None


def dump(seen: vmi_inside.Guest, pid: int, **options: object) -> tuple[Parsed, Core]:
    file = io.BytesIO()
    core = write_core(seen.kernel, seen.process_contents(pid), file, **options)  # type: ignore[arg-type]
    raw = file.getvalue()
    assert len(raw) == core.size
    return Parsed(raw), core


def pid_of(seen: vmi_inside.Guest, name: str) -> int:
    table = seen.processes(["pid", "name"])
    return next(row.pid for row in table if row.name == name)


def test_threads_and_their_registers(guest: LabGuest) -> None:
    with guest.attach() as seen:
        pid = pid_of(seen, "threads")
        parsed, core = dump(seen, pid)
        assert core.warnings == ()
        told = {
            int(line.split()[0]): line.split()[1:]
            for line in guest.ask(
                f"for t in /proc/{pid}/task/*; do echo ${{t##*/}} $(cat $t/syscall); done"
            ).splitlines()
        }
        assert len(told) > 10
        found = {}
        for data in parsed.of(1):
            assert len(data) == 336
            thread, parent, group, session = struct.unpack_from("<4i", data, 32)
            registers = struct.unpack_from("<27Q", data, 112)
            found[thread] = registers
            assert parent == int(guest.ask(f"awk '/^PPid/ {{print $2}}' /proc/{pid}/status"))
            stat = guest.ask(f"cat /proc/{pid}/stat").rpartition(")")[2].split()
            assert (group, session) == (int(stat[2]), int(stat[3]))
        assert next(iter(found)) == pid, "debuggers take the first thread for the one to look at"
        for thread, words in told.items():
            r = found[thread]
            # r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp ss fs_base
            arguments = (r[14], r[13], r[12], r[7], r[9], r[8])
            mine = [str(r[15]), *(f"{each:#x}" for each in (*arguments, r[19], r[16]))]
            assert mine == words, thread
            assert (r[17], r[20]) == (0x33, 0x2B)
            assert parsed.read(r[21], 8) is not None, "fs_base is thread-local storage"


def test_what_the_process_is(guest: LabGuest) -> None:
    with guest.attach() as seen:
        pid = pid_of(seen, "titles") if "titles" in seen.processes(["name"]).name else pid_of(seen, "mappings")
        parsed, core = dump(seen, pid)
        (info,) = parsed.of(3)
        assert len(info) == 136
        uid, gid, number = struct.unpack_from("<2Ii", info, 16)
        assert (uid, gid, number) == (0, 0, pid)
        assert info[40:56].rstrip(b"\0").decode() == guest.ask(f"cat /proc/{pid}/comm").rstrip("\n")
        (auxv,) = parsed.of(6)
        told = guest.ask(f"od -An -v -tx1 /proc/{pid}/auxv").split()
        assert bytes.fromhex("".join(told)).startswith(auxv)
        assert auxv.endswith(bytes(16))
        (files,) = parsed.of(0x46494C45)
        count, unit = struct.unpack_from("<2Q", files)
        assert unit == 4096
        names = files[16 + 24 * count :].decode().split("\0")[:-1]
        ranges = [struct.unpack_from("<3Q", files, 16 + 24 * row) for row in range(count)]
        maps = [line.split(None, 5) for line in guest.ask(f"cat /proc/{pid}/maps").splitlines()]
        mapped = [each for each in maps if int(each[4])]
        assert names == [each[5] for each in mapped]
        assert [f"{start:08x}-{end:08x} {page * 4096:08x}" for start, end, page in ranges] == [
            f"{each[0]} {each[2]}" for each in mapped
        ]
        assert core.regions == len([each for each in maps if each[-1] != "[vsyscall]"])


def test_memory(guest: LabGuest) -> None:
    with guest.attach() as seen:
        pid = pid_of(seen, "mappings")
        parsed, core = dump(seen, pid)
        assert not core.missing
        regions = seen.process_contents(pid).regions()
        flags = {start: flag for start, _, _, _, flag in parsed.loads}
        told: list[tuple[int, int]] = []
        for region in regions:
            assert sum(m for at, _, _, m, _ in parsed.loads if region.start <= at < region.end) == region.size
            assert flags[region.start] == sum(
                bit for bit, letter in ((4, "r"), (2, "w"), (1, "x")) if letter in region.permissions
            )
            if region.size <= 8 << 20 and "r" in region.permissions and "[vv" not in region.path:
                told.append((region.start, region.size))
        lines = [
            f"dd if=/proc/{pid}/mem bs=4096 skip={at >> 12} count={n >> 12} 2>/dev/null | md5sum" for at, n in told
        ]
        import hashlib

        sums = [line.split()[0] for line in guest.ask("\n".join(lines), timeout=120).splitlines()]
        mine = [hashlib.md5(parsed.read(at, size) or b"").hexdigest() for at, size in told]
        assert len(mine) > 8
        assert mine == sums
        assert len(parsed.raw) < 16 << 20, "a region of 1 TiB that nobody touched takes nothing"

        some, _ = dump(seen, pid, kinds={"stack"})
        filled = [at for at, _, there, _, _ in some.loads if there]
        stack = next(region for region in regions if region.path == "[stack]")
        assert filled
        assert all(stack.start <= at < stack.end for at in filled)


def test_the_command(lab_guest: LabGuest, tmp_path: Path) -> None:
    with lab_guest.attach() as seen:
        pid = pid_of(seen, "mappings")
    path = tmp_path / "a.core"

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vmi_inside.cli", "memdump", lab_guest.target, str(pid)]
        connect = ["-c", lab_guest.uri] if lab_guest.uri else []
        return subprocess.run([*command, *connect, "-O", str(path), *more], capture_output=True, text=True, check=False)

    done = run()
    assert (done.returncode, done.stdout) == (0, "")
    assert "1 thread, " in done.stderr
    Parsed(path.read_bytes())
    before = path.read_bytes()
    again = run("--regions", "heap")
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert path.read_bytes() == before
    assert run("--regions", "heap", "--force").returncode == 0
    assert len(path.read_bytes()) < len(before)
    assert run("--regions", "nonsense", "--force").returncode == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.core"]
