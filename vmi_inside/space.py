"""Virtual memory: physical memory seen through page tables.

Knows how to walk the tables that `arch` describes, for a batch of addresses or for one. Kernels, types and the ways of
reaching memory are left to others.

Nothing read here is kept: guest memory changes. Only inside `operation()` are translations remembered, for the length
of one table's reading.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from vmi_inside.arch.paging import Paging
from vmi_inside.errors import NoMemory, PageFault
from vmi_inside.memory import PhysicalMemory
from vmi_inside.types import MASK64, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, U8, U64, Mask

_CACHE_LIMIT = 1 << 16  # translations that one operation may remember


class AddressSpace:
    """One address space: `root` is the physical address of the top-level table."""

    def __init__(self, memory: PhysicalMemory, paging: Paging, root: int) -> None:
        self.memory = memory
        self.paging = paging
        self.root = root
        self._depth = 0
        self._known_page = np.empty(0, dtype=np.uint64)
        self._known_frame = np.empty(0, dtype=np.uint64)

    def with_root(self, root: int) -> AddressSpace:
        """The same memory through another top-level table, such as a process's."""
        return AddressSpace(self.memory, self.paging, root)

    @contextmanager
    def operation(self) -> Iterator[None]:
        """Remember translations until the outermost `operation` ends: one table is one operation."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._known_page = np.empty(0, dtype=np.uint64)
                self._known_frame = np.empty(0, dtype=np.uint64)

    # -- batches ----------------------------------------------------------------------------------------------------

    def translate(self, va: U64, roots: U64 | None = None) -> tuple[U64, Mask]:
        """Physical addresses (n,) of the virtual addresses `va` (n,), and (n,) bool: which of them are mapped.

        `roots` (n,) gives each row a top-level table of its own. Unmapped rows have address 0.
        """
        page = va >> np.uint64(PAGE_SHIFT)
        if roots is not None:
            frame, ok = self._walk(va, roots)
        elif len(va) < 2:
            frame, ok = self._walk(va, None)
        else:
            frame, ok = self._translate_pages(page)
        return np.where(ok, frame | (va & np.uint64(PAGE_MASK)), np.uint64(0)), ok

    def _translate_pages(self, page: U64) -> tuple[U64, Mask]:
        """Each distinct page once; frames are physical addresses of pages, bit 0 marking an unmapped one."""
        unique, back = np.unique(page, return_inverse=True)
        frame = np.ones(len(unique), dtype=np.uint64)
        todo = np.ones(len(unique), dtype=np.bool_)
        if len(self._known_page):
            at = np.searchsorted(self._known_page, unique)
            at[at == len(self._known_page)] = 0
            hit = self._known_page[at] == unique
            frame[hit] = self._known_frame[at[hit]]
            todo = ~hit
        if todo.any():
            new = unique[todo]
            walked, ok = self._walk(new << np.uint64(PAGE_SHIFT), None)
            found = np.where(ok, walked, np.uint64(1))
            frame[todo] = found
            if self._depth and len(self._known_page) + len(new) <= _CACHE_LIMIT:
                pages = np.concatenate((self._known_page, new))
                order = np.argsort(pages, kind="stable")
                self._known_page = pages[order]
                self._known_frame = np.concatenate((self._known_frame, found))[order]
        frame = frame[back]
        ok = frame & np.uint64(1) == 0
        return np.where(ok, frame, np.uint64(0)), ok

    def _walk(self, va: U64, roots: U64 | None) -> tuple[U64, Mask]:
        """Walk the tables level by level, each distinct entry read once. Gives page frames and which are mapped."""
        paging = self.paging
        address = np.uint64(paging.address)
        frame = np.zeros(len(va), dtype=np.uint64)
        done = np.zeros(len(va), dtype=np.bool_)
        sign = va >> np.uint64(paging.canonical - 1)
        ok = (sign == 0) | (sign == np.uint64((1 << (65 - paging.canonical)) - 1))
        table = np.full(len(va), self.root, dtype=np.uint64) if roots is None else roots & address
        live = np.flatnonzero(ok)
        for level, bits in zip(range(paging.levels, 0, -1), paging.splits, strict=True):
            if not len(live):
                break
            shift = np.uint64(paging.shift(level))
            index = (va[live] >> shift) & np.uint64((1 << bits) - 1)
            entry, readable = self._entries(table[live] + index * np.uint64(paging.entry_size))
            present = readable & (entry & np.uint64(paging.present) != 0)
            ok[live[~present]] = False
            leaf = present if level == 1 else np.zeros(len(live), dtype=np.bool_)
            if level in paging.large:
                leaf = present & (entry & np.uint64(paging.large_bit) != 0)
            inside = np.uint64((1 << int(shift)) - 1)
            at = live[leaf]
            frame[at] = (entry[leaf] & address & ~inside) | (va[at] & inside & ~np.uint64(PAGE_MASK))
            done[at] = True
            onward = present & ~leaf
            live, entry = live[onward], entry[onward]
            table[live] = entry & address
        return frame, ok & done

    def _entries(self, pa: U64) -> tuple[U64, Mask]:
        if len(pa) > 1:
            unique, back = np.unique(pa, return_inverse=True)
        else:
            unique, back = pa, np.zeros(len(pa), dtype=np.intp)
        raw = np.empty((len(unique), 8), dtype=np.uint8)
        ok = self.memory.gather(unique, raw)
        return raw.view("<u8")[:, 0][back], ok[back]

    def gather(self, va: U64, width: int, roots: U64 | None = None) -> tuple[U8, Mask]:
        """`width` bytes at each of the `n` addresses: (n, width) uint8, and (n,) bool: which rows were read whole.

        Rows may cross pages, virtually contiguous ones that is. Unreadable rows are zero.
        """
        out = np.zeros((len(va), width), dtype=np.uint8)
        if not len(va) or not width:
            return out, np.ones(len(va), dtype=np.bool_)
        va = np.ascontiguousarray(va, dtype=np.uint64)
        offset = va & np.uint64(PAGE_MASK)
        crossing = offset + np.uint64(width) > np.uint64(PAGE_SIZE)
        if not crossing.any():
            return out, self._gather_rows(va, out, roots)
        whole = np.flatnonzero(~crossing)
        ok = np.zeros(len(va), dtype=np.bool_)
        if len(whole):
            rows = np.empty((len(whole), width), dtype=np.uint8)
            ok[whole] = self._gather_rows(va[whole], rows, None if roots is None else roots[whole])
            out[whole] = rows
        torn = np.flatnonzero(crossing)
        rows, good = self._gather_torn(va[torn], width, None if roots is None else roots[torn])
        out[torn] = rows
        ok[torn] = good
        return out, ok

    def _gather_torn(self, va: U64, width: int, roots: U64 | None) -> tuple[U8, Mask]:
        """Rows that cross a page: the end of one page and the start of the next, cut at each row's own place."""
        if width > PAGE_SIZE:
            parts = [
                self.gather(va + np.uint64(start), min(PAGE_SIZE, width - start), roots)
                for start in range(0, width, PAGE_SIZE)
            ]
            ok = np.logical_and.reduce([part[1] for part in parts])
            out = np.concatenate([part[0] for part in parts], axis=1)
        else:
            cut = (va | np.uint64(PAGE_MASK)) + np.uint64(1)
            both = np.empty((2, len(va), width), dtype=np.uint8)
            ok = self._gather_rows(cut - np.uint64(width), both[0], roots)
            ok &= self._gather_rows(cut, both[1], roots)
            start = (va - (cut - np.uint64(width))).astype(np.intp)
            sides = np.concatenate((both[0], both[1]), axis=1)
            out = np.take_along_axis(sides, start[:, None] + np.arange(width)[None, :], axis=1)
        out[~ok] = 0
        return out, ok

    def _gather_rows(self, va: U64, out: U8, roots: U64 | None) -> Mask:
        pa, mapped = self.translate(va, roots)
        if mapped.all():
            return self.memory.gather(pa, out)
        ok = np.zeros(len(va), dtype=np.bool_)
        out[:] = 0
        at = np.flatnonzero(mapped)
        if len(at):
            rows = np.empty((len(at), out.shape[1]), dtype=np.uint8)
            ok[at] = self.memory.gather(pa[at], rows)
            out[at] = rows
        return ok

    # -- one address ------------------------------------------------------------------------------------------------

    def translate_one(self, va: int) -> int:
        """The physical address of one virtual address. Raises `PageFault`.

        The integer twin of `translate`, over the same paging data; a property test holds the two equal.
        """
        paging = self.paging
        sign = (va & MASK64) >> (paging.canonical - 1)
        if sign not in (0, (1 << (65 - paging.canonical)) - 1):
            raise PageFault(va, paging.levels)
        table = self.root
        for level, bits in zip(range(paging.levels, 0, -1), paging.splits, strict=True):
            shift = paging.shift(level)
            raw = self.memory.read(table + ((va >> shift) & ((1 << bits) - 1)) * paging.entry_size, paging.entry_size)
            if raw is None:
                raise PageFault(va, level)
            entry = int.from_bytes(raw, "little")
            if not entry & paging.present:
                raise PageFault(va, level, entry)
            if level == 1 or (level in paging.large and entry & paging.large_bit):
                inside = (1 << shift) - 1
                return (entry & paging.address & ~inside) | (va & inside)
            table = entry & paging.address
        raise PageFault(va, 1)

    def read(self, va: int, size: int) -> bytes:
        """`size` bytes at `va`, whole or not at all. Raises `PageFault` or `NoMemory`."""
        parts = []
        while size > 0:
            step = min(size, PAGE_SIZE - (va & PAGE_MASK))
            pa = self.translate_one(va)
            part = self.memory.read(pa, step)
            if part is None:
                raise NoMemory(pa, step)
            parts.append(bytes(part))
            va = (va + step) & MASK64
            size -= step
        return b"".join(parts)

    def read_u64(self, va: int) -> int:
        """The little-endian 64-bit number at `va`. Raises `PageFault` or `NoMemory`."""
        return int.from_bytes(self.read(va, 8), "little")
