"""The unwind tables of made-up guests in DWARF's form, as pyelftools reads them; and what lies about addresses."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.dwarf.callframe import FDE, CallFrameInfo
from elftools.dwarf.structs import DWARFStructs

from tests.synthetic.stacks import FRAMES, StackGuest
from vmi_inside import debugging
from vmi_inside.linux.symbols import frame_table, symbol_file
from vmi_inside.linux.symbols.code import Code

RBP, RSP, RIP = 6, 7, 16


def decoded(guest: StackGuest) -> dict[int, dict[Any, Any]]:
    """Each row of the table, by its address."""
    made = frame_table.build(guest.kernel, Code(guest.kernel))
    structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
    info = CallFrameInfo(io.BytesIO(made.data), len(made.data), 0, structs)
    found: dict[int, dict[Any, Any]] = {}
    for entry in info.get_entries():
        if isinstance(entry, FDE):
            for row in entry.get_decoded().table:
                found[row["pc"]] = row
    assert len(found) == made.count == 2 * len(guest.code)
    return found


@pytest.mark.parametrize(("older", "renumbered"), [(True, False), (False, False), (False, True)])
def test_frames_are_what_the_kernel_says(older: bool, renumbered: bool) -> None:
    guest = StackGuest(older=older, renumbered=renumbered)
    rows = decoded(guest)
    for name, (kind, base, offset, saved, saved_at) in FRAMES.items():
        row = rows[guest.code[name] + 4]
        known = base in ("sp", "bp") and kind in ("call", "regs", "partial")
        if known:
            assert (row["cfa"].reg, row["cfa"].offset) == (RSP if base == "sp" else RBP, offset), name
        place = {"call": -8, "regs": 128, "partial": 0}.get(kind) if known else None
        assert (row[RIP].type, row[RIP].arg) == (("OFFSET", place) if known else ("UNDEFINED", None)), name
        if kind == "call":
            assert (row[RBP].arg == saved_at) == (saved == "prev"), name
        if kind == "regs":
            assert (row[RBP].arg, row[RSP].arg) == (32, 152), name
        if kind == "partial":
            assert row[RSP].arg == 24, name
        first = rows[guest.code[name]]
        assert (first["cfa"].reg, first["cfa"].offset, first[RIP].arg) == (RSP, 8, -8), name
        assert RSP not in first, name  # where the frame ends, whatever was said of the function before


def test_tables_that_lie_end() -> None:
    guest = StackGuest()
    for at in range(len(guest.code)):
        guest.write(guest.ips + 8 * at, b"\x00\x00\x00\x80")  # far below: not ascending
    made = frame_table.build(guest.kernel, Code(guest.kernel))
    assert made.count == 2 * len(guest.code)
    guest.profile.symbols["__stop_orc_unwind_ip"] = guest.ips + (1 << 40)
    assert frame_table.build(guest.kernel, Code(guest.kernel)).count == 0
    guest.profile.symbols["__stop_orc_unwind_ip"] = guest.ips + (8 << 20)  # behind the image
    assert frame_table.build(guest.kernel, Code(guest.kernel)).count == 0


def test_modules_that_claim_each_others_addresses() -> None:
    ranges = [
        symbol_file._Range("kernel", 0x1000, 0x5000, True),
        symbol_file._Range("whole", 0x8000, 0xA000, False),
        symbol_file._Range("text", 0x8000, 0x9000, True),
        symbol_file._Range("liar", 0xC000, (1 << 64) + 5, False),
        symbol_file._Range("thief", 0x2000, 0x3000, True),
        symbol_file._Range("twice", 0x8000, 0x9000, True),
    ]
    found = symbol_file._disjoint(ranges)
    assert [(one.name, one.start, one.end) for one in found] == [
        ("kernel", 0x1000, 0x5000), ("text", 0x8000, 0x9000), ("whole", 0x9000, 0xA000),
    ]  # fmt: skip


def test_symbols_outside_of_all_sections_are_left_out() -> None:
    table = np.zeros(4, symbol_file._SYMBOL)
    table["value"] = [0x1000, 0x1010, 0x4FFF, 0xFFFF_FFFF_FFFF_FFFF]
    placed = symbol_file._placed(table, [symbol_file._Range("a", 0x1000, 0x2000, True)])
    assert placed["value"].tolist() == [0x1000, 0x1010]
    assert placed["size"].tolist() == [0x10, 0xFF0]
    assert set(placed["section"].tolist()) == {1}


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["qemu", "-s"], ":1234"),
        (["qemu", "-gdb", "tcp::99"], ":99"),
        (["qemu", "-gdb", "tcp:10.0.0.1:99,server=on"], "10.0.0.1:99"),
        (["qemu", "-gdb", "unix:/run/x,server=on,wait=off"], "/run/x"),
        (["qemu", "-gdb", "stdio"], ""),
        (["qemu", "-gdb"], ""),
        ([], ""),
    ],
)
def test_where_a_stub_listens(words: list[str], where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "cmdline"
    path.write_bytes(b"".join(word.encode() + b"\0" for word in words))
    monkeypatch.setattr(debugging, "open", lambda name, mode: path.open(mode), raising=False)
    assert debugging.listening(1) == where
    monkeypatch.undo()
    assert debugging.listening(1 << 30) == ""


def test_the_line_is_one_for_a_shell() -> None:
    line = debugging.shown(debugging.command(Path("/tmp/a b.elf"), "/run/s", ["-ex", "info threads"]))
    assert line.endswith("-ex 'target remote /run/s' -ex 'info threads' '/tmp/a b.elf'")
    assert "target" not in debugging.shown(debugging.command(Path("k.elf"), "file:core"))
