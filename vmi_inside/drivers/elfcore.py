"""ELF cores of whole machines: `virsh dump --memory-only`, QEMU's `dump-guest-memory`, kdump's /proc/vmcore.

Knows the ELF header, program headers (PT_LOAD by physical address) and where the notes lie; what notes say is left to
`notes`. Layouts: include/uapi/linux/elf.h.

Segments may overlap: with `paging` QEMU writes one for each virtual mapping of the same memory, and a vmcore has the
kernel's text a second time. They are joined by physical address.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np

from vmi_inside.drivers.dumpfile import DumpFile, MappedDump, inside, need
from vmi_inside.drivers.notes import LARGEST, Notes
from vmi_inside.errors import BadDump, Unsupported

_CORE: Final = 4  # ET_CORE
_LOAD: Final = 1  # PT_LOAD
_NOTE: Final = 4  # PT_NOTE
_MANY: Final = 0xFFFF  # PN_XNUM: the number of program headers is in sh_info of section 0
_LIMIT: Final = 1 << 18  # program headers: some three seconds of work at the worst


class _Class(NamedTuple):
    """One of ELF's two widths: header from e_type on, program header, where sh_info is, `p_paddr` of nowhere."""

    header: struct.Struct
    program: np.dtype[np.void]
    info: int
    nowhere: int


_CLASSES: Final = {
    1: _Class(
        struct.Struct("<HHIIIIIHHHHHH"),
        np.dtype([(n, "<u4") for n in ("type", "offset", "vaddr", "paddr", "filesz", "memsz", "flags", "align")]),
        28,
        (1 << 32) - 1,
    ),
    2: _Class(
        struct.Struct("<HHIQQQIHHHHHH"),
        np.dtype(
            [("type", "<u4"), ("flags", "<u4")]
            + [(n, "<u8") for n in ("offset", "vaddr", "paddr", "filesz", "memsz", "align")]
        ),
        44,
        (1 << 64) - 1,
    ),
}


def open_elf(file: DumpFile, *, partial: bool = False) -> MappedDump:
    """The guest's memory out of an ELF core. Raises `BadDump`, and `Unsupported` for big-endian machines.

    `partial` takes a truncated file for what it holds; what is missing is then said in `notices`.
    """
    wide = _CLASSES.get(need(file, 4, 1, "ELF's class")[0])
    if wide is None:
        raise BadDump(f"{file.path} is damaged: its ELF header is of no known class")
    if need(file, 5, 1, "ELF's byte order") != b"\x01":
        raise Unsupported(f"{file.path} is the core of a big-endian machine")
    kind, _, _, _, at, sections, _, _, entry_size, count, *_ = wide.header.unpack(
        need(file, 16, wide.header.size, "the ELF header")
    )
    if kind != _CORE:
        raise BadDump(f"{file.path} is an ELF program, library or object, not a core dump")
    if count == _MANY:
        (count,) = struct.unpack("<I", need(file, sections + wide.info, 4, "the section header"))
    if not count:
        raise BadDump(f"{file.path} is an ELF core without segments, as `xl dump-core` makes them: not supported")
    if count > _LIMIT:
        raise BadDump(f"{file.path} has {count} program headers, more than can be right; dump the guest without paging")
    if entry_size != wide.program.itemsize:
        raise BadDump(f"{file.path} is damaged: its program headers are {entry_size} bytes each")
    table = need(file, at, count * entry_size, "the table of program headers")
    headers = np.frombuffer(table, wide.program)

    loads = headers[(headers["type"] == _LOAD) & (headers["paddr"] != wide.nowhere)]
    left_out = sum(
        max(0, n - there) for n, there in zip(loads["memsz"].tolist(), loads["filesz"].tolist(), strict=True)
    )
    loads = loads[loads["filesz"] > 0]
    if len(loads) > 1 and not loads["paddr"].any() and loads["vaddr"].any():
        raise BadDump(f"{file.path} is the core of a process, not of a guest: it has no physical addresses")
    notices: list[str] = []
    if left_out:
        notices.append(f"{left_out:#x} bytes of memory were left out when it was made and cannot be read")
    ranges = list(zip(*(loads[name].tolist() for name in ("paddr", "filesz", "offset")), strict=True))
    memory = inside(file, ranges, notices, partial)
    return MappedDump(file, memory, "ELF core", notices, _notes(file, headers, notices))


def _notes(file: DumpFile, headers: np.ndarray[tuple[int], np.dtype[np.void]], notices: list[str]) -> Notes:
    data = b""
    for header in headers[headers["type"] == _NOTE][:4096]:
        data += file.bytes(int(header["offset"]), min(int(header["filesz"]), LARGEST - len(data))) or b""
    notes = Notes.parse(data)
    if notes.damaged:
        notices.append("the notes are damaged: registers and VMCOREINFO of some CPUs are not known")
    return notes
