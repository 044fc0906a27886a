"""Kdump's compressed format: makedumpfile's, and what QEMU's `dump-guest-memory -z` writes.

Knows the disk dump header, its sub header, the bitmap of pages and the page descriptors (makedumpfile's diskdump_mod.h
and IMPLEMENTATION; QEMU 7.2 include/sysemu/dump.h), and the "flattened" stream of records around them that QEMU writes.
Pages are read and decompressed when asked for. Notes are left to `notes`.
"""

from __future__ import annotations

import functools
import importlib
import struct
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np

from vmi_inside.drivers.dumpfile import LIMIT, DumpFile, Source, disjoint, need
from vmi_inside.drivers.notes import LARGEST, Note, Notes
from vmi_inside.errors import BadDump, Unsupported
from vmi_inside.memory import Run
from vmi_inside.types import I64, PAGE_SIZE, U8, U64, Mask

MAGIC: Final = b"KDUMP   "
FLAT_MAGIC: Final = b"makedumpfile\0\0\0\0"
_INCOMPLETE: Final = 0x8  # status: the disk was full
_LARGEST_BITMAP: Final = 1 << 30  # bytes: 32 TiB of RAM
_MOST_RUNS: Final = 1 << 21
_MOST_RECORDS: Final = 1 << 22
_SAMPLE: Final = 2048
_KEPT: Final = 1024  # decompressed pages, 4 MiB. A file does not change: they stay true between operations.

_DESCRIPTOR: Final = struct.Struct("<QIIQ")  # offset, size, flags, page flags


class _Width(NamedTuple):
    """A 64- or 32-bit kernel's layout: where `status` is in the header, and the sub header as far as we read it:
    phys_base, dump_level, split, start_pfn, end_pfn, VMCOREINFO's offset and size, the notes' offset and size."""

    status: int
    sub: struct.Struct


_WIDTHS: Final = (_Width(424, struct.Struct("<QIIQQQQQQ")), _Width(412, struct.Struct("<IIIIIQIQI")))
_COUNTS: Final = struct.Struct("<IIII")  # status, block size, blocks of the sub header, of both bitmaps


class _Codec(NamedTuple):
    """Decompresses (data, size of a page), never to more than a bounded size; raises `error`."""

    decompress: Callable[[bytes, int], bytes]
    error: type[Exception]


def _zlib() -> _Codec:
    return _Codec(lambda data, size: zlib.decompressobj().decompress(data, size), zlib.error)


def _lzo() -> _Codec:
    module: Any = importlib.import_module("lzallright")
    return _Codec(lambda data, size: bytes(module.LZOCompressor.decompress(data, size)), module.LZOError)


def _cramjam(into: str) -> Callable[[], _Codec]:
    def load() -> _Codec:
        module: Any = importlib.import_module("cramjam")
        kind, function = into.split(".")
        fill = getattr(getattr(module, kind), function)

        def decompress(data: bytes, size: int) -> bytes:
            page = bytearray(size)
            return bytes(page[: fill(data, page)])

        return _Codec(decompress, module.DecompressionError)

    return load


# The flag of a page's descriptor (and of the header's status): what decompresses it, and the package to install.
_CODECS: Final[dict[int, tuple[str, str, Callable[[], _Codec]]]] = {
    0x01: ("zlib", "", _zlib),
    0x02: ("lzo", "lzallright", _lzo),
    0x04: ("snappy", "cramjam", _cramjam("snappy.decompress_raw_into")),
    0x20: ("zstd", "cramjam", _cramjam("zstd.decompress_into")),
}


class Flattened:
    """What a flattened stream describes: records of (offset, size, bytes), in any order, the last one believed.

    Raises `BadDump` for a stream that ends before its closing record.
    """

    def __init__(self, file: DumpFile) -> None:
        self.path = file.path
        self._file = file
        record = struct.Struct(">qq")
        rows = array("q")
        at = 4096
        while True:
            offset, size = record.unpack(need(file, at, record.size, "the next record of the flattened dump"))
            if offset == -1 and size == -1:
                break
            at += record.size
            if not 0 < size <= file.size - at or not 0 <= offset < LIMIT:
                raise BadDump(f"{file.path} is truncated or damaged: at offset {at:#x} a record of {size} bytes")
            if len(rows) == 3 * _MOST_RECORDS:
                raise BadDump(f"{file.path} has too many records; bring it in order: makedumpfile -R NEW < {file.path}")
            rows.extend((offset, size, at))
            at += size
        if not rows:
            raise BadDump(f"{file.path} is empty: a flattened dump without a record")
        parts = disjoint(np.frombuffer(rows, np.int64).reshape(-1, 3)[::-1])
        # Arrays of machine words, for bisect: a list of as many integers would be five times as large.
        self._starts, self._sizes, self._offsets = (array("q", parts[:, column].tobytes()) for column in range(3))
        self.size = self._starts[-1] + self._sizes[-1]

    def bytes(self, offset: int, size: int) -> bytes | None:
        """See `Source.bytes`; None too where there is a gap between the records."""
        found: list[bytes] = []
        part = bisect_right(self._starts, offset) - 1
        while size > 0:
            if not 0 <= part < len(self._starts):
                return None
            skip = offset - self._starts[part]
            take = min(size, self._sizes[part] - skip)
            if skip < 0 or take <= 0:
                return None
            at = self._offsets[part] + skip
            found.append(self._file.data[at : at + take].tobytes())
            offset, size, part = offset + take, size - take, part + 1
        return b"".join(found)


class KdumpMemory:
    """`PhysicalMemory` over compressed pages. `runs` are the pages that the dump holds; what makedumpfile left out
    (zero, free or user pages, by its dump level) cannot be read."""

    def __init__(
        self, source: Source, page_size: int, descriptors: int, runs: I64, codecs: dict[int, _Codec], how: str,
        notices: list[str], notes: Notes,
    ) -> None:  # fmt: skip
        self.how, self.notices, self.notes = how, notices, notes
        self.runs = tuple(Run(start * page_size, count * page_size) for start, count in runs.tolist())
        self._source: Source | None = source
        self._page_size = page_size
        self._descriptors = descriptors
        self._codecs = codecs
        self._starts = array("q", runs[:, 0].tobytes())
        self._counts = array("q", runs[:, 1].tobytes())
        self._ranks = array("q", (np.cumsum(runs[:, 1]) - runs[:, 1]).tobytes())  # of each run's first page
        self._decompressed = functools.lru_cache(_KEPT)(self._decompress)

    def gather(self, pa: U64, out: U8) -> Mask:
        """See `PhysicalMemory.gather`. Every page is decompressed once: tens of microseconds each."""
        width = out.shape[1]
        ok = np.zeros(len(pa), np.bool_)
        out[:] = 0
        number, offset = np.divmod(pa, np.uint64(self._page_size))
        column = np.arange(width)
        pages, inverse = np.unique(number, return_inverse=True)
        rows = np.argsort(inverse, kind="stable")
        ends = np.cumsum(np.bincount(inverse, minlength=len(pages))).tolist()
        begin = 0
        for page, end in zip(pages.tolist(), ends, strict=True):
            here, begin = rows[begin:end], end
            data = self._page(page)
            if data is None:
                continue
            here = here[offset[here] + np.uint64(width) <= self._page_size]
            out[here] = np.frombuffer(data, np.uint8)[offset[here].astype(np.int64)[:, None] + column]
            ok[here] = True
        return ok

    def read(self, pa: int, size: int) -> bytes | None:
        """See `PhysicalMemory.read`."""
        if pa < 0 or size < 0:
            return None
        first, last = pa // self._page_size, (pa + max(size, 1) - 1) // self._page_size
        found: list[bytes] = []
        for number in range(first, last + 1):  # ends at the first page that is not there
            page = self._page(number)
            if page is None:
                return None
            found.append(page)
        skip = pa - first * self._page_size
        return b"".join(found)[skip : skip + size]

    def close(self) -> None:
        """Let go of the file and of the decompressed pages."""
        self._source = None
        self._decompressed.cache_clear()

    def _page(self, number: int) -> bytes | None:
        run = bisect_right(self._starts, number) - 1
        if run < 0 or number - self._starts[run] >= self._counts[run] or self._source is None:
            return None
        rank = self._ranks[run] + number - self._starts[run]
        descriptor = self._source.bytes(self._descriptors + rank * _DESCRIPTOR.size, _DESCRIPTOR.size)
        # By descriptor, not by number: all pages of zeros share one.
        return self._decompressed(*_DESCRIPTOR.unpack(descriptor)[:3]) if descriptor else None

    def _decompress(self, offset: int, size: int, flags: int) -> bytes | None:
        if self._source is None or size > self._page_size:
            return None
        page = self._source.bytes(offset, size)
        known = flags & sum(_CODECS)
        if page is not None and known:
            codec = self._codecs.get(known)
            if codec is None:
                return None
            try:
                page = codec.decompress(page, self._page_size)
            except codec.error:
                return None
        return page if page is not None and len(page) == self._page_size else None


def open_kdump(file: DumpFile, *, partial: bool = False) -> KdumpMemory:
    """The guest's memory out of a kdump file, flattened or not.

    Raises `BadDump`, and `Unsupported` for a part of a split dump, or for a compression whose package is missing:
    `lzallright` for lzo, `cramjam` for snappy and zstd. `partial` takes a truncated file for what it holds.
    """
    source: Source = Flattened(file) if file.bytes(0, len(FLAT_MAGIC)) == FLAT_MAGIC else file
    header = need(source, 0, 464, "the kdump header")
    if header[: len(MAGIC)] != MAGIC:
        raise BadDump(f"{file.path} is a flattened dump, but not of kdump's format; "
                      f"bring it in order: makedumpfile -R NEW < {file.path}")  # fmt: skip
    for width in _WIDTHS:
        status, page_size, sub_blocks, bitmap_blocks = _COUNTS.unpack_from(header, width.status)
        if page_size in (PAGE_SIZE, 4 * PAGE_SIZE, 16 * PAGE_SIZE) and sub_blocks and bitmap_blocks > 1:
            break
    else:
        raise BadDump(f"{file.path} is damaged: its kdump header makes no sense")
    _, level, split, _, _, info_at, info_size, notes_at, notes_size = width.sub.unpack(
        need(source, page_size, width.sub.size, "the kdump sub header")
    )
    if split:
        raise Unsupported(f"{file.path} is one part of a split dump; put the parts together: makedumpfile --reassemble")

    bitmap = (1 + sub_blocks) * page_size
    descriptors = bitmap + bitmap_blocks * page_size
    half = bitmap_blocks * page_size // 2  # two bitmaps: pages that the machine has, pages that the dump has
    runs = _runs(source, bitmap + half, half)
    notices: list[str] = []
    flags, missing = _survey(source, descriptors, int(runs[:, 1].sum()))
    if missing or status & _INCOMPLETE:
        text = "truncated: pages of guest memory that it should hold are not in the file"
        if not partial:
            raise BadDump(f"{file.path} is {text}; make the dump again, or read the rest with partial=True")
        notices.append(text)
    # QEMU writes dump level 1 (no zero pages) and leaves none out; so count.
    left_out = int(_runs(source, bitmap, half)[:, 1].sum() - runs[:, 1].sum())
    if left_out > 0:
        notices.append(f"{left_out} pages were left out when it was made (dump level {level}) and cannot be read")
    codecs = _codecs(file.path, flags | status)
    notes = Notes.parse(source.bytes(notes_at, min(notes_size, LARGEST)) or b"")
    if notes.vmcoreinfo is None and info_size:  # makedumpfile keeps it apart from the notes
        info = Note("VMCOREINFO", 0, source.bytes(info_at, min(info_size, LARGEST)) or b"")
        notes = replace(notes, all=(*notes.all, info))
    how = f"kdump, {' and '.join(_CODECS[flag][0] for flag in codecs) or 'not'} compressed"
    return KdumpMemory(source, page_size, descriptors, runs, codecs, how, notices, notes)


def _runs(source: Source, at: int, size: int) -> I64:
    """Runs of set bits, one for each page that the dump holds: (n, 2) int64 of (first page, pages)."""
    edges: list[I64] = []
    before = 0
    step = 1 << 20
    if size > _LARGEST_BITMAP:
        raise BadDump(f"{source.path} is damaged: a bitmap of {size} bytes would be more RAM than any machine has")
    for offset in range(0, size, step):
        data = np.frombuffer(need(source, at + offset, min(step, size - offset), "the bitmap of pages"), np.uint8)
        if not before and not data.any():
            continue
        bits = np.unpackbits(data, bitorder="little").view(np.int8)
        edges.append(np.flatnonzero(np.diff(bits, prepend=np.int8(before))) + offset * 8)
        before = int(bits[-1])
        if sum(map(len, edges)) > 2 * _MOST_RUNS:
            raise BadDump(f"{source.path} is damaged: its bitmap has more than {_MOST_RUNS} runs of pages")
    if before:
        edges.append(np.array([size * 8]))
    if not edges:
        raise BadDump(f"{source.path} has no guest memory in it")
    found = np.concatenate(edges).astype(np.int64).reshape(-1, 2)
    return np.stack((found[:, 0], found[:, 1] - found[:, 0]), axis=1)


def _survey(source: Source, at: int, pages: int) -> tuple[int, bool]:
    """All flags of a sample of the page descriptors, and whether something they point at is missing.

    The last ones are looked at too: a writer that was cut off is missing those.
    """
    sample = {*np.linspace(0, pages - 1, _SAMPLE).astype(np.int64).tolist(), *range(max(0, pages - _SAMPLE), pages)}
    every = 0
    missing = False
    for number in sorted(sample):
        descriptor = source.bytes(at + number * _DESCRIPTOR.size, _DESCRIPTOR.size)
        if descriptor is None:
            missing = True
            break
        offset, size, flags, _ = _DESCRIPTOR.unpack(descriptor)
        every |= flags
        missing |= offset + size > source.size
    return every, missing


def _codecs(path: str, flags: int) -> dict[int, _Codec]:
    codecs: dict[int, _Codec] = {}
    for flag, (name, package, load) in _CODECS.items():
        if flags & flag:
            try:
                codecs[flag] = load()
            except ImportError:
                raise Unsupported(f"{path} is compressed with {name}; to read it: pip install {package}") from None
    return codecs
