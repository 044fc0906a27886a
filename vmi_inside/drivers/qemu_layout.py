"""Where a QEMU process keeps its guest's RAM, told from its command line and its maps alone.

Knows QEMU's options that make RAM, how its PC machines lay RAM out around the hole below 4 GiB (hw/i386/pc_q35.c,
pc_piix.c, microvm.c; QEMU 2.2 to 10), and what its allocations look like in /proc/PID/maps (util/mmap-alloc.c). Pure
text and arithmetic: it is right, or raises `LayoutUnknown`, and never guesses. Asking QEMU itself is left to
`monitor`; reading what was found, to `qemu`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from vmi_inside.errors import Unsupported
from vmi_inside.memory import Run
from vmi_inside.types import align_up

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
VGA_HOLE: Final = Run(0xA0000, 0x20000)  # in front of the RAM there lie the VGA's memory and SMRAM
_MICROVM_FIRMWARE: Final = Run(0xE0000, 0x20000)  # in front of it, the last 64 or 128 KiB of the firmware
_AMD_TOP: Final = 0xFD_0000_0000  # from here to 1 TiB: HyperTransport. RAM that would reach it is moved (QEMU 7.1)
_RAM_ALIGN: Final = 2 * MIB  # QEMU_VMALLOC_ALIGN on x86_64

# Devices that bring RAM of their own, which the machine puts at an address that no option tells.
_MEMORY_DEVICES: Final = re.compile(r"(pc-dimm|nvdimm|virtio-mem|virtio-pmem|cxl-|sgx-epc)")
_ENCRYPTED: Final = ("sev-guest", "sev-snp-guest", "tdx-guest")
Kind = Literal["ram", "memfd", "file"]
_KINDS: Final[dict[str, Kind]] = {
    "memory-backend-ram": "ram",
    "memory-backend-memfd": "memfd",
    "memory-backend-file": "file",
    "memory-backend-shm": "file",  # of shm_open, unlinked at once
}
_UNIT: Final = {"": 1, "b": 1, "k": KIB, "m": MIB, "g": GIB, "t": GIB << 10, "p": GIB << 20, "e": GIB << 30}


class LayoutUnknown(Unsupported):
    """The layout cannot be told for sure in this way; the message says what stood in the way."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block of RAM as QEMU was asked for it: `offset` is that of its first byte in the file behind it, if any."""

    id: str
    kind: Kind
    size: int
    path: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """`blocks`, one behind the other, are the guest's RAM; `runs` are where it appears to the guest, in that order.

    `skips` are places in front of which the machine shows the guest something else.
    """

    runs: tuple[Run, ...]
    blocks: tuple[Block, ...]
    skips: tuple[Run, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """A run of guest RAM, and the address of its first byte in the QEMU process."""

    run: Run
    address: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps. `device` is (major, minor); `inode` is 0 for anonymous memory."""

    start: int
    end: int
    permissions: str
    offset: int
    device: tuple[int, int]
    inode: int
    path: str

    @property
    def shared(self) -> bool:
        """Whether what is written here reaches the file: then the file holds what the guest sees."""
        return self.permissions[3] == "s"

    @property
    def anonymous(self) -> bool:
        """Private memory that no file and no name stands behind."""
        return not self.inode and not self.path


def parse_maps(text: str) -> list[Mapping]:
    """The lines of /proc/PID/maps, ascending; lines that are none are left out."""
    line = re.compile(
        r"^([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][sp]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)$", re.M
    )
    return [
        Mapping(int(m[1], 16), int(m[2], 16), m[3], int(m[4], 16), (int(m[5], 16), int(m[6], 16)), int(m[7]), m[8])
        for m in line.finditer(text)
    ]


def size(text: str, unit: int = 1) -> int:
    """A size as QEMU reads it: `4096`, `2.5G`, `0x1000`; `unit` multiplies a bare number. Raises `LayoutUnknown`."""
    found = re.fullmatch(r"(0x[0-9a-f]+|\d+(?:\.\d+)?)([bkmgtpe]?)", text.strip(), re.I)
    if not found:
        raise LayoutUnknown(f"cannot read the size {text!r}")
    scale = _UNIT[found[2].lower()] if found[2] else unit
    number = found[1]
    return (
        int(number, 0) * scale
        if number[:2].lower() == "0x"
        else int(float(number) * scale)
        if "." in number
        else int(number) * scale
    )


def options(argv: Sequence[str]) -> list[tuple[str, str]]:
    """The options of a QEMU command line, dashes removed, each with its value or an empty string."""
    found = []
    at = 1
    while at < len(argv):
        name = argv[at]
        at += 1
        if not name.startswith("-") or name == "-":
            continue  # a disk image
        value = ""
        # A kernel's command line may itself begin with a dash; of the other options' values none does.
        if at < len(argv) and (name.lstrip("-") == "append" or not argv[at].startswith("-") or argv[at] == "-"):
            value = argv[at]
            at += 1
        found.append((name.removeprefix("-").removeprefix("-"), value))
    return found


def properties(value: str, implied: str = "") -> dict[str, str]:
    """The properties in an option's value, in QEMU's key=value form (`,,` is a comma) or in JSON."""
    if value.startswith("{"):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise LayoutUnknown(f"cannot read the option {value[:60]!r}") from error
        return {key: _plain(it) for key, it in found.items() if isinstance(it, (str, int, float))}
    pairs = {}
    for n, part in enumerate(value.replace(",,", "\0").split(",")):
        key, equals, text = part.replace("\0", ",").partition("=")
        if n == 0 and not equals and implied:
            key, text = implied, key
        pairs[key] = text if equals or key == implied else "on"
    return pairs


def _plain(value: str | float) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def layout(argv: Sequence[str]) -> Layout:
    """The guest's RAM as the command line of an x86 QEMU describes it. Raises `LayoutUnknown`, `Unsupported`."""
    given = options(argv)
    machine: dict[str, str] = {}
    memory: dict[str, str] = {}
    objects: dict[str, dict[str, str]] = {}
    nodes: dict[int, dict[str, str]] = {}
    for name, value in given:
        if name in ("machine", "M"):
            machine |= properties(value, "type")
        elif name == "m":
            memory |= properties(value, "size")
        elif name == "object":
            one = properties(value, "qom-type")
            objects[one.get("id", "")] = one
        elif name == "numa":
            one = properties(value, "type")
            if one.get("type") == "node":
                nodes[int(size(one.get("nodeid", str(len(nodes)))))] = one
        elif name in ("readconfig", "mem-path", "set", "preconfig"):
            raise LayoutUnknown(f"QEMU was started with -{name}")
        elif name == "global" and "memory-backend" in value:
            raise LayoutUnknown(f"QEMU was started with -global {value}")
        elif name == "device" and _MEMORY_DEVICES.match(properties(value, "driver").get("driver", "")):
            raise LayoutUnknown("the guest has memory devices (DIMMs, virtio-mem or the like)")
    for one in objects.values():
        if one.get("qom-type") in _ENCRYPTED:
            raise Unsupported(f"the guest's memory is encrypted by the processor ({one['qom-type']})")
    if "maxmem" in memory and size(memory["maxmem"], MIB) > _ram_size(memory):
        raise LayoutUnknown("the guest may have hot-plugged memory (maxmem)")

    ram = _ram_size(memory)
    members = [nodes[node].get("memdev", "") for node in sorted(nodes)]
    if not any(members):  # nodes with mem=SIZE, or with CPUs only, share the machine's one block
        members = [machine["memory-backend"]] if "memory-backend" in machine else []
    blocks = tuple(_block(objects, member) for member in members if member) or (Block("", "ram", ram),)
    if sum(block.size for block in blocks) != ram:
        raise LayoutUnknown(f"the memory backends do not add up to the {ram} bytes of -m")
    kind = machine.get("type") or ("pc" if re.search(r"qemu-system-(x86_64|i386)$", argv[0] if argv else "") else "")
    limit = size(machine["max-ram-below-4g"]) if "max-ram-below-4g" in machine else None
    return Layout(pc_runs(kind, ram, limit), blocks, (_MICROVM_FIRMWARE if kind == "microvm" else VGA_HOLE,))


def _ram_size(memory: dict[str, str]) -> int:
    return align_up(size(memory["size"], MIB), 8 * KIB) if "size" in memory else 128 * MIB


def _block(objects: dict[str, dict[str, str]], name: str) -> Block:
    backend = objects.get(name)
    if backend is None:
        raise LayoutUnknown(f"there is no memory backend {name!r} on the command line")
    kind = _KINDS.get(backend.get("qom-type", ""))
    if kind is None:
        raise LayoutUnknown(f"memory backend of an unknown type, {backend.get('qom-type')!r}")
    offset = size(backend.get("offset", "0"))
    return Block(name, kind, size(backend.get("size", "0")), backend.get("mem-path", ""), offset)


def pc_runs(machine: str, ram: int, limit: int | None = None) -> tuple[Run, ...]:
    """Where `ram` bytes of RAM appear in the guest: `machine` is a QEMU machine type, `limit` its max-ram-below-4g.

    Raises `LayoutUnknown` for other machines than q35, i440fx and microvm.
    """
    versioned = re.match(r"pc-(?:q35|i440fx)-(\d+)\.(\d+)", machine)
    if versioned and (int(versioned[1]), int(versioned[2])) < (2, 2):
        raise LayoutUnknown(f"machine type {machine!r} lays RAM out as QEMU did before 2.2")
    if machine == "q35" or machine.startswith("pc-q35-"):
        low = min(0x8000_0000 if ram >= 0xB000_0000 else 0xB000_0000, limit or 4 * GIB)
    elif machine == "pc" or machine.startswith("pc-i440fx-"):
        low = limit or 0xE000_0000
        if ram >= low:
            low = min(low, 0xC000_0000)
    elif machine == "microvm" and limit is None:
        low = 0xC000_0000
    else:
        raise LayoutUnknown(f"the machine type {machine or 'of this QEMU'!r} is not known")
    if ram <= low:
        return (Run(0, ram),)
    if 4 * GIB + ram - low > _AMD_TOP:
        raise LayoutUnknown("there is so much RAM that some may be moved behind 1 TiB")
    return Run(0, low), Run(4 * GIB, ram - low)


def find(blocks: Sequence[Block], maps: Sequence[Mapping]) -> list[int]:
    """The address of each of `blocks` in the process whose `maps` these are. Raises `LayoutUnknown` when in doubt.

    QEMU aligns anonymous RAM and leaves one inaccessible page behind it; the kernel may have joined it with what lies
    below. So every range that could be the block is looked at, and it must be the only one.
    """
    files = _file_ranges(maps)
    chains = _guarded_chains(maps)
    addresses: dict[int, int] = {}
    # Largest first: a small block could also be the end of a large one.
    for index in sorted(range(len(blocks)), key=lambda i: -blocks[i].size):
        block = blocks[index]
        found = {start for start in _of_files(block, files) if start not in addresses.values()}
        if block.kind == "ram":
            found |= {
                end - block.size
                for start, end in chains
                if end - block.size >= start
                and (end - block.size) % _RAM_ALIGN == 0
                and not any(start <= taken < end for taken in addresses.values())
            }
        if len(found) != 1:
            how_many = "none" if not found else str(len(found))
            raise LayoutUnknown(
                f"of the mappings of the QEMU process, {how_many} could be the memory {block.id or 'of the machine'}"
            )
        addresses[index] = found.pop()
    return [addresses[index] for index in range(len(blocks))]


def _guarded_chains(maps: Sequence[Mapping]) -> list[tuple[int, int]]:
    """Contiguous private anonymous memory, read-write, that ends before an inaccessible page: (start, end)."""
    chains = []
    start = end = -1
    for mapping in maps:
        if mapping.anonymous and mapping.permissions == "rw-p":
            if mapping.start != end:
                start = mapping.start
            end = mapping.end
            continue
        if mapping.start == end and mapping.anonymous and mapping.permissions == "---p":
            chains.append((start, end))
        end = -1
    return chains


def _file_ranges(maps: Sequence[Mapping]) -> list[tuple[Mapping, int]]:
    """Writable file mappings, adjoining ones of the same file and offset joined: (first, end)."""
    ranges: list[tuple[Mapping, int]] = []
    for mapping in maps:
        if not mapping.inode or mapping.permissions[:2] != "rw":
            continue
        if ranges:
            first, end = ranges[-1]
            same = (first.inode, first.device, first.permissions) == (
                mapping.inode,
                mapping.device,
                mapping.permissions,
            )
            if same and mapping.start == end and mapping.offset - first.offset == mapping.start - first.start:
                ranges[-1] = first, mapping.end
                continue
        ranges.append((mapping, mapping.end))
    return ranges


def _of_files(block: Block, files: Iterable[tuple[Mapping, int]]) -> list[int]:
    """The starts of those file mappings that can be `block`."""
    found = []
    for mapping, end in files:
        name = mapping.path.removesuffix(" (deleted)")
        if mapping.offset != block.offset or end - mapping.start != block.size:
            continue
        if block.kind == "file" and not block.path:
            wanted = mapping.shared
        elif block.kind == "file":
            # A directory is given for hugetlbfs; QEMU then makes a file in it, named after the block, and unlinks it.
            made = re.fullmatch(r"qemu_back_mem\.(?:.*[/_])?(.*)\.\w{6}", os.path.basename(name))
            here = os.path.dirname(name) == os.path.normpath(block.path)
            wanted = name == block.path or bool(here and made and made[1] == block.id.split("/")[-1])
        elif block.kind == "memfd":
            wanted = name.startswith("/memfd:")
        else:  # a memory-backend-ram with share=on: an unnamed file of the kernel's, or, since QEMU 9.1, a memfd
            wanted = mapping.shared and name.startswith(("/dev/zero", "/memfd:"))
        if wanted:
            found.append(mapping.start)
    return found


def extents(layout: Layout, addresses: Sequence[int]) -> list[Extent]:
    """The guest's RAM piece by piece: its runs, cut where a block of the `layout` ends, without what is skipped."""
    found: list[Extent] = []
    sources = [(at, block.size) for at, block in zip(addresses, layout.blocks, strict=True)]
    for run in layout.runs:
        start = run.start
        while start < run.end:
            at, left = sources.pop(0)
            step = min(left, run.end - start)
            found += _without(Extent(Run(start, step), at), layout.skips)
            start += step
            if step < left:
                sources.insert(0, (at + step, left - step))
    return found


def _without(extent: Extent, skips: Sequence[Run]) -> list[Extent]:
    """`extent` without the parts that lie in `skips`."""
    parts = [extent]
    for skip in skips:
        cut = []
        for part in parts:
            run = part.run
            for start, end in ((run.start, min(run.end, skip.start)), (max(run.start, skip.end), run.end)):
                if start < end:
                    cut.append(Extent(Run(start, end - start), part.address + start - run.start))
        parts = cut
    return parts
