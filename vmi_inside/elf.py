"""ELF files of 64-bit x86 machines, as they are written: headers and notes.

Knows the layouts alone (include/uapi/linux/elf.h). What segments, sections and notes hold is left to who writes them.
"""

from __future__ import annotations

import struct
from typing import Final

HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM: Final = struct.Struct("<IIQQQQQQ")
SECTION: Final = struct.Struct("<IIQQQQIIQQ")
IDENT: Final = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
ET_EXEC, ET_CORE = 2, 4
EM_X86_64: Final = 62
PT_LOAD, PT_NOTE = 1, 4
#: The number of program headers that says: it is in `sh_info` of the first section.
PN_XNUM: Final = 0xFFFF

_NOTE: Final = struct.Struct("<III")


def note(owner: str, kind: int, data: bytes) -> bytes:
    """One note, padded as the next one needs it."""
    name = owner.encode("ascii") + b"\0"
    return _NOTE.pack(len(name), len(data), kind) + _padded(name) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
