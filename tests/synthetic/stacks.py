"""Sleeping tasks with kernel stacks, functions to return to, and the unwind tables that tell their frames."""

from __future__ import annotations

import struct
from itertools import pairwise

from tests.synthetic.layout import Layout
from tests.synthetic.linux import LinuxGuest, Task

STACK_SIZE = 16384
_ENTRY = """
orc_entry 6
    sp_offset 0 i16
    bp_offset 2 i16
    sp_reg 4 u32:4+0
    bp_reg 4 u32:4+4
    type 4 u32:{types}
    {last}
"""
#: Functions by what their frames are: type, register of the frame's end and what to add, the same of the saved bp.
FRAMES = {
    "schedule": ("call", "sp", 24, "none", 0),
    "plain": ("call", "sp", 40, "none", 0),
    "small": ("call", "sp", 8, "none", 0),
    "framed": ("call", "bp", 16, "prev", -16),
    "saves_bp": ("call", "sp", 32, "prev", -16),
    "realigned": ("call", "bp_indirect", -8, "none", 0),
    "interrupted": ("regs", "sp", 0, "none", 0),
    "short": ("partial", "sp", 0, "none", 0),
    "entry": ("regs", "sp", 0, "none", 0),
    "forked": ("end", "none", 0, "none", 0),
    "untold": ("none", "none", 0, "none", 0),
    "strange": ("call", "r10", 0, "none", 0),
}
_TYPES = {"call": 0, "regs": 1, "partial": 2, "end": 0, "none": 0}
_NEWER = {"none": 0, "end": 1, "call": 2, "regs": 3, "partial": 4}
_REGISTERS = {"none": 0, "prev": 1, "bp": 4, "sp": 5, "r10": 6, "bp_indirect": 8}
_RENUMBERED = {"none": 0, "prev": 8, "bp": 4, "sp": 3, "r10": 6, "bp_indirect": 10}
SIZE = 256  # of a function, and of a block of the index


class StackGuest(LinuxGuest):
    """A guest whose tasks can be put to sleep; `renumbered` has the registers' numbers of newer kernels."""

    def __init__(self, *, older: bool = False, renumbered: bool = False, scattered: bool = False) -> None:
        super().__init__(older=older, scattered=scattered)
        entry = _ENTRY.format(
            types="2+8" if older else "3+8", last=f"{'end' if older else 'signal'} 4 u32:1+{10 + (not older)}"
        )
        self.profile.layout.structs.update(Layout(entry).structs)
        self.registers = _RENUMBERED if renumbered else _REGISTERS
        names = [*FRAMES, *(f"filler_{number}" for number in range(40))]
        self.text = self.global_("_stext", SIZE * len(names))
        self.code = {name: self.text + SIZE * at for at, name in enumerate(names)}
        self.profile.symbols.update(self.code)
        self.profile.symbols["_etext"] = self.text + SIZE * len(names)
        self.profile.symbols["__sched_text_start"] = self.code["schedule"]
        self.profile.symbols["__sched_text_end"] = self.code["schedule"] + SIZE
        pieces: list[tuple[int, bytes]] = []
        for name, at in self.code.items():
            pieces.append((at, self.entry("call", "sp", 8, "none", 0)))
            pieces.append((at + 4, self.entry(*FRAMES.get(name, FRAMES["plain"]))))
        self._unwind_tables(pieces)

    def entry(self, kind: str, sp_reg: str, sp_offset: int, bp_reg: str, bp_offset: int) -> bytes:
        """One entry of the unwind table."""
        bits = self.registers[sp_reg] | self.registers[bp_reg] << 4
        bits |= (_TYPES if self.older else _NEWER)[kind] << 8
        if self.older and kind == "end":
            bits |= 1 << 10
        return struct.pack("<hhH", sp_offset, bp_offset, bits)

    def _unwind_tables(self, pieces: list[tuple[int, bytes]]) -> None:
        """The tables and their index, as they are linked: addresses relative to where they stand."""
        self.ips = self.global_("__start_orc_unwind_ip", 4 * len(pieces))
        self.profile.symbols["__stop_orc_unwind_ip"] = self.ips + 4 * len(pieces)
        entries = self.global_("__start_orc_unwind", 6 * len(pieces))
        for at, (ip, entry) in enumerate(pieces):
            self.write(self.ips + 4 * at, struct.pack("<i", ip - (self.ips + 4 * at)))
            self.write(entries + 6 * at, entry)
        self.index = self.global_("orc_lookup", 4 * (len(self.code) + 1))
        for block in range(len(self.code) + 1):
            last = max(at for at, (ip, _) in enumerate(pieces) if ip <= self.text + SIZE * block)
            self.write(self.index + 4 * block, struct.pack("<I", last))

    def back(self, name: str) -> int:
        """An address that a call in that function returns to."""
        return self.code[name] + 32

    def asleep(self, task: Task, *frames: str, user: bool = True) -> int:
        """Put a task to sleep in these functions, the innermost first; the address of its saved stack pointer."""
        stack = self.alloc(STACK_SIZE, "stack")
        at = sp = stack + STACK_SIZE - 4096
        chain = ("schedule", *frames, "entry" if user else "forked")
        self.put("inactive_task_frame", at, ret_addr=self.back(chain[0]), bp=0)
        bp_slot = at + self.offset("inactive_task_frame", "bp")  # where the bp of the frame to come is kept
        at += self.size("inactive_task_frame")
        for name, caller in pairwise(chain):
            kind, base, offset, saved, saved_at = FRAMES.get(name, FRAMES["plain"])
            if base == "bp":  # its frame is found through bp: give it 64 bytes
                self.word(bp_slot, at + 48)
                end = at + 64
            elif base == "bp_indirect":
                self.word(bp_slot, at + 24)
                self.word(at + 16, at + 64)
                end = at + 64
            elif kind in ("regs", "partial"):
                base_at = at - (self.offset("pt_regs", "ip") if kind == "partial" else 0)
                end = at + 200
                self.put("pt_regs", base_at, ip=self.back(caller), cs=0x10, sp=end)
                if kind == "regs":
                    bp_slot = base_at + self.offset("pt_regs", "bp")
                at = end
                continue
            else:
                end = at + (offset or 64)
            self.word(end - 8, self.back(caller))
            if saved == "prev":
                bp_slot = end + saved_at
            at = end
        if user:
            self.put("pt_regs", at, ip=0x40_0000, cs=0x33, sp=0x7FFD_0000_0000)
        self.give(task, stack=stack, thread__sp=sp)
        return sp
