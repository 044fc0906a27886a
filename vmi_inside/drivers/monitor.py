"""What a QEMU tells of its guest through the human monitor: where RAM lies, and the registers of the vCPUs.

Knows the text of `info mtree -f`, `info memdev`, `gpa2hva` and `info registers -a` (QEMU 2.10 to 10). How a command
reaches the monitor, by QMP or by libvirt, is the caller's: an `hmp` function, which takes a command and gives its text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from vmi_inside.drivers.qemu_layout import Extent, LayoutUnknown
from vmi_inside.memory import Run

Hmp = Callable[[str], str]

_RANGE = re.compile(
    r"^\s*([0-9a-f]{1,16})-([0-9a-f]{1,16}) \(prio -?\d+, ([\w/]+)\): (.*?)(?: @([0-9a-f]{1,16}))?(?: KVM)?\s*$"
)


@dataclass(frozen=True, slots=True)
class Region:
    """A range of guest-physical addresses as the guest sees it: `kind` is ram, rom, romd, i/o, ramd, nv-ram ..."""

    run: Run
    kind: str
    name: str
    offset: int


def regions(mtree: str) -> list[Region]:
    """The flat view of the address space "memory", from the text of `info mtree -f`; empty when there is none."""
    found: list[Region] = []
    here = False
    for line in mtree.splitlines():
        if line.startswith("FlatView"):
            if found:
                break
            here = False
        elif line.strip().startswith('AS "memory"'):
            here = True
        elif here:
            match = _RANGE.match(line)
            if match and int(match[2], 16) >= int(match[1], 16):
                run = Run(int(match[1], 16), int(match[2], 16) - int(match[1], 16) + 1)
                found.append(Region(run, match[3], match[4], int(match[5] or "0", 16)))
    return found


def ram(found: list[Region], backends: set[str]) -> list[Region]:
    """Those regions that are the guest's RAM, parts that continue each other joined.

    RAM is what belongs to one of `backends`, by the last part of its name; a device's memory, such as a VGA's, is none.
    RAM that the guest sees read-only, as the PC's firmware leaves it below 1 MiB, counts.
    """
    joined: list[Region] = []
    for region in found:
        if region.kind not in ("ram", "rom", "nv-ram") or region.name.rpartition("/")[2] not in backends:
            continue
        before = joined[-1] if joined else None
        if (
            before is not None
            and before.name == region.name
            and before.run.end == region.run.start
            and before.offset + before.run.size == region.offset
        ):
            joined[-1] = Region(
                Run(before.run.start, before.run.size + region.run.size), before.kind, before.name, before.offset
            )
        else:
            joined.append(region)
    return joined


def backends(memdev: str) -> set[str]:
    """The names of the memory backends in the text of `info memdev`, and of the RAM that machines make themselves."""
    listed = {name.rpartition("/")[2] for name in re.findall(r"^memory backend: (\S+)\s*$", memdev, re.M)}
    return listed | {"pc.ram", "microvm.ram", "mach-virt.ram"}


def extents(hmp: Hmp) -> list[Extent]:
    """Where the guest's RAM lies in the QEMU process, by its own word. Raises `LayoutUnknown` when it tells none."""
    found = []
    for region in ram(regions(hmp("info mtree -f")), backends(hmp("info memdev"))):
        answer = hmp(f"gpa2hva {region.run.start:#x}")
        match = re.search(r"\bis (0x[0-9a-f]{1,16})\s*$", answer)
        if not match:
            raise LayoutUnknown(f"QEMU does not tell where {region.run.start:#x} is: {answer.strip()[:100]}")
        found.append(Extent(region.run, int(match[1], 16)))
    if not found:
        raise LayoutUnknown("QEMU's monitor shows no RAM in the guest")
    return found


def registers(text: str) -> list[dict[str, int]]:
    """The registers of each vCPU, in their order, from the text of `info registers -a`.

    Keys are QEMU's names (`RIP`, `RSP`, `CR3`, `CR4`, `EFER`, `CPL`), with `CS`, `SS`, `DS`, `ES`, `FS`, `GS`, `LDT`,
    `TR` for the selectors, and `FS_BASE`, `GS_BASE`, `GDT_BASE`, `IDT_BASE`, ... for the bases. What QEMU does not
    print (LSTAR, the kernel's GS base) is not there.
    """
    found: list[dict[str, int]] = []
    for line in text.splitlines():
        if re.match(r"\s*CPU#\d+", line):
            found.append({})
            continue
        if not found:
            # Without -a, or from a QEMU that prints no heading.
            if not re.match(r"\s*[A-Z0-9]+\s*=", line):
                continue
            found.append({})
        cpu = found[-1]
        table = re.match(r"\s*(GDT|IDT)\s*=\s+([0-9a-f]{1,16}) ([0-9a-f]{1,8})\s*$", line)
        segment = re.match(
            r"\s*([CSDEFG]S|LDT|TR)\s*=\s*([0-9a-f]{1,4}) ([0-9a-f]{1,16}) [0-9a-f]{1,8} [0-9a-f]{1,8}", line
        )
        if table:
            cpu[f"{table[1]}_BASE"], cpu[f"{table[1]}_LIMIT"] = int(table[2], 16), int(table[3], 16)
        elif segment:
            cpu[segment[1]], cpu[f"{segment[1]}_BASE"] = int(segment[2], 16), int(segment[3], 16)
        elif not re.match(r"\s*(FPR|[XYZ]MM)\d", line):
            for name, value in re.findall(r"\b([A-Z][A-Z0-9]{1,5})\s?=\s?([0-9a-f]{1,16})\b", line):
                cpu[name] = int(value, 16)
    return found
