"""Damage where it is read: words and rows of what a reading asks memory for, turned into lies of the same kind.

Knows addresses: pointers to themselves, to others of the same kind, to nowhere; counts without end; names without end.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final, Protocol

import numpy as np

from tests.fuzz.image import Asked
from tests.fuzz.mutate import TEXTS, WORDS
from vmi_inside.memory import PhysicalMemory
from vmi_inside.types import PAGE_SIZE

#: A canonical kernel address that nothing maps, one that is not canonical, one of a process.
_NOWHERE: Final = (0xFFFF_C123_4567_8000, 0xDEAD_4EAD_DEAD_4EAD, 0x7FFF_DEAD_B000)
_MOST_ROWS: Final = 2048


class Damaged(Protocol):
    """RAM that can be written over."""

    @property
    def memory(self) -> PhysicalMemory: ...

    def damage(self, pa: int, data: bytes) -> None: ...


class Damage:
    """Damages RAM, at places out of what a reading asked for; `direct` is where RAM is mapped by the kernel."""

    def __init__(self, image: Damaged, direct: int, random: Random) -> None:
        self.image = image
        self.direct = direct
        self.random = random

    def some(self, asked: Sequence[Asked]) -> None:
        """One to four damages."""
        for _ in range(1 + min(int(self.random.expovariate(1.0)), 3)):
            self.one(asked)

    def one(self, asked: Sequence[Asked]) -> None:
        """One: a word of one row, of several, of all rows of one gather; a whole row; a text."""
        random = self.random
        one = random.choice(asked)
        rows = one.pa
        many = random.random()
        if many < 0.6:
            rows = rows[[random.randrange(len(rows))]]
        elif many < 0.8:
            rows = rows[sorted(random.sample(range(len(rows)), min(len(rows), 1 + random.randrange(8))))]
        else:
            rows = rows[:_MOST_ROWS]
        deed = random.random()
        if deed < 0.75:
            self._words(rows, one)
        elif deed < 0.9:
            self._text(rows, one.width)
        else:
            fill = random.choice((b"\0", b"\xff", b"A", b""))
            width = min(one.width, PAGE_SIZE)
            for pa in rows.tolist():
                at = pa + random.randrange(one.width - width + 1)
                self.image.damage(at, fill * width if fill else random.randbytes(width))

    def _words(self, rows: np.ndarray[tuple[int], np.dtype[np.uint64]], one: Asked) -> None:
        random = self.random
        size = 8 if one.width >= 8 and random.random() < 0.8 else min(one.width, random.choice((1, 2, 4)))
        offset = random.randrange(one.width // size) * size
        kind = random.randrange(9)
        other = int(random.choice(one.pa.tolist()[:_MOST_ROWS]))
        fixed = random.choice(WORDS)
        lost = random.choice(_NOWHERE)
        for pa in rows.tolist():
            at = pa + offset
            raw = self.image.memory.read(at, size)
            old = int.from_bytes(raw or bytes(size), "little")
            theirs = self.image.memory.read(other + offset, size)
            value = (
                fixed,
                lost,
                self.direct + pa,  # itself
                self.direct + at,  # the very member
                self.direct + other,  # another of its kind
                int.from_bytes(theirs or bytes(size), "little"),  # what another has
                old ^ 1 << random.randrange(8 * size),
                old + random.choice((-4096, -8, -1, 1, 8, 4096)),
                random.getrandbits(64),
            )[kind]
            self.image.damage(at, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))

    def _text(self, rows: np.ndarray[tuple[int], np.dtype[np.uint64]], width: int) -> None:
        text = self.random.choice((*TEXTS, b"A" * 4096))
        offset = 0 if self.random.random() < 0.5 else self.random.randrange(width)
        for pa in rows.tolist():
            self.image.damage(pa + offset, text[: max(width - offset, 16)])
