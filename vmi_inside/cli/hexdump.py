"""Bytes for people, as `hexdump -C` shows them: address, sixteen bytes, the same as text; `*` for lines that repeat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

_LINE: Final = 16
#: What stands for each byte in the text at the right: itself, if a terminal shows it as that.
_SHOWN: Final = bytes(byte if 0x20 <= byte < 0x7F else 0x2E for byte in range(256))


class Hexdump:
    """Makes lines of bytes that come piece by piece, and of ranges of which nothing is known."""

    def __init__(self, address: int) -> None:
        self.address = address
        self._last: bytes | None = None
        self._starred = False
        self._rest = b""

    def add(self, data: bytes) -> Iterator[str]:
        """The lines of the bytes that follow."""
        data = self._rest + data
        whole = len(data) - len(data) % _LINE
        self._rest = data[whole:]
        for at in range(0, whole, _LINE):
            row = data[at : at + _LINE]
            if row == self._last:
                if not self._starred:
                    self._starred = True
                    yield "*\n"
            else:
                self._last, self._starred = row, False
                yield self._line(row)
            self.address += _LINE

    def skip(self, size: int, why: str) -> Iterator[str]:
        """A line for bytes of which nothing is known."""
        yield from self._ended()
        yield f"{self.address:016x}  -- {size} bytes: {why} --\n"
        self.address += size

    def end(self) -> Iterator[str]:
        """What is left, and the address behind the last byte."""
        yield from self._ended()
        yield f"{self.address:016x}\n"

    def _ended(self) -> Iterator[str]:
        if self._rest:
            yield self._line(self._rest)
            self.address += len(self._rest)
        self._rest, self._last, self._starred = b"", None, False

    def _line(self, row: bytes) -> str:
        left, right = row[:8].hex(" "), row[8:].hex(" ")
        return f"{self.address:016x}  {left:<23}  {right:<23}  |{row.translate(_SHOWN).decode('ascii')}|\n"


def lines(pieces: Iterable[tuple[int, bytes, str]]) -> Iterator[str]:
    """The lines of pieces that adjoin: (address, bytes, empty) or (address, zeros, why they are not known)."""
    dump: Hexdump | None = None
    for address, data, why in pieces:
        dump = dump or Hexdump(address)
        yield from dump.skip(len(data), why) if why else dump.add(data)
    if dump is not None:
        yield from dump.end()
