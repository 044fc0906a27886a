"""The code that a guest's worker runs for calls that may sleep, in an emulator."""

from __future__ import annotations

import struct

import capstone
import pytest
import unicorn
from unicorn import x86_const as x86

from vmi_inside.control import work

ORIGIN = 0xFFFF_FFFF_86BF_8040
FUNCTION = 0xFFFF_FFFF_8500_0000
AFTER = 0xFFFF_FFFF_8500_1000
BACK = 0xFFFF_FFFF_8400_0000
PAGES = 0xFFFF_8880_0000_0000
STACK = 0xFFFF_C900_0000_0000
ARGUMENTS = (x86.UC_X86_REG_RDI, x86.UC_X86_REG_RSI, x86.UC_X86_REG_RDX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_R8,
             x86.UC_X86_REG_R9)  # fmt: skip
KEPT = (x86.UC_X86_REG_RBX, x86.UC_X86_REG_RBP, x86.UC_X86_REG_R12, x86.UC_X86_REG_R13, x86.UC_X86_REG_R14,
        x86.UC_X86_REG_R15)  # fmt: skip
#: What a function may change.
SPOILT = (x86.UC_X86_REG_RAX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_RDX, x86.UC_X86_REG_RSI, x86.UC_X86_REG_RDI,
          x86.UC_X86_REG_R8, x86.UC_X86_REG_R9, x86.UC_X86_REG_R10, x86.UC_X86_REG_R11)  # fmt: skip
TABLE, ROW = 128, 64


def run(rows: list[tuple[int, ...]], after: int | None) -> tuple[list[tuple[int, ...]], list[int]]:
    """The arguments of each call, and what stands for what each returned: their sum."""
    raw = work.assemble(ORIGIN, FUNCTION, after)
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    uc.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
    executable, writable = unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC, unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE
    for start, size, access in (
        (ORIGIN & ~0xFFF, 0x1000, executable), (FUNCTION, 0x2000, executable), (BACK, 0x1000, executable),
        (PAGES, 0x4000, writable), (STACK, 0x4000, writable),
    ):  # fmt: skip
        uc.mem_map(start, size, access)
    uc.mem_write(ORIGIN, raw)
    uc.mem_write(FUNCTION, b"\xc3" * 0x2000)
    uc.mem_write(BACK, b"\xf4" * 0x1000)
    uc.mem_write(PAGES + 64, struct.pack("<QQ", PAGES + TABLE, PAGES + TABLE + ROW * len(rows)))
    for at, row in enumerate(rows):
        uc.mem_write(PAGES + TABLE + ROW * at, struct.pack("<8Q", *row, *[0] * (8 - len(row))))
    calls: list[tuple[int, ...]] = []

    def step(uc: unicorn.Uc, address: int, size: int, _: object) -> None:
        if address in (FUNCTION, AFTER):
            assert uc.reg_read(x86.UC_X86_REG_RSP) % 16 == 8, "as functions expect their stack"
            given = tuple(uc.reg_read(one) for one in ARGUMENTS)
            calls.append((address, *given) if address == FUNCTION else (address, given[0]))
            for register in SPOILT:
                uc.reg_write(register, 0xDEAD)
            uc.reg_write(x86.UC_X86_REG_RAX, sum(given))

    uc.hook_add(unicorn.UC_HOOK_CODE, step)
    for register in KEPT:
        uc.reg_write(register, 0x7000 + register)
    uc.mem_write(STACK + 0x3F08, struct.pack("<Q", BACK))
    uc.reg_write(x86.UC_X86_REG_RSP, STACK + 0x3F08)
    uc.reg_write(x86.UC_X86_REG_RDI, PAGES)
    uc.emu_start(ORIGIN, 0, count=100_000)
    assert uc.reg_read(x86.UC_X86_REG_RIP) == BACK + 1
    assert uc.reg_read(x86.UC_X86_REG_RSP) == STACK + 0x3F10
    assert [uc.reg_read(register) for register in KEPT] == [0x7000 + register for register in KEPT]
    now, end = struct.unpack("<QQ", uc.mem_read(PAGES + 64, 16))
    assert now == end == PAGES + TABLE + ROW * len(rows)
    results = [struct.unpack("<Q", uc.mem_read(PAGES + TABLE + ROW * at + 48, 8))[0] for at in range(len(rows))]
    return calls, results


@pytest.mark.parametrize("count", [0, 1, 2, 60])
def test_each_row_is_one_call(count: int) -> None:
    rows = [tuple(range(at, at + 6)) for at in range(count)]
    assert run(rows, None) == ([(FUNCTION, *row) for row in rows], [sum(row) for row in rows])
    calls, results = run(rows, AFTER)
    assert calls == [call for row in rows for call in ((FUNCTION, *row), (AFTER, row[0]))]
    assert results == [sum(row) for row in rows]


@pytest.mark.parametrize("after", [None, AFTER])
def test_a_disassembler_reads_it(after: int | None) -> None:
    raw = work.assemble(ORIGIN, FUNCTION, after)
    reader = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    lines = list(reader.disasm(raw, ORIGIN))
    assert sum(line.size for line in lines) == len(raw)
    assert lines[0].mnemonic == "endbr64"  # it is called through a pointer
    assert [line.mnemonic for line in lines[-2:]] == ["ret", "int3"]
    called = [int(line.op_str, 16) for line in lines if line.mnemonic == "call"]
    assert called == [FUNCTION] + [AFTER] * (after is not None)


def test_no_more_rows_than_fit() -> None:
    calls = work.Calls(FUNCTION, [[at] for at in range(5)], AFTER, [(1, 2)], list(range(5)))
    first = calls.first(2)
    assert (first.rows, first.references, first.guards) == ([[0], [1]], [0, 1], [(1, 2)])


def test_pages_and_tables_that_are_not_ours() -> None:
    table = work.Table(PAGES, 1)
    calls = work.Calls(FUNCTION, [[at] for at in range(3)], AFTER)
    raw = work.code_page(ORIGIN & ~0xFFF, table, calls).ljust(4096, b"\xcc")
    found = work.read_page(raw)
    assert found is not None
    assert (found.pages, found.order) == (PAGES, 1)
    assert raw[found.size :] == work.EMPTY[found.size :]
    assert work.read_page(work.EMPTY) is None
    for at, lie in ((0, b"else"), (8, b"\1"), (16, b"\5"), (20, b"\xff\xff")):
        with pytest.raises(work.NotOurs):
            work.read_page(raw[:at] + lie + raw[at + len(lie) :])
    head = struct.pack("<QQ", PAGES + TABLE + ROW, PAGES + TABLE + 3 * ROW)
    assert table.progress(bytes(64) + head) == (1, 3)
    for now, end in ((2, 1), (0, 127), (-1, 1)):
        with pytest.raises(work.NotOurs):
            table.progress(bytes(64) + struct.pack("<QQ", PAGES + TABLE + ROW * now, PAGES + TABLE + ROW * end))
    with pytest.raises(work.NotOurs):
        table.progress(bytes(64) + struct.pack("<QQ", PAGES + TABLE + 1, PAGES + TABLE + ROW))
    assert [work.order_for(rows) for rows in (1, 62, 63, work.ROW_LIMIT, 10_000)] == [0, 0, 1, 4, 4]
