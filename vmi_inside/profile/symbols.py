"""A kernel's symbols as flat arrays: found by name in microseconds, stored and mapped as they are.

Knows names, types and values relative to the start of the kernel's text. Where they were read from is left to
`kallsyms`, where the kernel runs to `profile`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.errors import WrongProfile
from vmi_inside.profile.arrays import Arrays, take
from vmi_inside.profile.names import BUCKETS, Index
from vmi_inside.types import I64, U8, U32

#: The symbol that the values are relative to.
ORIGIN: Final = "_text"


@dataclass(frozen=True, slots=True)
class Symbol:
    """One symbol: `type` is nm's letter, `value` relative to `_text`, unless `fixed`: then it does not move."""

    name: str
    type: str
    value: int
    fixed: bool


class Symbols:
    """All symbols of one kernel build, ascending by value, those that do not move (per-CPU, absolute) first.

    `text` is NUL, then for every symbol its type letter, its name and a NUL, then 8 bytes of zeros. `starts` (n + 1,)
    uint32 are the places of the type letters, and where one more would stand. `values` (n,) int64.
    """

    def __init__(
        self,
        text: U8,
        starts: U32,
        values: I64,
        fixed: int,
        index: Index | None = None,
    ) -> None:
        self.text = text
        self.starts = starts
        self.values = values
        self.fixed = fixed
        if index is None:
            begin = starts[:-1].astype(np.int64) + 1
            index = Index.of(text, begin, starts[1:].astype(np.int64) - 1 - begin)
        self.index = index
        self._buffer = text.data

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Symbols:
        """From what `arrays` gave, without copying. Raises `WrongProfile` when they do not fit together."""
        text, starts = take(arrays, "text", np.uint8), take(arrays, "starts", np.uint32)
        values, fixed = take(arrays, "values", np.int64), take(arrays, "fixed", np.int64)
        order, buckets = take(arrays, "order", np.uint32), take(arrays, "buckets", np.uint32)
        n = len(values)
        if (len(starts), len(order), len(buckets), len(fixed)) != (n + 1, n, BUCKETS + 1, 1):
            raise WrongProfile("the symbols' arrays do not fit together")
        return cls(text, starts, values, int(fixed[0]), Index(order, buckets))

    def arrays(self) -> Arrays:
        """The arrays that `from_arrays` takes."""
        return {
            "text": self.text,
            "starts": self.starts,
            "values": self.values,
            "fixed": np.array([self.fixed], np.int64),
            "order": self.index.order,
            "buckets": self.index.buckets,
        }

    def __getitem__(self, row: int) -> Symbol:
        label = self._label(row)
        return Symbol(label[1:], label[:1], int(self.values[row]), row < self.fixed)

    def _label(self, row: int) -> str:
        start, end = int(self.starts[row]), int(self.starts[row + 1]) - 1
        return str(self._buffer[start:end], "latin-1")

    def rows(self, name: str) -> list[int]:
        """Every symbol of that name, ascending. Kernels have many functions and variables of one name."""
        raw = name.encode("latin-1", "replace")
        found = []
        for row in self.index.candidates(raw):
            if row >= len(self.values):
                raise WrongProfile("the index of symbols is damaged")
            start, end = int(self.starts[row]) + 1, int(self.starts[row + 1]) - 1
            if end - start == len(raw) and self._buffer[start:end] == raw:
                found.append(row)
        return found

    def find(self, name: str) -> int | None:
        """The symbol of that name, or None: of several one that moves, and of these a global one."""
        rows = self.rows(name)
        if len(rows) < 2:
            return rows[0] if rows else None
        return min(rows, key=lambda row: (row < self.fixed, not self._label(row)[:1].isupper(), row))

    def at(self, value: int, *, first: bool = False) -> tuple[int, int] | None:
        """The symbol that moves at or last before `value` (relative to `_text`), and how far `value` is behind it.

        Of several at one address the first global one, or the very `first`, as the kernel chooses. None before the
        first symbol.
        """
        moving = self.values[self.fixed :]
        row = int(np.searchsorted(moving, value, "right")) - 1
        if row < 0:
            return None
        start = int(moving[row])
        rows = range(self.fixed + int(np.searchsorted(moving, start, "left")), self.fixed + row + 1)
        best = next((one for one in rows if first or self._label(one)[:1].isupper()), rows[0])
        return best, value - start

    def matching(self, prefix: str) -> Iterator[Symbol]:
        """The symbols whose names start with `prefix`, ascending by value."""
        pattern = b"\0[^\0]" + re.escape(prefix.encode("latin-1", "replace"))
        for hit in re.finditer(pattern, self._buffer):
            yield self[int(np.searchsorted(self.starts, np.uint32(hit.start() + 1)))]
