"""The kernel's own symbol table, found in its image by shape and decoded.

Knows the layouts that kallsyms' tables have had since 5.x and tells them apart by consistency, never by a version.
Where the image lies is told by `find`; looking up is left to `symbols`.

Source: scripts/kallsyms.c, kernel/kallsyms.c. Names are strings of tokens; a block of 256 names begins at each marker.

    before 6.4   offsets, relative_base, num_syms, names, markers, [seqs_of_names,] token_table, token_index
    6.4          num_syms, names, markers, token_table, token_index, offsets, relative_base, seqs_of_names
    7.0          the same without relative_base: an offset counts from where it stands itself

Each begins at a multiple of 8, since 7.0 of 4.

Until 6.15 an offset below zero is an address (relative_base - 1 - offset) and one above it a per-CPU or absolute value
(CONFIG_KALLSYMS_ABSOLUTE_PERCPU); with the other setting, and since, all are addresses (relative_base + offset). The
length of a name is one byte; since 6.1, from 128 on two, low seven bits first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside.memory import PhysicalMemory
from vmi_inside.profile.find import region
from vmi_inside.profile.names import ROOM
from vmi_inside.profile.symbols import ORIGIN, Symbols
from vmi_inside.types import I64, PAGE_SIZE, U8, U32, align_down, align_up

#: In the token table the digits stand for themselves: no other table in the kernel has this run.
_DIGITS: Final = b"".join(b"%d\0" % digit for digit in range(10))
_TOKENS: Final = 256
_BLOCK: Final = 256
_SYMBOL_LIMIT: Final = 1 << 22
_NAME_LIMIT: Final = 2048  # bytes of one name, its tokens; KSYM_NAME_LEN is 512
_TEXT_LIMIT: Final = 1 << 28
_CHUNK: Final = 4 << 20
#: How far the tables reach around the token table, and how far behind the start of .rodata that stands.
_BEFORE: Final = 16 << 20
_BEHIND: Final = 6 << 20
_REACH: Final = 96 << 20
_KERNEL_HALF: Final = 0xFFFF_8000_0000_0000
_EXPAND: Final = 1 << 16  # tokens expanded at a time: bounds the temporary memory, stays in the processor's cache


@dataclass(frozen=True, slots=True)
class Kallsyms:
    """What the tables say: the symbols, and the address of `_text` as the running kernel has it.

    `origin` is None where the tables hold no address (7.0 on). They then tell where `_text` lies: `place` bytes before
    the offsets. `tables` says where in what was parsed each table begins, by the kernel's name for it, of which the
    kernel itself keeps no symbol.
    """

    symbols: Symbols
    origin: int | None
    place: int | None
    tables: Mapping[str, int] = field(default_factory=dict)


def find(memory: PhysicalMemory, start: int, reach: int = _REACH) -> Iterator[Kallsyms]:
    """Symbol tables that decode, in the `reach` bytes of guest RAM from the physical address `start` on.

    `start` is page-aligned, somewhere in or before the kernel's .rodata.
    """
    for at in range(start, min(start + reach, max((run.end for run in memory.runs), default=0)), _CHUNK):
        # The overlap is a whole digit run, so that none is cut in two.
        raw = region(memory, at, _CHUNK + len(_DIGITS))
        if raw is None:
            return  # the end of RAM
        text = bytes(raw)
        del raw
        here = text.find(_DIGITS)
        while here >= 0:
            low = max(start, align_down(at + here - _BEFORE, PAGE_SIZE))
            window = region(memory, low, at + here + _BEHIND - low)
            table = parse(np.frombuffer(window, np.uint8), at + here - low) if window is not None else None
            if table is not None:
                yield replace(table, tables={name: place + low for name, place in table.tables.items()})
            here = text.find(_DIGITS, here + 1)


def parse(image: U8, digits: int) -> Kallsyms | None:
    """Decode the tables in `image` (n,) uint8, whose token for the digit 0 stands at index `digits`.

    `image` starts at an address that is a multiple of 8. Gives None when the tables around it are not consistent.
    Costs about 0.3 µs a symbol.
    """
    tokens = _tokens(image, digits)
    if tokens is None:
        return None
    table_at, index_at, index = tokens
    for markers_at, markers in _markers(image, table_at):
        names = _names(image, markers_at, markers)
        if names is None:
            continue
        values = _values(image, names, index_at + 2 * _TOKENS)
        if values is not None:
            found = _decode(image[table_at:index_at], index, names, values)
            return found and replace(found, tables=_tables(names, values, markers_at, table_at, index_at))
    return None


@dataclass(frozen=True, slots=True)
class _Names:
    """Where the number of symbols stands, where the names begin and end, and where in `data` each one's length is."""

    count_at: int
    at: int
    data: U8
    starts: U32
    double: NDArray[np.bool_]  # whose length takes two bytes


@dataclass(frozen=True, slots=True)
class _Values:
    """The first `fixed` values are the symbols' own; the others are addresses less `base`, or less `at`'s address.

    `base` stands at `base_at`.
    """

    at: int
    values: I64
    fixed: int
    base: int | None
    base_at: int | None = None


def _tables(names: _Names, values: _Values, markers_at: int, table_at: int, index_at: int) -> dict[str, int]:
    """Where each table begins in the image, by its name in kernel/kallsyms_internal.h."""
    found = {
        "kallsyms_num_syms": names.count_at, "kallsyms_names": names.at, "kallsyms_markers": markers_at,
        "kallsyms_token_table": table_at, "kallsyms_token_index": index_at, "kallsyms_offsets": values.at,
    }  # fmt: skip
    return found if values.base_at is None else {**found, "kallsyms_relative_base": values.base_at}


def _tokens(image: U8, digits: int) -> tuple[int, int, I64] | None:
    """Where the token table and its index begin, and the index (257,) int64: where each token starts and one more."""
    tail = image[digits : digits + (1 << 14)]
    ends = np.flatnonzero(tail == 0)[: _TOKENS - 48]
    if len(ends) < _TOKENS - 48:
        return None
    size = int(ends[-1]) + 1
    index_at = align_up(digits + size, 4)
    for at in (index_at, align_up(digits + size, 8)):
        index = _numbers(image, at, _TOKENS, "<u2")
        if index is not None and index[0] == 0 and (np.diff(index) > 0).all() and index[48] <= digits:
            table_at = digits - int(index[48])
            # The end of each token is where the index says that the next one starts.
            if (index[49:] - index[48] == ends[:-1] + 1).all() and (image[table_at + index[1:] - 1] == 0).all():
                return table_at, at, np.append(index, digits + size - table_at)
    return None


def _markers(image: U8, table_at: int) -> Iterator[tuple[int, I64]]:
    """Where the markers may begin, and the markers: 0, then ascending by what 256 names can take."""
    for reach in (1 << 16, 1 << 22):  # right before the token table, or with three bytes a symbol between
        low = max(table_at - reach, table_at % 4)
        words = image[low:table_at].view("<u4").astype(np.int64)
        step = np.diff(words)
        good = (step >= 2 * _BLOCK) & (step < _BLOCK * 256)
        # A zero from which at least three ascend: real kernels have hundreds.
        broken = np.flatnonzero(~good)
        for start in np.flatnonzero((words[:-1] == 0) & good)[::-1].tolist():
            after = int(np.searchsorted(broken, start))
            last = int(broken[after]) if after < len(broken) else len(good)
            if last - start >= 3:
                yield low + 4 * start, words[start : last + 1]


def _names(image: U8, markers_at: int, markers: I64) -> _Names | None:
    """Find where the names begin: behind a count that fits the number of markers, and so that the blocks meet them."""
    low = max(markers_at - align_up(int(markers[-1]), 4) - _BLOCK * 512, markers_at % 4)
    size = markers_at - int(markers[-1]) - low
    if size < 4:
        return None
    words = image[low : low + (size & ~3)].view("<u4")
    # A seqs_of_names may look like more markers, so the last of them may be false: then no count fits.
    count_max = len(markers) * _BLOCK
    if count_max > _SYMBOL_LIMIT:
        return None
    fits = np.flatnonzero((words > count_max - _BLOCK) & (words <= count_max))
    for at in fits[::-1].tolist():
        count_at = low + 4 * at
        for names_at in (count_at + 8, count_at + 4):
            data = image[names_at:markers_at]
            found = _walk(data, markers, int(words[at]))
            if found is not None and len(data) - found[2] < 8:
                return _Names(count_at, names_at, data[: found[2]], found[0], found[1])
    return None


def _walk(data: U8, markers: I64, count: int) -> tuple[U32, NDArray[np.bool_], int] | None:
    """Step through all blocks of 256 names side by side: where each length stands, which take two bytes, the end.

    There are several blocks, all of them full but the last.
    """
    position = 0
    for _ in range(_BLOCK):  # the first block alone: most false beginnings end here
        if position + 2 > len(data):
            return None
        length = int(data[position])
        position += 1 + length if length < 128 else 2 + (length & 127 | int(data[position + 1]) << 7)
    if position != markers[1]:
        return None
    blocks = len(markers)
    starts = np.zeros((_BLOCK, blocks), np.uint32)
    double = np.zeros((_BLOCK, blocks), np.bool_)
    here = markers.copy()
    if here[-1] >= len(data):
        return None
    padded = np.append(data, np.zeros(2, np.uint8))
    rest = count - (blocks - 1) * _BLOCK
    for row in range(_BLOCK):
        if row == rest:
            end = int(here[-1])
            blocks -= 1
            here = here[:-1]
        size = padded[here].astype(np.int64)
        two = size >= 128
        if two.any():
            size = np.where(two, (size & 127) + (padded[here + 1].astype(np.int64) << 7) + 1, size)
        if size.min() == 0 or size.max() > _NAME_LIMIT:
            return None
        starts[row, :blocks] = here
        double[row, :blocks] = two
        here = here + size + 1
        if here.max() > len(data):
            return None
    if rest == _BLOCK:
        end = int(here[-1])
        here = here[:-1]
    if (here != markers[1:]).any():
        return None
    return starts.T.reshape(-1)[:count], double.T.reshape(-1)[:count], end


def _values(image: U8, names: _Names, behind: int) -> _Values | None:
    """The symbols' values, from the offsets before the names or behind the token index."""
    count = len(names.starts)
    size = 4 * count
    early = names.count_at - 8
    for at, base in ((behind, align_up(behind + size, 8)), (early - align_up(size, 8), early)):
        raw = _numbers(image, at, count, "<i4")
        found = _based(image, at, raw, base) if raw is not None else None
        if found is not None:
            return found
    # Without a base there is less to check, so this comes last: zeros would ascend too.
    raw = _numbers(image, behind, count, "<i4")
    if raw is not None and raw.any():
        placed = raw + 4 * np.arange(count)
        if (np.diff(placed) >= 0).all():
            return _Values(behind, placed, 0, None)
    return None


def _numbers(image: U8, at: int, count: int, dtype: str) -> I64 | None:
    """`count` numbers of that type at `at`, or None where the image does not reach."""
    raw = image[max(at, 0) : at + count * np.dtype(dtype).itemsize]
    return raw.view(dtype).astype(np.int64) if at >= 0 and len(raw) == count * np.dtype(dtype).itemsize else None


def _based(image: U8, at: int, raw: I64, base_at: int) -> _Values | None:
    """Offsets that count from the address standing at `base_at`, or None where they do not ascend."""
    base = int.from_bytes(image[max(base_at, 0) : base_at + 8].tobytes(), "little")
    if base < _KERNEL_HALF or base % PAGE_SIZE:
        return None
    negative = raw < 0
    fixed = int(np.argmax(negative))
    if fixed < len(raw) // 2 and negative[fixed:].all():
        values = np.concatenate((raw[:fixed], -1 - raw[fixed:]))
    else:
        values, fixed = raw & 0xFFFF_FFFF, 0
    if (np.diff(values[:fixed]) < 0).any() or (np.diff(values[fixed:]) < 0).any():
        return None
    return _Values(at, values, fixed, base, base_at)


def _decode(table: U8, index: I64, names: _Names, values: _Values) -> Kallsyms | None:
    """Expand the tokens of all names at once, and make the values relative to `_text`."""
    # Two more tokens: what a name's first length byte becomes, a NUL, and its second, nothing.
    width = np.concatenate((np.diff(index) - 1, (1, 0)))
    codes = names.data.astype(np.uint16)
    codes[names.starts] = _TOKENS
    codes[names.starts[names.double] + 1] = _TOKENS + 1
    total = int(np.bincount(codes, minlength=len(width)) @ width)
    if total > _TEXT_LIMIT:
        return None
    # A token is stored eight bytes at a time, which spoils the beginning of what follows it. So the last eight of the
    # long tokens go first, and the first eight of all, in order, set everything right.
    layers = range(8 * ((max(int(width.max()), 1) - 1) // 8), -1, -8)
    padded = np.zeros((len(width), layers[0] + 8), np.uint8)
    for code, size in enumerate(width[:_TOKENS].tolist()):
        padded[code, :size] = table[index[code] : index[code] + size]
    pieces = {layer: padded[:, layer : layer + 8].copy().view("<u8")[:, 0] for layer in layers}
    text = np.zeros(total + 1 + layers[0] + ROOM, np.uint8)
    words = np.ndarray((len(text) - 7,), "<u8", text, 0, (1,))  # one at every byte
    starts = np.empty(len(names.starts) + 1, np.uint32)
    at = row = 0
    for low in range(0, len(codes), _EXPAND):
        piece = codes[low : low + _EXPAND].astype(np.intp)
        wide = width[piece]
        place: I64 = np.cumsum(wide)
        end = at + int(place[-1])
        place += at - wide
        for layer in layers[:-1]:
            far = np.flatnonzero(wide > layer)
            words[place[far] + layer] = pieces[layer][piece[far]]
        words[place] = pieces[0][piece]
        text[end : end + layers[0] + 8] = 0
        rows = int(np.searchsorted(names.starts, np.uint32(low + len(piece))))  # of one type: nothing copied
        starts[row:rows] = place[names.starts[row:rows].astype(np.intp) - low] + 1
        at, row = end, rows
    starts[row] = total + 1
    if (np.diff(starts.astype(np.int64)) < 3).any():
        return None
    symbols = Symbols(text[: total + 1 + ROOM], starts, values.values, values.fixed)
    found = symbols.find(ORIGIN)
    if found is None or found < values.fixed:
        return None
    origin = int(values.values[found])
    values.values[values.fixed :] -= origin
    if values.base is None:
        return Kallsyms(symbols, None, -origin)
    return Kallsyms(symbols, values.base + origin, None)
