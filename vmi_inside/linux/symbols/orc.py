"""ORC: where the kernel's own tables say that a function's frame ends and its return address lies.

Knows `struct orc_entry` (arch/x86/include/asm/orc_types.h, 4.14; types renumbered in 6.4, registers by 7.2) and the
tables of the kernel and of its modules (arch/x86/kernel/unwind_orc.c). Walking a stack with them is `unwind`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside import ragged
from vmi_inside.errors import Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.symbols.code import Code
from vmi_inside.types import I64, U8, U64, Mask, among, distinct

#: ORC_REG_*, as they were numbered first: which register a value is counted from. Others stand nowhere where a task
#: sleeps.
UNDEFINED, PREV_SP, BP, SP, BP_INDIRECT, OTHER = 0, 1, 4, 5, 8, 15
#: By the number that the stack pointer has: those of PREV_SP, BP, SP, BP_INDIRECT. No type or symbol tells them.
_NUMBERED: Final = {5: (1, 4, 5, 8), 3: (8, 4, 3, 10)}
#: Entries that are looked at to tell which.
_SAMPLE: Final = 1 << 12
#: ORC_TYPE_*, as they are numbered since 6.4; `CALL` is a plain frame, the next ones hold a `pt_regs`, or its end.
NONE, END, CALL, REGS, REGS_PARTIAL = range(5)
#: What the kernel's index counts in: LOOKUP_BLOCK_SIZE.
_BLOCK_SHIFT: Final = 8
#: Entries for one such block: no more than it has bytes.
_BLOCK_LIMIT: Final = 257
_MODULE_LIMIT: Final = 1 << 20
_KERNEL_LIMIT: Final = 1 << 22
_ENTRY_LIMIT: Final = 16


@dataclass(frozen=True, slots=True)
class Entries:
    """What the tables say of `n` addresses, (n,) each; `type` NONE is for those of which they say nothing."""

    type: I64
    sp_reg: I64
    bp_reg: I64
    sp_offset: I64
    bp_offset: I64

    def take(self, which: NDArray[np.intp]) -> Entries:
        """These rows."""
        return Entries(*(getattr(self, name)[which] for name in self.__slots__))


class Orc:
    """The tables of one reading.

    Raises `NoSymbol` or `NoMember` where the kernel was built without them, `Unsupported` where they have another form.
    """

    def __init__(self, kernel: Kernel, code: Code) -> None:
        self.kernel = kernel
        self.code = code
        self.entry = kernel.struct("orc_entry")
        self._ip, self._entries, self._index = (
            kernel.symbol(name) for name in ("__start_orc_unwind_ip", "__start_orc_unwind", "orc_lookup")
        )
        self._count = (kernel.symbol("__stop_orc_unwind_ip") - self._ip) // 4
        self._text, self._text_end = kernel.symbol("_stext"), kernel.symbol("_etext")
        self._registers = np.arange(16, dtype=np.int64)
        self._registers = self._numbered()
        self._known = np.empty(0, dtype=np.uint64)  # addresses asked before, ascending, and what was said of them
        self._told = self._decoded(np.empty((0, self._size), dtype=np.uint8))
        self._tables: dict[int, tuple[U64, int]] = {}

    @property
    def _size(self) -> int:
        return min(self.entry.size, _ENTRY_LIMIT)

    def _numbered(self) -> I64:
        """What each number of a register is called here, by what most functions begin with: eight bytes above SP."""
        count = max(min(self._count, _SAMPLE), 0)
        got = ragged.gather(
            self.kernel.space, np.array([self._entries], np.uint64), np.array([count * self.entry.size])
        )
        sample = self._decoded(np.frombuffer(got.row(0), np.uint8).reshape(count, -1)[:, : self._size])
        begin = (sample.type == CALL) & (sample.sp_offset == 8) & (sample.bp_reg == UNDEFINED)
        numbers = _NUMBERED.get(int(np.bincount(sample.sp_reg[begin], minlength=1).argmax()))
        if numbers is None:
            raise Unsupported("the kernel's unwind tables are of a form that is not known")
        out = np.full(16, OTHER, dtype=np.int64)
        out[[UNDEFINED, *numbers]] = UNDEFINED, PREV_SP, BP, SP, BP_INDIRECT
        return out

    def find(self, address: U64) -> Entries:
        """What the tables say of `n` addresses of code."""
        fresh = distinct(address)
        fresh = fresh[~among(fresh, self._known)]
        if len(fresh):
            known, told = np.concatenate((self._known, fresh)), self._looked_up(fresh)
            order = np.argsort(known, kind="stable")
            self._known = known[order]
            self._told = Entries(
                *(np.concatenate((getattr(self._told, name), getattr(told, name)))[order] for name in told.__slots__)
            )
        return self._told.take(np.searchsorted(self._known, address))

    def whole(self) -> Iterator[tuple[U64, Entries]]:
        """The tables as they are: addresses at which entries begin, ascending, and these; the kernel's, then modules'.

        What cannot be read of them is left out.
        """
        if 0 < self._count <= _KERNEL_LIMIT:
            yield from self._read(np.array([self._ip], np.uint64), self._entries, self._count)
        for row in range(len(self.code.modules.modules)) if self.code.modules is not None else ():
            ip, entries = self._table(row)
            yield from self._read(ip, entries, len(ip))

    def _read(self, ip: U64, entries: int, count: int) -> Iterator[tuple[U64, Entries]]:
        """A table of `count` entries; of the kernel's, `ip` is only where its addresses begin."""
        sizes = np.array([4 * count, self.entry.size * count])
        if not count:
            return
        got = ragged.gather(self.kernel.space, np.array([self._ip, entries], np.uint64), sizes)
        if not got.ok[1] or (len(ip) != count and not got.ok[0]):
            return
        if len(ip) != count:
            offset = np.frombuffer(got.row(0), "<i4").astype(np.int64).view(np.uint64)
            ip = np.maximum.accumulate(ip[0] + np.uint64(4) * np.arange(count, dtype=np.uint64) + offset)
        raw = np.frombuffer(got.row(1), np.uint8).reshape(count, -1)[:, : self._size]
        yield ip, self._decoded(raw)

    def _looked_up(self, address: U64) -> Entries:
        at = np.zeros(len(address), dtype=np.uint64)  # of the entry; 0 for none
        inside = (address >= np.uint64(self._text)) & (address < np.uint64(self._text_end))
        rows = np.flatnonzero(inside)
        at[rows] = self._of_kernel(address[rows])
        rows = np.flatnonzero(~inside)
        if self.code.modules is not None and len(rows):
            module = self.code.modules.within(address[rows], text=True)
            for one in distinct(module[module >= 0]).tolist():
                mine = rows[module == one]
                at[mine] = self._of_module(one, address[mine])
        live = np.flatnonzero(at)
        raw = np.zeros((len(address), self._size), dtype=np.uint8)
        read, ok = self.kernel.space.gather(at[live], self._size)
        raw[live[ok]] = read[ok]
        found = self._decoded(raw)
        found.type[at == 0] = NONE
        return found

    def _of_kernel(self, address: U64) -> U64:
        """Addresses of the entries for addresses in the kernel's own text, by its index (`orc_find`)."""
        block = (address - np.uint64(self._text)) >> np.uint64(_BLOCK_SHIFT)
        raw, ok = self.kernel.space.gather(np.uint64(self._index) + np.uint64(4) * block, 8)
        bounds = raw.view("<u4").astype(np.int64)
        first = bounds[:, 0]
        ok &= (first < self._count) & (bounds[:, 1] >= first) & (bounds[:, 1] < self._count)
        count = np.where(ok, np.minimum(bounds[:, 1] - first + 1, _BLOCK_LIMIT), 0)
        where = np.uint64(self._ip) + np.uint64(4) * first.astype(np.uint64)
        got = ragged.gather(self.kernel.space, where, 4 * count)
        owner = np.repeat(np.arange(len(address)), count)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        offset = got.data.view("<i4")[(got.start[owner] >> 2) + within].astype(np.int64).view(np.uint64)
        ip = where[owner] + np.uint64(4) * within.astype(np.uint64) + offset
        # The last entry that begins at the address or before it; the kernel's are sorted.
        before = np.bincount(owner[ip <= address[owner]], minlength=len(address))
        entry = np.uint64(self._entries) + np.uint64(self.entry.size) * (first + before - 1).astype(np.uint64)
        return np.where(ok & got.ok & (before > 0), entry, np.uint64(0))

    def _of_module(self, module: int, address: U64) -> U64:
        """The same of addresses in one module's text."""
        if module not in self._tables:
            self._tables[module] = self._table(module)
        ip, entries = self._tables[module]
        at = np.searchsorted(ip, address, "right") - 1
        entry = np.uint64(entries) + np.uint64(self.entry.size) * np.maximum(at, 0).astype(np.uint64)
        return np.where(at >= 0, entry, np.uint64(0))

    def _table(self, module: int) -> tuple[U64, int]:
        """The addresses at which a module's entries begin, ascending, and where the entries are."""
        assert self.code.modules is not None
        row = self.code.modules.modules.select(np.array([module]))
        if not row.has("arch.num_orcs"):
            return np.empty(0, dtype=np.uint64), 0
        row.fetch("arch.num_orcs", "arch.orc_unwind_ip", "arch.orc_unwind")
        count = int(row.number("arch.num_orcs")[0])
        where = row.pointer("arch.orc_unwind_ip")
        if not 0 < count <= _MODULE_LIMIT:
            return np.empty(0, dtype=np.uint64), 0
        got = ragged.gather(self.kernel.space, where, np.array([4 * count]))
        if not got.ok[0]:
            return np.empty(0, dtype=np.uint64), 0
        offset = np.frombuffer(got.row(0), "<i4").astype(np.int64).view(np.uint64)
        ip = where + np.uint64(4) * np.arange(count, dtype=np.uint64) + offset
        return np.maximum.accumulate(ip), int(row.pointer("arch.orc_unwind")[0])

    def _decoded(self, raw: U8) -> Entries:
        """Entries (n, size) of bytes as columns, with the types as they are numbered now."""
        wide = np.zeros((len(raw), 8), dtype=np.uint8)
        wide[:, : min(8, raw.shape[1])] = raw[:, :8]
        whole = wide.view("<u8")[:, 0]

        def field(name: str) -> I64:
            member = self.entry.member(name)
            bits = member.bit_size or 8 * member.size
            value = whole >> np.uint64(8 * member.offset + member.bit_offset) & np.uint64((1 << bits) - 1)
            return value.astype(np.int64)

        kind, sp_reg = field("type"), field("sp_reg")
        if self.entry.has("end"):  # until 6.3: call, regs, regs partial from 0, and a bit for the end of a stack
            unset = sp_reg == UNDEFINED
            kind = np.where(unset, np.where(field("end") != 0, END, NONE), kind + CALL)
        offsets = [field(name).astype(np.int16).astype(np.int64) for name in ("sp_offset", "bp_offset")]
        return Entries(kind, self._registers[sp_reg & 15], self._registers[field("bp_reg") & 15], *offsets)


def found(entries: Entries) -> Mask:
    """Which (n,) the tables say something of."""
    known: Mask = entries.type != NONE
    return known
