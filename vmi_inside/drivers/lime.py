"""LiME's format: ranges of physical memory, each behind a header of 32 bytes.

Knows version 1 (LiME's own documentation, `doc/README.md`): magic, version, first and last address, reserved. AVML's
compressed variant has another magic and is left out.
"""

from __future__ import annotations

import struct
from typing import Final

from vmi_inside.drivers.dumpfile import DumpFile, MappedDump, inside
from vmi_inside.errors import BadDump

MAGIC: Final = b"EMiL"
_HEADER: Final = struct.Struct("<4sIQQ8x")
_LIMIT: Final = 1 << 16  # ranges: a machine's memory map has tens


def open_lime(file: DumpFile, *, partial: bool = False) -> MappedDump:
    """The memory out of a LiME file. Raises `BadDump`; `partial` takes a truncated file for what it holds."""
    ranges: list[tuple[int, int, int]] = []
    notices: list[str] = []
    at = 0
    while at < file.size:
        head = file.bytes(at, _HEADER.size)
        magic, version, first, last = _HEADER.unpack(head) if head else (b"", 0, 0, 0)
        if magic != MAGIC or version != 1 or last < first or len(ranges) == _LIMIT:
            text = f"truncated or damaged: behind {len(ranges)} ranges, no LiME header of version 1 at offset {at:#x}"
            if not partial:
                raise BadDump(f"{file.path} is {text}")
            notices.append(text)
            break
        ranges.append((first, last - first + 1, at + _HEADER.size))
        at += _HEADER.size + last - first + 1
    return MappedDump(file, inside(file, ranges, notices, partial), "LiME dump", notices)
