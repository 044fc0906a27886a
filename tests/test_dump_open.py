"""Opening a path: the format is told by the content, and what is no dump is named for what it is."""

from __future__ import annotations

import os
import socket
import stat
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from vmi_inside.drivers.dump import open_dump, splits
from vmi_inside.drivers.dumpfile import disjoint
from vmi_inside.errors import BadDump, NoSuchDomain, PermissionDenied
from vmi_inside.memory import PhysicalMemory, Run

MIB = 1 << 20
GIB = 1 << 30


def put(path: Path, content: bytes, size: int | None = None) -> Path:
    path.write_bytes(content)
    if size is not None:
        os.truncate(path, size)
    return path


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(NoSuchDomain, match="no such file"):
        open_dump(tmp_path / "none")
    with pytest.raises(BadDump):
        open_dump(f"{tmp_path}/with a\0nul")


def test_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "dump", bytes(MIB))

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # root may read everything, so a mode of 0 would prove nothing
    with pytest.raises(PermissionDenied, match="sudo"):
        open_dump(path)


def test_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "fifo", tmp_path / "socket", Path("/dev/zero")):
            assert not stat.S_ISREG(path.stat().st_mode)
            with pytest.raises(BadDump, match="device, pipe or socket"):
                open_dump(path)
    with pytest.raises(BadDump, match="directory"):
        open_dump(tmp_path)


def test_empty(tmp_path: Path) -> None:
    with pytest.raises(BadDump, match="empty"):
        open_dump(put(tmp_path / "dump", b""))


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"QFI\xfb\0\0\0\3", "disk image"),
        (bytes(512) + b"EFI PART", "disk image"),
        (b"PAGEDU64", "Windows crash dump"),
        (b"LibvirtQemudSave", "virsh dump --memory-only"),
        (b"QEVM\0\0\0\3", "migration stream.*virsh dump --memory-only"),
        (b"\x28\xb5\x2f\xfd", "zstd -d .*dump"),
        (b"\x1f\x8b\x08\0", "gunzip .*dump"),
        (b"\xfd7zXZ\0", "unxz .*dump"),
        (b"a line of a text file\n" * 50_000, "no memory dump"),
        (b"0123456789abcde\n" * (MIB // 16), "text"),
    ],
)
def test_strangers(tmp_path: Path, start: bytes, says: str) -> None:
    path = put(tmp_path / "dump", start, None if len(start) >= MIB else 4 * MIB if start[:1] != b"a" else None)
    with pytest.raises(BadDump, match=says):
        open_dump(path)


@pytest.mark.parametrize("size", [1, 4096, MIB - 4096, MIB + 1])
def test_raw_of_no_size_that_memory_has(tmp_path: Path, size: int) -> None:
    with pytest.raises(BadDump, match="multiple of 4096"):
        open_dump(put(tmp_path / "dump", b"\1", size))


def test_raw_padded(tmp_path: Path) -> None:
    content = np.random.default_rng(1).integers(0, 256, 2 * MIB, np.uint8).tobytes()
    memory = open_dump(put(tmp_path / "dump", content))
    assert isinstance(memory, PhysicalMemory)
    assert memory.runs == (Run(0, 2 * MIB),)
    assert bytes(memory.read(0x1234, 0x4321) or b"") == content[0x1234 : 0x1234 + 0x4321]
    assert memory.read(2 * MIB - 1, 2) is None
    out = np.empty((3, 8), np.uint8)
    ok = memory.gather(np.array([0x1000, 2 * MIB - 8, 2 * MIB], np.uint64), out)
    assert ok.tolist() == [True, True, False]
    assert [row.tobytes() for row in out] == [content[0x1000:0x1008], content[-8:], bytes(8)]
    memory.close()


def test_raw_joined(tmp_path: Path) -> None:
    """A copy of a q35's memory-backend-file: what lies behind 2 GiB belongs at 4 GiB."""
    path = put(tmp_path / "dump", b"low", 4 * GIB)
    with path.open("r+b") as file:
        file.seek(2 * GIB)
        file.write(b"high")
    assert splits(path) == (None, 2 * GIB, 3 * GIB)
    memory = open_dump(path, raw_split=2 * GIB)
    assert memory.runs == (Run(0, 2 * GIB), Run(4 * GIB, 2 * GIB))
    assert bytes(memory.read(4 * GIB, 4) or b"") == b"high"
    assert memory.read(2 * GIB, 4) is None
    for bad in (0, -4096, 5 * GIB, 100):
        with pytest.raises(BadDump, match="split"):
            open_dump(path, raw_split=bad)


def test_small_raw_has_one_layout(tmp_path: Path) -> None:
    path = put(tmp_path / "dump", b"\1", 256 * MIB)
    assert splits(path) == (None,)


def test_content_does_not_decide_when_told(tmp_path: Path) -> None:
    """The guest can write the first bytes of its RAM."""
    path = put(tmp_path / "dump", b"\x7fELF", MIB)
    with pytest.raises(BadDump):
        open_dump(path)
    assert open_dump(path, file_format="raw").runs == (Run(0, MIB),)
    assert splits(path, file_format="raw") == (None,)
    with pytest.raises(BadDump, match="elf, lime, kdump, raw"):
        open_dump(path, file_format="vmware")


def test_disjoint_against_painting() -> None:
    """Random overlapping ranges, against the obvious: paint bytes, last to first."""
    rng = np.random.default_rng(7)
    for _ in range(300):
        ranges = np.stack(
            (rng.integers(0, 60, 8), rng.integers(1, 25, 8), rng.integers(0, 4, 8) * 1000), axis=1
        ).astype(np.int64)
        ranges[:, 2] += ranges[:, 0]
        painted: dict[int, int] = {}
        for start, size, offset in ranges[::-1].tolist():
            painted |= {start + i: offset + i for i in range(size)}
        found = disjoint(ranges).tolist()
        assert {start + i: offset + i for start, size, offset in found for i in range(size)} == painted
        assert sum(size for _, size, _ in found) == len(painted)
        for (start, size, offset), (after, _, source) in pairwise(found):
            assert start + size < after or (start + size == after and offset + size != source)  # in order, joined
