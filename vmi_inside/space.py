"""Virtual memory: physical memory seen through page tables.

Knows how to walk the tables that `arch` describes, for a batch of addresses or for one. Kernels, types and the ways of
reaching memory are left to others.

Nothing read here is believed for long: guest memory changes. Only inside `operation()` are translations remembered, for
the length of one table's reading; the next one may go on with them when every page table that they came from still
reads the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vmi_inside.arch.paging import Paging
from vmi_inside.errors import NoMemory, PageFault
from vmi_inside.memory import Holding, Paravirtual, PhysicalMemory
from vmi_inside.types import MASK64, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, U8, U64, Mask

_KEPT_LIMIT = 256  # page tables that are read again to see whether they changed; of more nothing is kept
_BRIDGES = 16  # small gaps in the direct map that one operation looks into
_CACHE_LIMIT = 1 << 16  # translations that one operation may remember, and those of one batch more
_LARGE_SHIFT = 21  # kernels map most of themselves in pages of 2 MiB or more
_MANY = 64  # addresses in a batch, from which on it pays to look at one in each large page first
_FEW_RANGES = 6  # ranges that a batch lies in, so many or fewer, are told apart by a comparison with each
_FEW = 48  # addresses that are walked one by one, rather than side by side
_Leaf = tuple[int, int, int]  # see `AddressSpace._leaf`
_UNMAPPED = np.uint64(1)  # physical and virtual addresses differ by whole pages: this bit is free


class _Known:
    """Ranges of virtual addresses, and a number for each: what an operation remembers."""

    __slots__ = ("number", "size", "start")

    def __init__(self) -> None:
        self.start = self.size = self.number = np.zeros(1, dtype=np.uint64)  # an empty range, found by nobody

    def find(self, va: U64) -> tuple[U64, Mask]:
        """The numbers (n,) of the ranges that `va` (n,) lie in, and (n,) bool: which lie in one."""
        at = self._at(va)
        return self.number[at], va - self.start[at] < self.size[at]

    def straight(self, va: U64, width: int = 1) -> U64 | np.uint64 | None:
        """The numbers (n,) of the ranges that `width` bytes at each of `va` (n,) lie in, or the one number of all.

        None where some lie in no range, in one that is not mapped, or reach out of theirs. What the kernel allocates
        lies in its direct map, which is one range: then no row needs a search of its own.
        """
        one = self.start.searchsorted(va[0], "right") - 1
        room = int(self.size[one]) - width + 1
        if room > 0 and (va - self.start[one] < room).all():
            number: np.uint64 = self.number[one]
            return None if number & _UNMAPPED else number
        at = self._at(va)
        left = self.size[at] - (va - self.start[at])  # wraps where a row lies behind its range
        numbers = self.number[at]
        whole = ((left >= width) & (left <= self.size[at]) & (numbers & _UNMAPPED == 0)).all()
        return numbers if whole else None

    def _at(self, va: U64) -> NDArray[np.intp]:
        """Of each address the last range that does not begin behind it."""
        first, last = (self.start.searchsorted((va.min(), va.max()), "right") - 1).tolist()
        if last - first > _FEW_RANGES:
            return self.start.searchsorted(va, "right") - 1
        at = np.full(len(va), first)  # among few it is quicker to compare with each than to search
        for start in self.start[first + 1 : last + 1]:
            at += va >= start
        return at

    def add(self, start: U64, size: U64, number: U64) -> None:
        """Remember ranges, ascending; of two with the same start the one that came later counts."""
        new = _changes(start)
        start = np.concatenate((self.start, start[new]))
        order = start.argsort(kind="stable")
        self.start = start[order]
        self.size = np.concatenate((self.size, size[new]))[order]
        self.number = np.concatenate((self.number, number[new]))[order]

    def join(self) -> None:
        """Make one range of those that adjoin and have the same number."""
        ends = self.start + self.size
        new = np.ones(len(self.start), dtype=np.bool_)
        np.logical_or(ends[:-1] != self.start[1:], self.number[:-1] != self.number[1:], out=new[1:])
        last = np.append(np.flatnonzero(new)[1:], len(new)) - 1
        self.start, self.size, self.number = self.start[new], ends[last] - self.start[new], self.number[new]


def _changes(values: U64) -> Mask:
    """Which of `values` (n,) differ from the one before."""
    out = np.ones(len(values), dtype=np.bool_)
    np.not_equal(values[1:], values[:-1], out=out[1:])
    return out


class AddressSpace:
    """One address space: `root` is the physical address of the top-level table."""

    def __init__(self, memory: PhysicalMemory, paging: Paging, root: int) -> None:
        self.memory = memory
        self.paging = paging
        self.root = root
        # Page tables of a Xen PV guest hold machine frames; all others are read as they are.
        self._own = memory.entries if isinstance(memory, Paravirtual) else None
        self._hold = memory.hold if isinstance(memory, Holding) else nullcontext
        #: The nodes of lists that were walked, by head and offset: a guess, which `walk.serial` compares with what is.
        self.lists: dict[tuple[int, int], U64] = {}
        self._depth = 0
        # Of each range that was walked what to add to a virtual address to get the physical one (odd: not mapped); for
        # each level below the root, where the tables met on the way are; and what these hold.
        self._mappings = _Known()
        self._tables = [_Known() for _ in paging.splits]  # by level
        self._pages: dict[int, U64] = {}
        self._kept = (np.empty(0, dtype=np.uint64), np.empty((0, 0), dtype=np.uint64))  # the same, as one array
        self._bridged = 0  # how many tables there were when gaps were looked into
        self._levels = np.array([0, *(paging.shift(level + 1) for level in range(paging.levels))], dtype=np.uint64)
        self._masks = np.array([0, *((1 << bits) - 1 for bits in reversed(paging.splits))], dtype=np.uint64)
        self._large = np.array([level in paging.large for level in range(paging.levels + 1)])
        # The same from the root down, as integers: shift, mask of the index, and the bit that says "page", if any does.
        self._steps = [
            (paging.shift(level), (1 << bits) - 1, level, paging.large_bit if level in paging.large else 0)
            for level, bits in zip(range(paging.levels, 0, -1), paging.splits, strict=True)
        ]
        self._signs = 0, (1 << (65 - paging.canonical)) - 1  # of the bits above: the two halves

    def with_root(self, root: int) -> AddressSpace:
        """The same memory through another top-level table, such as a process's."""
        return self._other(self.memory, root)

    def over(self, memory: PhysicalMemory) -> AddressSpace:
        """The same page tables, read from another copy of the same guest's memory."""
        return self._other(memory, self.root)

    def _other(self, memory: PhysicalMemory, root: int) -> AddressSpace:
        made = AddressSpace(memory, self.paging, root)
        made._own = self._own
        return made

    def entry(self, pa: int) -> int:
        """One entry of a page table, by its address; 0 where it cannot be read."""
        raw = self.memory.read(pa, self.paging.entry_size)
        found = int.from_bytes(raw, "little") if raw is not None else 0
        return found if self._own is None else int(self._own(np.array([found], dtype=np.uint64))[0])

    @contextmanager
    def operation(self) -> Iterator[None]:
        """Remember translations until the outermost `operation` ends: one table is one operation."""
        with self._hold():
            if self._depth == 0:
                self._verify()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._keep()

    def tables(self, table: U64) -> tuple[U64, Mask]:
        """The entries of whole page tables (n,): (n, entries), zeros where one cannot be read; and which can."""
        rows = np.empty((len(table), self.paging.entry_size << self.paging.splits[-1]), dtype=np.uint8)
        ok = self.memory.gather(table, rows)
        entries: U64 = rows.view("<u8")
        return (entries if self._own is None else self._own(entries)), ok

    def _keep(self) -> None:
        """Put the page tables aside that were read, for `_verify`."""
        if len(self._pages) > _KEPT_LIMIT:
            self._forget()
        elif len(self._pages) != len(self._kept[0]):
            self._kept = np.array(list(self._pages), dtype=np.uint64), np.array(list(self._pages.values()))
            self._mappings.join()

    def _bridge(self) -> None:
        """Read the tables of small gaps in a range: the parts of the direct map that are split into small pages.

        With these it is one range, in which `straight` has the least to do.
        """
        known = self._mappings
        ends = known.start + known.size
        gap = (known.number[1:] == known.number[:-1]) & (known.start[1:] - ends[:-1] <= 1 << _LARGE_SHIFT)
        gap &= (known.number[1:] & _UNMAPPED == 0) & (known.size[:-1] >= 1 << _LARGE_SHIFT)
        for va in ends[:-1][gap][:_BRIDGES].tolist():
            self._walk_one(va)
        self._bridged = len(self._pages)
        known.join()

    def _verify(self) -> None:
        """Forget all translations, unless each page table that they came from is as it was."""
        at, before = self._kept
        if not len(at):
            self._forget()
            return
        now, ok = self.tables(at)
        if not (ok.all() and np.array_equal(now, before)):
            self._forget()
        elif self._bridged < len(self._pages) < _KEPT_LIMIT // 2:
            self._bridge()

    def _forget(self) -> None:
        self._mappings = _Known()
        self._tables = [_Known() for _ in self._tables]
        self._pages = {}
        self._bridged = 0
        self._kept = self._kept[0][:0], self._kept[1][:0]

    # -- batches ----------------------------------------------------------------------------------------------------

    def translate(self, va: U64, roots: U64 | None = None) -> tuple[U64, Mask]:
        """Physical addresses (n,) of the virtual addresses `va` (n,), and (n,) bool: which of them are mapped.

        `roots` (n,) gives each row a top-level table of its own. Unmapped rows have address 0.
        """
        if not len(va):
            return va, np.ones(0, dtype=np.bool_)
        if roots is None and len(va) == 1:  # for one, integers are quicker
            try:
                return np.array([self.translate_one(int(va[0]))], dtype=np.uint64), np.ones(1, dtype=np.bool_)
            except PageFault:
                return np.zeros(1, dtype=np.uint64), np.zeros(1, dtype=np.bool_)
        if roots is not None:
            shift, _ = self._walk(va, roots & np.uint64(self.paging.address))
        else:
            if self._depth == 0 or len(self._mappings.start) > _CACHE_LIMIT:
                self._forget()
            straight = self._mappings.straight(va)
            if straight is not None:
                return va + straight, np.ones(len(va), dtype=np.bool_)
            shift, hit = self._mappings.find(va)
            # Of many addresses one in each large page first: mostly that tells of all the others.
            for unit in (_LARGE_SHIFT, PAGE_SHIFT) if len(va) > _MANY else (PAGE_SHIFT,):
                if hit.all():
                    break
                missed = np.sort(va[~hit])
                missed = missed[_changes(missed >> np.uint64(unit))]
                # Both remember what is mapped around, too.
                found, size = self._walk_few(missed) if len(missed) <= _FEW else self._walk(missed)
                _, known = self._mappings.find(missed)
                if not known.all():
                    size = size[~known]
                    self._mappings.add(missed[~known] & ~(size - np.uint64(1)), size, found[~known])
                self._mappings.join()
                shift, hit = self._mappings.find(va)
            shift[~hit] = _UNMAPPED
        ok: Mask = shift & _UNMAPPED == 0
        return np.where(ok, va + shift, np.uint64(0)), ok

    def _walk(self, va: U64, roots: U64 | None = None) -> tuple[U64, U64]:
        """Walk the tables, one entry of each row a round, from the lowest table that is remembered of it.

        Gives what to add to each address to get the physical one (odd: not mapped), and the size of the naturally
        aligned range of which that is true. Nothing is remembered of `roots`.
        """
        paging = self.paging
        address = np.uint64(paging.address)
        shift = np.full(len(va), _UNMAPPED)
        level = np.full(len(va), paging.levels)
        table = np.full(len(va), self.root, dtype=np.uint64) if roots is None else roots.copy()
        if roots is None:
            for below in range(paging.levels - 1, 0, -1):
                if len(self._tables[below].start) > 1:
                    known, hit = self._tables[below].find(va)
                    table[hit] = known[hit]
                    level[hit] = below
        sign = va >> np.uint64(paging.canonical - 1)
        canonical = (sign == 0) | (sign == np.uint64((1 << (65 - paging.canonical)) - 1))
        level[~canonical] = 1
        live = np.flatnonzero(canonical)
        while len(live):
            here, page = level[live], va[live]
            size = np.uint64(1) << self._levels[here]
            index = (page >> self._levels[here]) & self._masks[here]
            if roots is None:
                entry = self._whole_tables(table[live], here, page, index)
            else:
                entry = self._entries(table[live] + index * np.uint64(paging.entry_size))
            present = entry & np.uint64(paging.present) != 0
            leaf = present & ((here == 1) | (self._large[here] & (entry & np.uint64(paging.large_bit) != 0)))
            target = entry & address
            outside = ~(size - np.uint64(1))
            shift[live[leaf]] = ((target & outside) - (page & outside))[leaf]
            onward = present & ~leaf
            live, here = live[onward], here[onward] - 1
            level[live], table[live] = here, target[onward]
            if roots is None and len(live):
                start, size, target = (page & outside)[onward], size[onward], target[onward]
                for below in set(here.tolist()):
                    new = here == below
                    self._tables[below].add(start[new], size[new], target[new])
        return shift, np.uint64(1) << self._levels[level]

    def _walk_few(self, va: U64) -> tuple[U64, U64]:
        """As `_walk`, address by address: integers are quicker for few."""
        found = [self._walk_one(one) for one in va.tolist()]
        shifts, sizes = zip(*found, strict=True)
        return np.array(shifts, dtype=np.uint64), np.array(sizes, dtype=np.uint64)

    def _walk_one(self, va: int) -> tuple[int, int]:
        """As `_walk`, of one address."""
        paging = self.paging
        if va >> (paging.canonical - 1) not in self._signs:
            return int(_UNMAPPED), PAGE_SIZE
        table, below = self.root, PAGE_SHIFT
        for below, mask, level, large in self._steps:
            entries = self._pages.get(table)
            if entries is None:
                entries = self._whole_table(table, level, va)
            entry = int(entries[(va >> below) & mask])
            if not entry & paging.present:
                break
            if level == 1 or entry & large:
                size = 1 << below
                return ((entry & paging.address & -size) - (va & -size)) & MASK64, size
            table = entry & paging.address
        return int(_UNMAPPED), 1 << below

    def _whole_table(self, table: int, level: int, va: int) -> U64:
        """One table, read whole and remembered; zeros where it cannot be read."""
        size = (1 << self.paging.splits[-1]) * self.paging.entry_size
        raw = self.memory.read(table, size)
        # A copy: what is remembered must not change with the guest.
        entries: U64 = np.frombuffer(bytes(raw) if raw is not None else bytes(size), dtype="<u8")
        if self._own is not None:
            entries = self._own(entries)
        self._pages[table] = entries
        self._survey(entries, level, va)
        return entries

    def _entries(self, pa: U64) -> U64:
        """Table entries (n,) by their addresses, 0 where they could not be read."""
        # Addresses come sorted, or grouped: what is read twice stands side by side.
        new = _changes(pa)
        unique = pa[new]
        raw = np.empty((len(unique), 8), dtype=np.uint8)
        self.memory.gather(unique, raw)
        found: U64 = raw.view("<u8")[:, 0]
        entries: U64 = (found if self._own is None else self._own(found))[np.cumsum(new) - 1]
        return entries

    def _whole_tables(self, table: U64, level: NDArray[np.intp], va: U64, index: U64) -> U64:
        """Entries (n,) of tables (n,) that are read whole and remembered: neighbours will be asked for next.

        An operation reads no table twice: what it remembers is of one piece, also when the guest goes on.
        """
        unique, first, back = np.unique(table, return_index=True, return_inverse=True)
        known = unique.tolist()
        fresh = [at for at, pa in enumerate(known) if pa not in self._pages]
        if fresh:
            rows, _ = self.tables(unique[fresh])
            for at, row in zip(fresh, rows, strict=True):
                self._pages[known[at]] = row
                self._survey(row, int(level[first[at]]), int(va[first[at]]))
        if len(known) == 1:
            single: U64 = self._pages[known[0]][index]
            return single
        return np.stack([self._pages[pa] for pa in known])[back, index]

    def _survey(self, entries: U64, level: int, va: int) -> None:
        """Remember all that a table maps itself; adjoining pages that lie side by side are one range."""
        paging = self.paging
        if level > 1 and level not in paging.large:
            return
        leaf = entries & np.uint64(paging.present) != 0
        if level > 1:
            leaf &= entries & np.uint64(paging.large_bit) != 0
        if not leaf.any():
            return
        size = 1 << paging.shift(level)
        base = va & ~(size * len(entries) - 1)
        start = np.uint64(base) + np.uint64(size) * np.arange(len(entries), dtype=np.uint64)
        shift = (entries & np.uint64(paging.address) & ~np.uint64(size - 1)) - start
        head = leaf & (_changes(shift) | ~np.concatenate(([False], leaf[:-1])))
        pages = np.bincount(np.cumsum(head)[leaf] - 1).astype(np.uint64)
        self._mappings.add(start[head], pages * np.uint64(size), shift[head])

    def gather(self, va: U64, width: int, roots: U64 | None = None) -> tuple[U8, Mask]:
        """`width` bytes at each of the `n` addresses: (n, width) uint8, and (n,) bool: which rows were read whole.

        Rows may cross pages, virtually contiguous ones that is. Unreadable rows are zero.
        """
        out = np.empty((len(va), width), dtype=np.uint8)
        if not len(va) or not width:
            return out, np.ones(len(va), dtype=np.bool_)
        va = np.ascontiguousarray(va, dtype=np.uint64)
        if roots is None and self._depth and getattr(self.memory, "flat", False):  # see `Flat`
            # Each in one range: then what is side by side in virtual memory is so in physical memory, pages or not.
            straight = self._mappings.straight(va, width)
            if straight is not None:
                ok = self.memory.gather(va + straight, out)
                if ok.all():
                    return out, ok
        if width > PAGE_SIZE:
            ok = np.ones(len(va), dtype=np.bool_)
            for start in range(0, width, PAGE_SIZE):
                part, good = self.gather(va + np.uint64(start), min(PAGE_SIZE, width - start), roots)
                out[:, start : start + PAGE_SIZE] = part
                ok &= good
            out[~ok] = 0
            return out, ok
        crossing = (va & np.uint64(PAGE_MASK)) > np.uint64(PAGE_SIZE - width)
        if not crossing.any():
            return out, self._gather_rows(va, out, roots)
        torn = np.flatnonzero(crossing)
        # The first part of a row that crosses a page is read with the others, moved up to end where the page does.
        edge = (va[torn] | np.uint64(PAGE_MASK)) + np.uint64(1)
        first, left = va.copy(), edge - va[torn]
        first[torn] = edge - np.uint64(width)
        ok = self._gather_rows(first, out, roots)
        both = np.empty((len(torn), 2 * width), dtype=np.uint8)
        both[:, :width] = out[torn]
        rest = np.empty((len(torn), width), dtype=np.uint8)
        ok[torn] &= self._gather_rows(edge, rest, None if roots is None else roots[torn])
        both[:, width:] = rest
        shifted = sliding_window_view(both.ravel(), width)
        out[torn] = shifted[2 * width * np.arange(len(torn)) + width - left.astype(np.intp)]
        out[~ok] = 0
        return out, ok

    def _gather_rows(self, va: U64, out: U8, roots: U64 | None) -> Mask:
        pa, mapped = self.translate(va, roots)
        ok = self.memory.gather(pa, out)
        if not mapped.all():
            ok &= mapped
            out[~ok] = 0
        return ok

    # -- one address ------------------------------------------------------------------------------------------------

    def translate_one(self, va: int) -> int:
        """The physical address of one virtual address. Raises `PageFault`.

        The integer twin of `translate`, over the same paging data; a property test holds the two equal.
        """
        return self._place(va & MASK64)[0]

    def _place(self, va: int) -> tuple[int, int, _Leaf | None]:
        """As `translate_one`, and how many bytes of its page there are from the address on; what was found for that,
        if it was not remembered. Raises `PageFault`."""
        if self._depth:
            shift, size = self._walk_one(va)
            if not shift & 1:
                return (va + shift) & MASK64, size - (va & (size - 1)), None
        leaf = pa, below, _ = self._leaf(va)
        return pa, (1 << below) - (va & ~(-1 << below)), leaf

    def _leaf(self, va: int) -> _Leaf:
        """Physical address, how many address bits the page has, and the table with its entry. Raises `PageFault`."""
        paging, read = self.paging, self.memory.read
        if va >> (paging.canonical - 1) not in self._signs:
            raise PageFault(va, paging.levels)
        table, width = self.root, paging.entry_size
        word = getattr(self.memory, "word", None) if self._own is None else None  # see `Words`
        for below, mask, level, large in self._steps:
            at = table + ((va >> below) & mask) * width
            entry = word(at) if word is not None else None
            if entry is None:
                raw = read(at, width)
                if raw is None:
                    raise PageFault(va, level)
                entry = int.from_bytes(raw, "little")
                if self._own is not None:
                    entry = int(self._own(np.array([entry], dtype=np.uint64))[0])
            if not entry & paging.present:
                raise PageFault(va, level, entry)
            target = entry & paging.address
            if level == 1 or entry & large:
                return target & -1 << below | va & ~(-1 << below), below, table
            table = target
        raise PageFault(va, 1)

    def read(self, va: int, size: int) -> bytes:
        """`size` bytes at `va`, whole or not at all. Raises `PageFault` or `NoMemory`."""
        leaf = None
        if size > 0:
            pa, room, leaf = self._place(va & MASK64)
            if size <= room:
                part = self.memory.read(pa, size)
                if part is None:
                    raise NoMemory(pa, size)
                return bytes(part)
        parts: list[bytes | memoryview] = []
        for pa, step in self._extents(va, size, leaf):
            part = self.memory.read(pa, step)
            if part is None:
                raise NoMemory(pa, step)
            parts.append(part)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def _extents(self, va: int, size: int, leaf: _Leaf | None = None) -> Iterator[tuple[int, int]]:
        """What a virtual range is in physical memory: addresses and sizes; `leaf` is its first page's. Raises
        `PageFault`."""
        while size > 0:
            va &= MASK64
            pa, below, table = leaf or self._leaf(va)
            leaf = None
            step = min(size, (1 << below) - (va & ~(-1 << below)))
            if step == size or below != PAGE_SHIFT:
                yield pa, step
            else:  # small pages: all that the table has of the range at once, and what adjoins is one
                pages = min((size + (va & PAGE_MASK) + PAGE_MASK) >> PAGE_SHIFT, self._left(va))
                step = min(size, (pages << PAGE_SHIFT) - (va & PAGE_MASK))
                yield from self._adjoining(table, va, step)
            va += step
            size -= step

    def _left(self, va: int) -> int:
        """Entries of the lowest table from that address's own on."""
        count = 1 << self.paging.splits[-1]
        return count - (va >> PAGE_SHIFT & count - 1)

    def _adjoining(self, table: int, va: int, size: int) -> Iterator[tuple[int, int]]:
        """As `_extents`, of a range that one lowest table has."""
        count = (size + (va & PAGE_MASK) + PAGE_MASK) >> PAGE_SHIFT
        first = (1 << self.paging.splits[-1]) - self._left(va)
        raw = self.memory.read(table + first * self.paging.entry_size, count * self.paging.entry_size)
        if raw is None:
            raise PageFault(va, 1)
        entries = np.frombuffer(bytes(raw), dtype="<u8")
        if self._own is not None:
            entries = self._own(entries)
        absent = np.flatnonzero(entries & np.uint64(self.paging.present) == 0)
        if len(absent):
            raise PageFault(((va >> PAGE_SHIFT) + int(absent[0])) << PAGE_SHIFT, 1, int(entries[absent[0]]))
        pa = entries & np.uint64(self.paging.address)
        begins = np.flatnonzero(np.diff(pa) != np.uint64(PAGE_SIZE)) + 1
        begin = 0
        for end in [*begins.tolist(), count]:
            skip = va & PAGE_MASK if begin == 0 else 0
            stop = min(end << PAGE_SHIFT, size + (va & PAGE_MASK))
            yield int(pa[begin]) + skip, stop - (begin << PAGE_SHIFT) - skip
            begin = end

    def read_u64(self, va: int) -> int:
        """The little-endian 64-bit number at `va`. Raises `PageFault` or `NoMemory`."""
        return int.from_bytes(self.read(va, 8), "little")
