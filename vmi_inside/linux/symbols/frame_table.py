"""The kernel's unwind tables in DWARF's form, so that gdb walks its stacks without debug information.

Knows `.debug_frame` (DWARF 4, 6.4) and where `struct pt_regs` has registers (arch/x86/include/asm/ptrace.h). What the
kernel's own tables say is `orc`'s knowledge.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.symbols import orc
from vmi_inside.linux.symbols.code import Code
from vmi_inside.types import U8, U64, Mask

#: Entries that one frame description holds: what gdb runs through for one address.
_EACH: Final = 64
#: Numbers of registers (System V ABI, AMD64 supplement, figure 3.36).
_RBP, _RSP, _RIP = 6, 7, 16
_ADVANCE4, _UNDEFINED, _SAME, _DEF_CFA, _OFFSET_SF = 0x04, 0x07, 0x08, 0x0C, 0x11
_RESTORE: Final = 0xC0
#: One entry: how far on, where the frame is, and three bytes each for rbp, the return address and rsp.
_ROW: Final = 18
_MOST: Final = (1 << 14) - 1
#: Bytes of `struct pt_regs` before rbp, rip, rsp.
_REGS_BP, _REGS_IP, _REGS_SP = 32, 128, 152
#: What all have in common: version 4, addresses of 8 bytes, code counted in ones and data in eights downwards; a frame
#: that was just called.
_CIE: Final = struct.pack("<II", 20, 0xFFFFFFFF) + bytes(
    (4, 0, 8, 0, 1, 0x78, _RIP, _DEF_CFA, _RSP, 8, 0x80 | _RIP, 1, 0, 0, 0, 0)
)


@dataclass(frozen=True, slots=True)
class Frames:
    """`.debug_frame`, which tells of `count` stretches of code."""

    data: bytes
    count: int


def build(kernel: Kernel, code: Code) -> Frames:
    """The tables of the kernel and of its modules.

    Raises `NoSymbol`, `NoMember` where the kernel was built without them, `Unsupported` for a form that is not known.
    """
    parts, count = [_CIE], 0
    for ip, entries in orc.Orc(kernel, code).whole():
        parts.append(_described(ip, entries))
        count += len(ip)
    return Frames(b"".join(parts), count)


def _described(ip: U64, entries: orc.Entries) -> bytes:
    """Frame descriptions of a table; the last entry is taken to end at once, as the kernel's tables have it."""
    body = _rows(ip, entries)
    parts = []
    for first in range(0, len(ip), _EACH):
        end = min(first + _EACH, len(ip))
        size = int(ip[min(end, len(ip) - 1)] - ip[first])
        rows = body[first:end].reshape(-1).copy()
        rows[:5] = 0  # nothing is passed before the first: DW_CFA_nop
        data = rows.tobytes()
        data += bytes(-(len(data) + 4) % 8)
        parts.append(struct.pack("<IIQQ", 20 + len(data), 0, int(ip[first]), size) + data)
    return b"".join(parts)


def _rows(ip: U64, entries: orc.Entries) -> U8:
    """Instructions (n, _ROW) for each entry: all that may have changed since the one before."""
    n = len(ip)
    out = np.zeros((n, _ROW), np.uint8)
    passed = np.diff(ip, prepend=ip[:1]).astype("<u4")
    out[:, 0] = _ADVANCE4
    out[:, 1:5] = passed.view(np.uint8).reshape(n, 4)
    stack = entries.sp_reg == orc.SP
    placed: Mask = (stack | (entries.sp_reg == orc.BP)) & (entries.sp_offset >= 0) & (entries.sp_offset <= _MOST)
    call, regs, iret = ((entries.type == kind) & placed for kind in (orc.CALL, orc.REGS, orc.REGS_PARTIAL))
    offset = np.where(placed, entries.sp_offset, 8)
    out[:, 5] = _DEF_CFA
    out[:, 6] = np.where(stack | ~placed, _RSP, _RBP)
    out[:, 7] = 0x80 | (offset & 0x7F)  # of a fixed length: two bytes of ULEB128
    out[:, 8] = offset >> 7
    # rbp: where it was saved, or what it is.
    saved = call & (entries.bp_reg == orc.PREV_SP) & (entries.bp_offset % 8 == 0) & (np.abs(entries.bp_offset) <= 504)
    _set(out[:, 9:12], np.ones(n, np.bool_), _SAME, _RBP, 0)
    _put(out[:, 9:12], saved, _RBP, entries.bp_offset)
    _put(out[:, 9:12], regs, _RBP, np.full(n, _REGS_BP))
    _set(out[:, 12:15], np.ones(n, np.bool_), _UNDEFINED, _RIP, 0)
    _put(out[:, 12:15], call, _RIP, np.full(n, -8))
    _put(out[:, 12:15], regs, _RIP, np.full(n, _REGS_IP))
    _put(out[:, 12:15], iret, _RIP, np.zeros(n, np.int64))
    _set(out[:, 15:18], np.ones(n, np.bool_), _RESTORE | _RSP, 0, 0)
    _put(out[:, 15:18], regs, _RSP, np.full(n, _REGS_SP))
    _put(out[:, 15:18], iret, _RSP, np.full(n, _REGS_SP - _REGS_IP))
    return out


def _put(cells: U8, where: Mask, register: int, offset: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    """A register was saved so many bytes from the frame; in eights, downwards, as one byte of SLEB128."""
    _set(cells, where, _OFFSET_SF, register, 0)
    cells[where, 2] = (-offset[where] // 8) & 0x7F


def _set(cells: U8, where: Mask, *instruction: int) -> None:
    cells[where] = np.array(instruction, np.uint8)
