"""What files hold, as far as it is in the page cache.

Knows that an inode's size says where a file ends, and what a page that is not in the cache means: a hole where files
are kept in memory alone, else something that only the guest's disk has. Which files there are is `cached_files`'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np

from vmi_inside.errors import NoFile
from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.page_cache import HUGE, cached_pages, filesystems, in_memory
from vmi_inside.types import I64, PAGE_SHIFT, PAGE_SIZE, U8, U64, Mask, distinct

#: No file is believed to be larger; what is said to be so is cut.
SIZE_LIMIT: Final = 1 << 46
#: What `read` gives in one piece.
READ_LIMIT: Final = 1 << 30
#: Bytes that are read at once.
CHUNK: Final = 4 << 20

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of a file from `offset` on; `bad` (n,) marks pages that could not be read after all, and are zeros."""

    offset: int
    data: U8
    bad: Mask


@dataclass(frozen=True, slots=True)
class FileContent:
    """What is known of one file: of `size` bytes these `pages` (m,), ascending, at the physical addresses `place` (m,).

    `lost` (k,) are pages that were there, and are in swap or gone. `sparse` says that all others are holes, and so
    zeros; else they are only on the guest's disk. `address` is the inode's; `fault` says what could not be believed.
    """

    kernel: Kernel = field(repr=False)
    address: int
    size: int
    pages: I64 = field(repr=False)
    place: U64 = field(repr=False)
    lost: I64 = field(repr=False)
    sparse: bool
    fault: str

    def missing(self) -> list[Range]:
        """Ranges of bytes, each from its first up to the one behind its last, that are not in memory."""
        if self.sparse:
            return [(start << PAGE_SHIFT, min(end << PAGE_SHIFT, self.size)) for start, end in _ranges(self.lost)]
        last = _pages(self.size)
        edges = [(-1, 0), *_ranges(self.pages), (last, last)]
        return [
            (end << PAGE_SHIFT, min(start << PAGE_SHIFT, self.size))
            for (_, end), (start, _) in pairwise(edges)
            if end < start
        ]

    def chunks(self, size: int = CHUNK) -> Iterator[Chunk]:
        """All that is in memory, ascending, in chunks of at most `size` bytes."""
        most = max(size >> PAGE_SHIFT, 1)
        for first, behind in _ranges(self.pages):
            start = int(self.pages.searchsorted(first))
            for page in range(first, behind, most):
                place = self.place[start + page - first :][: min(behind - page, most)]
                rows = np.empty((len(place), PAGE_SIZE), dtype=np.uint8)
                ok = self.kernel.space.memory.gather(place, rows)
                offset = page << PAGE_SHIFT
                yield Chunk(offset, rows.reshape(-1)[: self.size - offset], ~ok)

    def read(self) -> bytes:
        """All of it, zeros for what is missing. Raises `NoFile` for more than 1 GiB: take chunks of that."""
        if self.size > READ_LIMIT:
            raise NoFile(f"a file of {self.size} bytes is not read in one piece; take its chunks")
        data = np.zeros(self.size, dtype=np.uint8)
        for chunk in self.chunks():
            data[chunk.offset : chunk.offset + len(chunk.data)] = chunk.data
        return data.tobytes()


def contents(kernel: Kernel, address: Iterable[int]) -> list[FileContent]:
    """What is known of the files of the inodes at these addresses, in that order."""
    asked = list(address)
    listed = list(dict.fromkeys(asked))
    rows = kernel.structs("inode", np.array(listed, dtype=np.uint64)).fetch("i_size", "i_sb")
    if not listed:
        return []
    with kernel.operation():
        found = cached_pages(kernel, rows.at("i_data"))
        sparse = in_memory(kernel, rows) & found.whole
        huge = filesystems(kernel, rows) == HUGE
    out: dict[int, FileContent] = {}
    for row, (at, claimed) in enumerate(zip(listed, rows.number("i_size").tolist(), strict=True)):
        size = min(max(claimed, 0), SIZE_LIMIT)
        words = []
        if rows.fault[row]:
            words.append("inode unreadable")
        elif size != claimed:
            words.append(f"its size is said to be {claimed}")
        if huge[row]:
            words.append("files of huge pages are not read")
        if not found.whole[row]:
            words.append("its page cache could not be read to its end")
        mine = found.of(row)
        index, place = found.index[mine], found.pa[mine]
        inside = (index >= 0) & (index < _pages(size)) & ~huge[row]
        there = inside & (place != 0)
        gone = distinct(index[inside & (place == 0)])
        # Of hostile trees a page may be there twice; the first counts.
        pages, first = np.unique(index[there], return_index=True)
        out[at] = FileContent(
            kernel, at, size, pages, place[there][first], gone, bool(sparse[row]), "; ".join(words)
        )  # fmt: skip
    return [out[at] for at in asked]


def _pages(size: int) -> int:
    """How many pages a file of that many bytes has."""
    return (size + PAGE_SIZE - 1) >> PAGE_SHIFT


def _ranges(pages: I64) -> list[Range]:
    """Ranges of ascending numbers, each from its first up to the one behind its last."""
    if not len(pages):
        return []
    breaks = np.flatnonzero(pages[1:] - pages[:-1] != 1) + 1
    first = pages[np.concatenate(([0], breaks))]
    last = pages[np.concatenate((breaks - 1, [len(pages) - 1]))]
    return list(zip(first.tolist(), (last + 1).tolist(), strict=True))
