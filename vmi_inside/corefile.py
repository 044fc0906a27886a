"""All that stands before memory in a dump that is an ELF core: headers and notes.

Knows how a kernel's own /proc/vmcore looks, and by what crash, makedumpfile and drgn know one. What a kernel tells
those who dump it is `linux.vmcore`'s knowledge; memory itself is written by `dumping`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vmi_inside import elf
from vmi_inside.drivers import notes
from vmi_inside.errors import Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux import vmcore
from vmi_inside.memory import Paravirtual, Run
from vmi_inside.types import PAGE_SIZE, align_up

#: p_align of memory, as in a kernel's own: by its being 0 crash tells a kdump from a netdump of 2.4's days, and looks
#: for the kernel's slide in VMCOREINFO.
_ALIGN: Final = 0
_RWX: Final = 7


@dataclass(frozen=True, slots=True)
class Header:
    """The bytes, whole pages of them, and whether VMCOREINFO is among them."""

    data: bytes
    vmcoreinfo: bool


def header(kernel: Kernel, runs: Sequence[Run], registers: Sequence[Mapping[str, int]]) -> Header:
    """What stands before memory in a core of all `runs`, each of which begins at a page of the file.

    As in a kernel's own /proc/vmcore: notes of CPUs, VMCOREINFO, the kernel's image at its own addresses, then all
    memory at those of the direct map. The image is no second copy: both headers name the same bytes. `registers` are
    those of each vCPU, by gdb's names. Raises `Unsupported` when there are too many runs for the format.
    """
    info = vmcore.vmcoreinfo(kernel)
    told = b"".join(_of_cpus(kernel, registers)) + (elf.note("VMCOREINFO", 0, info) if info else b"")
    direct, image = vmcore.direct_map(kernel), vmcore.image(kernel)
    holder = next((run for run in runs if image and run.start <= image.pa and image.pa + image.size <= run.end), None)
    count = 1 + (holder is not None) + len(runs)
    if count >= elf.PN_XNUM:
        raise Unsupported(f"the guest's memory is in {len(runs)} parts, too many for an ELF core; use another format")
    at = elf.HEADER.size + count * elf.PROGRAM.size
    begin = align_up(at + len(told), PAGE_SIZE)
    programs: list[bytes] = []
    offset = begin
    for run in runs:
        if image and run is holder:
            programs.insert(0, _load(offset + image.pa - run.start, image.va, image.pa, image.size))
        programs.append(_load(offset, direct + run.start, run.start, run.size))
        offset += align_up(run.size, PAGE_SIZE)
    first = elf.HEADER.pack(elf.IDENT, elf.ET_CORE, elf.EM_X86_64, 1, 0, elf.HEADER.size, 0, 0, elf.HEADER.size,
                            elf.PROGRAM.size, count, 0, 0, 0)  # fmt: skip
    noted = elf.PROGRAM.pack(elf.PT_NOTE, 0, at, 0, 0, len(told), 0, 4)
    return Header(b"".join((first, noted, *programs, told)).ljust(begin, b"\0"), bool(info))


def _load(offset: int, va: int, pa: int, size: int) -> bytes:
    return elf.PROGRAM.pack(elf.PT_LOAD, _RWX, offset, va, pa, size, size, _ALIGN)


def _of_cpus(kernel: Kernel, registers: Sequence[Mapping[str, int]]) -> Iterator[bytes]:
    yield from (notes.prstatus(number, state) for number, state in enumerate(registers))
    # A paravirtual guest's cr3 holds its hypervisor's addresses, not those of the dump.
    if not isinstance(kernel.space.memory, Paravirtual):
        yield from (notes.qemu_state(state) for state in registers)
