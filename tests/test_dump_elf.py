"""ELF cores and LiME: what is written is what is read, and headers that lie do no harm."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmi_inside.drivers.dump import open_dump
from vmi_inside.drivers.dumpfile import Dump
from vmi_inside.errors import BadDump, Unsupported, VmiError
from vmi_inside.memory import Run

NOWHERE = (1 << 64) - 1


class Load(NamedTuple):
    paddr: int
    data: bytes
    vaddr: int = 0
    filesz: int | None = None
    offset: int | None = None


def note(name: bytes, kind: int, data: bytes) -> bytes:
    padded = name + b"\0" * (1 + -(len(name) + 1) % 4)
    return struct.pack("<III", len(name) + 1, len(data), kind) + padded + data + bytes(-len(data) % 4)


def elf(loads: list[Load], notes: bytes = b"", *, bits: int = 64, kind: int = 4, many: bool = False) -> bytes:
    """An ELF core; with `many` the number of headers is in section 0, as with more than 65,534 of them."""
    wide = bits == 64
    header_size, entry, section = (64, 56, 64) if wide else (52, 32, 40)
    count = len(loads) + 1
    table = header_size + (section if many else 0)
    at = table + count * entry

    def program(kind: int, offset: int, vaddr: int, paddr: int, size: int) -> bytes:
        if wide:
            return struct.pack("<IIQQQQQQ", kind, 0, offset, vaddr, paddr, size, size, 0)
        return struct.pack("<IIIIIIII", kind, offset, vaddr, paddr & 0xFFFFFFFF, size, size, 0, 0)

    headers = program(4, at, 0, 0, len(notes))
    body = notes
    for load in loads:
        offset = at + len(body) if load.offset is None else load.offset
        headers += program(1, offset, load.vaddr, load.paddr, len(load.data) if load.filesz is None else load.filesz)
        body += load.data
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    layout = "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH"
    phnum = 0xFFFF if many else count
    head = struct.pack(layout, kind, 62, 1, 0, table, header_size if many else 0, 0, header_size, entry, phnum, 0, 0, 0)
    extra = b""
    if many:
        extra = bytearray(section)
        struct.pack_into("<I", extra, 44 if wide else 28, count)
    return ident + head + bytes(extra) + headers + body


def lime(*ranges: tuple[int, bytes]) -> bytes:
    return b"".join(
        struct.pack("<IIQQ8x", 0x4C694D45, 1, start, start + len(data) - 1) + data for start, data in ranges
    )


def page(fill: int, count: int = 1) -> bytes:
    return bytes([fill]) * (4096 * count)


def load(tmp_path: Path, content: bytes, *, partial: bool = False) -> Dump:
    path = tmp_path / "dump"
    path.write_bytes(content)
    return open_dump(path, partial=partial)


def at(memory: Dump, pa: int, size: int = 4096) -> bytes | None:
    found = memory.read(pa, size)
    return None if found is None else bytes(found)


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("many", [False, True])
def test_elf(tmp_path: Path, bits: int, many: bool) -> None:
    loads = [Load(0x100000, page(1, 2)), Load(0, page(2)), Load(0x5000, b""), Load(NOWHERE, page(9))]
    memory = load(tmp_path, elf(loads, bits=bits, many=many))
    assert memory.runs == (Run(0, 0x1000), Run(0x100000, 0x2000))
    assert at(memory, 0) == page(2)
    assert at(memory, 0x100800) == page(1)
    assert at(memory, 0x1000) is None
    out = np.empty((3, 4), np.uint8)
    assert memory.gather(np.array([0xFFC, 0x101FFC, 0x5000], np.uint64), out).tolist() == [True, True, False]
    assert out.tolist() == [[2] * 4, [1] * 4, [0] * 4]


def test_elf_runs_need_no_page_bounds(tmp_path: Path) -> None:
    """A vmcore's first run ends where the BIOS's data begins, and another may follow at once."""
    memory = load(tmp_path, elf([Load(0x1000, b"a" * 0x80C), Load(0x180C, b"b" * 0x100)]))
    assert memory.runs[0].start == 0x1000
    assert sum(run.size for run in memory.runs) == 0x90C
    assert at(memory, 0x1808, 8) == b"aaaabbbb"


def test_elf_overlaps(tmp_path: Path) -> None:
    """QEMU's paging=on: many mappings of the same memory, at the same offset; a vmcore: the kernel's text twice."""
    base = elf([Load(0, b"")] * 4)
    offset = len(base)
    loads = [
        Load(0x2000, page(3, 4), 0xFFFF800000002000),
        Load(0x3000, b"", 0x400000, filesz=0x1000, offset=offset + 0x1000),
        Load(0x5000, b"", 0x500000, filesz=0x3000, offset=offset + 0x3000),
        Load(0x1000, page(4, 3), 0xFFFFFFFF81001000),
    ]
    memory = load(tmp_path, elf(loads))
    assert [(run.start, run.end) for run in memory.runs] == [(0x1000, 0x2000), (0x2000, 0x8000)]
    assert at(memory, 0x1000) == page(4)
    assert at(memory, 0x2000, 0x4000) == page(3, 4)
    assert at(memory, 0x6000) == page(4)


def test_elf_notes(tmp_path: Path) -> None:
    words = list(range(100, 100 + 18 + 50 + 5))
    state = struct.pack("<II18Q", 1, 440, *words[:18])
    for segment in range(10):
        state += struct.pack("<IIIIQ", segment, 0, 0, 0, 0x1000 + segment)
    state += struct.pack("<6Q", 0x80050033, 1, 2, 0x7610000, 4, 0xDEAD)
    status = bytes(112) + struct.pack("<27Q", *range(27)) + bytes(8)
    info = b"OSRELEASE=6.1.0\nPAGESIZE=4096\n"
    notes = note(b"CORE", 1, status) + note(b"QEMU", 0, state) + note(b"VMCOREINFO", 0, info)
    memory = load(tmp_path, elf([Load(0, page(1))], notes))
    assert memory.notes.vmcoreinfo == info.decode()
    kinds = [(found.name, found.type, len(found.data)) for found in memory.notes.all]
    assert kinds == [("CORE", 1, 336), ("QEMU", 0, 440), ("VMCOREINFO", 0, 30)]
    (registers,) = memory.notes.registers
    assert registers["cr3"] == 0x7610000
    assert (registers["rax"], registers["rip"], registers["rflags"]) == (100, 116, 117)
    assert (registers["cs"], registers["cs_base"]) == (0, 0x1000)
    assert (registers["gs_base"], registers["idt_base"]) == (0x1004, 0x1009)
    assert (registers["cr0"], registers["cr4"], registers["kernel_gs_base"]) == (0x80050033, 4, 0xDEAD)

    memory = load(tmp_path, elf([Load(0, page(1))], note(b"CORE", 1, status)))  # a vmcore has no QEMU notes
    (registers,) = memory.notes.registers
    assert (registers["rip"], registers["rsp"], registers["gs_base"]) == (16, 19, 22)


def test_elf_damaged_notes_cost_only_notes(tmp_path: Path) -> None:
    notes = note(b"VMCOREINFO", 0, b"OSRELEASE=6.1.0\n") + struct.pack("<III", 4, 1 << 31, 1) + b"XXXX"
    memory = load(tmp_path, elf([Load(0, page(1))], notes))
    assert memory.notes.vmcoreinfo == "OSRELEASE=6.1.0\n"
    assert any("notes" in notice for notice in memory.notices)
    assert at(memory, 0) == page(1)


def test_elf_truncated(tmp_path: Path) -> None:
    content = elf([Load(0, page(1)), Load(0x100000, page(2, 3))])
    with pytest.raises(BadDump, match=r"truncated: 0x1800 bytes.*0x101800-0x102fff.*partial"):
        load(tmp_path, content[:-0x1800])
    memory = load(tmp_path, content[:-0x1800], partial=True)
    assert memory.runs == (Run(0, 0x1000), Run(0x100000, 0x1800))
    assert "truncated" in memory.notices[0]
    for size in (5, 40, 100):  # the identity, the header, the program headers
        with pytest.raises(BadDump, match="truncated"):
            load(tmp_path, content[:size], partial=True)


@pytest.mark.parametrize(
    ("lie", "partial_runs"),
    [
        (Load(0x100000, b"", filesz=1 << 63), None),
        (Load(0x100000, b"", filesz=(1 << 64) - 1, offset=(1 << 64) - 1), None),
        (Load(0x100000, b"", filesz=0x1000, offset=1 << 62), None),
        (Load((1 << 64) - 4096, page(2)), "left out"),
        (Load(1 << 63, page(2)), "left out"),
    ],
)
def test_elf_lies(tmp_path: Path, lie: Load, partial_runs: str | None) -> None:
    content = elf([Load(0, page(1)), lie])
    if partial_runs is None and lie.paddr + (lie.filesz or 0) <= 1 << 56:
        with pytest.raises(BadDump, match="truncated"):
            load(tmp_path, content)
    memory = load(tmp_path, content, partial=True)
    assert memory.runs == (Run(0, 0x1000),)
    assert memory.notices
    assert at(memory, 0) == page(1)


def test_elf_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(BadDump, match="program"):
        load(tmp_path, elf([Load(0, page(1))], kind=2))
    with pytest.raises(BadDump, match="process"):
        load(tmp_path, elf([Load(0, page(1), 0x400000), Load(0, page(2), 0x600000)]))
    with pytest.raises(BadDump, match="no guest memory"):
        load(tmp_path, elf([]))
    content = bytearray(elf([Load(0, page(1))]))
    content[5] = 2
    with pytest.raises(Unsupported, match="big-endian"):
        load(tmp_path, bytes(content))
    content = bytearray(elf([Load(0, page(1))], many=True))
    struct.pack_into("<I", content, 64 + 44, 0xFFFFFFFF)
    with pytest.raises(BadDump, match="4294967295 program headers"):
        load(tmp_path, bytes(content))


def test_lime(tmp_path: Path) -> None:
    memory = load(tmp_path, lime((0x1000, b"a" * 0x9D800), (0x100000, page(2, 2)), (1 << 32, page(3))))
    assert memory.runs == (Run(0x1000, 0x9D800), Run(0x100000, 0x2000), Run(1 << 32, 0x1000))
    assert at(memory, 0x1000, 0x9D800) == b"a" * 0x9D800
    assert at(memory, 0x101000) == page(2)
    assert at(memory, 1 << 32) == page(3)
    assert memory.notes.all == ()


def test_lime_damaged(tmp_path: Path) -> None:
    content = lime((0x1000, page(1)), (0x100000, page(2)))
    with pytest.raises(BadDump, match=r"truncated: 0x10 bytes.*0x100ff0-0x100fff"):
        load(tmp_path, content[:-16])
    assert load(tmp_path, content[:-16], partial=True).runs[1] == Run(0x100000, 0xFF0)
    for bad in (content + b"EMiL", content[:4128] + b"x" + content[4129:]):
        with pytest.raises(BadDump, match="no LiME header"):
            load(tmp_path, bad)
        memory = load(tmp_path, bad, partial=True)
        assert memory.runs[0] == Run(0x1000, 0x1000)
        assert "no LiME header" in memory.notices[0]


GOOD = {
    "elf": elf(
        [Load(0x2000, page(1, 2)), Load(0, page(2)), Load(0x3000, page(3, 2))], note(b"VMCOREINFO", 0, b"x" * 9)
    ),
    "elf32": elf([Load(0x2000, page(1, 2)), Load(0, page(2))], note(b"CORE", 1, b"x" * 9), bits=32),
    "many": elf([Load(0x2000, page(1, 2)), Load(0, page(2))], many=True),
    "lime": lime((0, page(1)), (0x1000, page(2)), (0x4000, page(3))),
}


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(GOOD)),
    flips=st.lists(st.tuples(st.integers(4, 420), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 16384),
    partial=st.booleans(),
)
def test_damaged_headers(tmp_path: Path, kind: str, flips: list[tuple[int, int]], cut: int, partial: bool) -> None:
    content = bytearray(GOOD[kind])
    for offset, value in flips:
        content[offset] = value
    try:
        memory = load(tmp_path, bytes(content[: len(content) - cut]) or b"\0", partial=partial)
    except VmiError:
        return
    pa = np.array([run.start for run in memory.runs] + [run.end - 1 for run in memory.runs], np.uint64)
    assert memory.gather(pa, np.empty((len(pa), 1), np.uint8)).all()
    assert sum(run.size for run in memory.runs) <= 16 * len(content)
    assert all(a.end <= b.start for a, b in pairwise(memory.runs))
    memory.notes.registers, memory.notes.vmcoreinfo  # noqa: B018 - must not raise
    memory.close()
