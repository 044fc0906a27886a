"""Bytes made wrong: flips, sizes that lie, pieces moved, doubled and cut off, text that no terminal should see.

Knows bytes only. What they mean is the target's matter; `WORDS` are the numbers that formats stumble over.
"""

from __future__ import annotations

from random import Random
from typing import Final

#: Numbers at the edges of what sizes, counts and offsets are.
WORDS: Final = (
    0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0xFFF, 0x1000, 0x7FFF, 0x8000, 0xFFFF, 0x10000, (1 << 31) - 1, 1 << 31,
    (1 << 32) - 1, 1 << 32, (1 << 47) - 1, 1 << 47, (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1,
)  # fmt: skip
#: Escape sequences, marks of direction, invalid UTF-8, half a surrogate, line ends, a formula, a format.
TEXTS: Final = (
    b"\x1b]0;owned\x07", b"\x1b[2J\x1b[31m", b"\xe2\x80\xae", b"\xff\xfe\xc0\x80", b"\xed\xa0\x80", b"\r\n\x00\n",
    b"\xc2\x9b31m", b"=1+1", b"%s%n", b"../../etc/passwd", b"\x7f\x08\x08", b"[bold red]", b"{}", b"\\\"'`$(id)",
)  # fmt: skip
_MOST: Final = 1 << 22


def mutate(seed: bytes, random: Random) -> bytes:
    """`seed` with one to eight things done to it."""
    data = bytearray(seed)
    for _ in range(1 + min(int(random.expovariate(0.7)), 7)):
        random.choice(_DEEDS)(data, random)
        del data[_MOST:]
    return bytes(data)


def _at(data: bytearray, random: Random) -> int:
    """A place: often among the first bytes, where headers are."""
    top = len(data) if random.random() < 0.6 else min(len(data), 256)
    return random.randrange(top) if top else 0


def _flip(data: bytearray, random: Random) -> None:
    if data:
        data[_at(data, random)] ^= 1 << random.randrange(8)


def _byte(data: bytearray, random: Random) -> None:
    if data:
        data[_at(data, random)] = random.randrange(256)


def _word(data: bytearray, random: Random) -> None:
    size = random.choice((1, 2, 4, 8))
    at = _at(data, random) // size * size
    value = random.choice(WORDS) if random.random() < 0.7 else random.getrandbits(64)
    if random.random() < 0.3 and at + size <= len(data):
        value = int.from_bytes(data[at : at + size], "little") + random.choice((-8, -1, 1, 8))
    order = "big" if random.random() < 0.1 else "little"
    data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, order)  # type: ignore[arg-type]


def _text(data: bytearray, random: Random) -> None:
    at = _at(data, random)
    new = random.choice(TEXTS) * random.choice((1, 1, 3))
    data[at : at + (len(new) if random.random() < 0.8 else 0)] = new


def _cut(data: bytearray, random: Random) -> None:
    del data[_at(data, random) :]


def _take(data: bytearray, random: Random) -> None:
    at = _at(data, random)
    del data[at : at + random.choice((1, 4, 8, 64, 4096))]


def _double(data: bytearray, random: Random) -> None:
    at, size = _at(data, random), random.choice((1, 8, 64, 1024))
    data[at:at] = data[at : at + size] * random.choice((1, 1, 2, 50))


def _move(data: bytearray, random: Random) -> None:
    size = random.choice((4, 8, 16, 64, 512))
    there, here = _at(data, random), _at(data, random)
    data[there : there + size] = data[here : here + size]


def _fill(data: bytearray, random: Random) -> None:
    at, size = _at(data, random), random.choice((8, 64, 512, 4096))
    size = min(size, len(data) - at)
    data[at : at + size] = bytes([random.choice((0, 0xFF, 0x41))]) * size


_DEEDS: Final = (_flip, _flip, _byte, _word, _word, _word, _word, _text, _cut, _take, _double, _move, _fill)
