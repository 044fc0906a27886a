"""Printable strings in bytes that come piece by piece.

Knows ASCII, and UTF-16 (little endian) of ASCII's characters, as `strings -el`. Where the bytes come from is left to
others; a string that goes from one piece into the next is found whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

#: A longer string is given in parts.
LENGTH_LIMIT: Final = 4096
ENCODINGS: Final = ("ascii", "utf16")

_PRINTABLE: Final = bytes([*range(0x20, 0x7F), 0x09])
_SET: Final = frozenset(_PRINTABLE)
#: What each byte can be in a character of two: its first half (A), its second (0), neither.
_SHAPES: Final = bytes(0x41 if byte in _SET else 0 if byte == 0 else 0x42 for byte in range(256))


@dataclass(frozen=True, slots=True)
class String:
    """A string: where it begins, how it is encoded, what it says."""

    address: int
    encoding: str
    text: str


def strings(
    pieces: Iterable[tuple[int, bytes]], minimum: int = 4, encodings: Sequence[str] = ENCODINGS
) -> Iterator[String]:
    """Strings of at least `minimum` characters in pieces (address, bytes), ascending. Raises ValueError for an encoding
    that is none of `ENCODINGS`."""
    finders = [_Finder(name, minimum) for name in encodings]
    end = None
    for address, data in pieces:
        for finder in finders:
            if address != end:
                yield from finder.flush()
            yield from finder.add(address, data)
        end = address + len(data)
    for finder in finders:
        yield from finder.flush()


class _Finder:
    """Finds strings of one encoding; keeps what may go on in the next piece."""

    def __init__(self, encoding: str, minimum: int) -> None:
        if encoding not in ENCODINGS:
            raise ValueError(f"no encoding {encoding!r}; there are {', '.join(ENCODINGS)}")
        self.encoding = encoding
        wide = encoding == "utf16"
        unit = rb"(?:[\x20-\x7e\t]\x00)" if wide else rb"[\x20-\x7e\t]"
        self._step = 2 if wide else 1
        self._shortest = b"A\0" * max(minimum, 1)
        self._pattern = re.compile(unit + b"{%d,%d}" % (max(minimum, 1), max(LENGTH_LIMIT, minimum)))
        self._tail: Callable[[bytes], int] = _wide_tail if wide else _tail
        self._rest = b""
        self._at = 0

    def add(self, address: int, data: bytes) -> Iterator[String]:
        data = self._rest + data
        base = address - len(self._rest)
        cut = self._tail(data)
        if len(data) - cut >= LENGTH_LIMIT * self._step:  # long enough to be given now; the next part begins at its end
            cut = len(data) - len(data) % self._step
        yield from self._found(base, data, cut)
        self._rest, self._at = data[cut:], base + cut

    def flush(self) -> Iterator[String]:
        rest, self._rest = self._rest, b""
        yield from self._found(self._at, rest, len(rest))

    def _found(self, base: int, data: bytes, end: int) -> Iterator[String]:
        for hit in self._hits(data, end) if self._step > 1 else self._pattern.finditer(data, 0, end):
            yield String(base + hit.start(), self.encoding, hit[0][:: self._step].decode("ascii"))

    def _hits(self, data: bytes, end: int) -> Iterator[re.Match[bytes]]:
        """The pattern's matches, each looked for where the shortest one can be: seven times as quick where few are."""
        shapes, at = data.translate(_SHAPES), 0
        while (at := shapes.find(self._shortest, at, end)) >= 0:
            hit = self._pattern.match(data, at, end)
            if hit is None:  # cannot be: what was found is the shortest match
                break
            yield hit
            at = hit.end()


def _tail(data: bytes) -> int:
    """Where the last characters begin that may go on."""
    return len(data.rstrip(_PRINTABLE))


def _wide_tail(data: bytes) -> int:
    """The same of characters of two bytes, the last of which may be there by half."""
    at = len(data)
    if at and data[at - 1] in _SET:
        at -= 1
    low = max(at - 2 * LENGTH_LIMIT, 0)
    while at - 2 >= low and data[at - 1] == 0 and data[at - 2] in _SET:
        at -= 2
    return at
