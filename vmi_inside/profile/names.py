"""Finding one of some hundred thousand names in microseconds, with an index that is two flat arrays.

Knows how to hash names that lie in one text, all at once or one alone. What the names stand for, and whether one that
the index offers is the one that was asked for, is left to the caller.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside.types import I64, MASK64, U8, U32, U64

BUCKETS: Final = 1 << 16
#: Bytes that must follow the last name of a text, so that eight can be loaded anywhere.
ROOM: Final = 8

_SHIFT: Final = 48
_ODD: Final = 0x9E3779B97F4A7C15  # 2**64 by the golden ratio: multiplying spreads the low bits over the high ones


class Index:
    """Rows by hash of their names: `order` (n,) uint32 sorted by hash, `buckets` (65537,) uint32 where each begins."""

    def __init__(self, order: U32, buckets: U32) -> None:
        self.order = order
        self.buckets = buckets

    @classmethod
    def of(cls, text: U8, begin: I64, length: I64, rows: NDArray[np.integer] | None = None) -> Index:
        """Index the names at `begin` (n,) in `text`, each `length` (n,) bytes long; `ROOM` bytes follow the last.

        `rows` (n,) are the numbers that `candidates` gives, 0 to n - 1 unless told.
        """
        words: U64 = np.ndarray((max(len(text) - 7, 0),), "<u8", text, 0, (1,))  # one at every byte
        head = words[begin]
        short = np.flatnonzero(length < 8)
        head[short] &= (np.uint64(1) << (length[short] * 8).astype(np.uint64)) - np.uint64(1)
        tail = words[np.maximum(begin + length - 8, 0)]
        tail[short] = 0
        key = (head ^ (tail * np.uint64(3)) ^ length.astype(np.uint64)) * np.uint64(_ODD)
        key = (key ^ (key >> np.uint64(32))) * np.uint64(_ODD)
        bucket = (key >> np.uint64(_SHIFT)).astype(np.uint16)
        order = np.argsort(bucket, kind="stable")  # a radix sort for 16 bits: about a millisecond
        buckets = np.zeros(BUCKETS + 1, np.uint32)
        np.cumsum(np.bincount(bucket, minlength=BUCKETS), out=buckets[1:])
        return cls((order if rows is None else rows[order]).astype(np.uint32), buckets)

    def candidates(self, name: bytes) -> list[int]:
        """The rows that may have this name, ascending if they were given so; some may have another."""
        tail = int.from_bytes(name[-8:], "little") if len(name) >= 8 else 0
        key = (int.from_bytes(name[:8], "little") ^ (tail * 3 & MASK64) ^ len(name)) * _ODD & MASK64
        bucket = ((key ^ key >> 32) * _ODD & MASK64) >> _SHIFT
        found: list[int] = self.order[int(self.buckets[bucket]) : int(self.buckets[bucket + 1])].tolist()
        return found
