"""A made-up kernel in made-up RAM: tasks, files, namespaces and sockets, planted through real page tables.

Three kinds of mapping, as in a real kernel: the image in 2 MiB pages, all RAM mapped directly in 2 MiB and 1 GiB
pages, and a heap that is either in the direct map or, `scattered`, in 4 KiB pages of frames from everywhere.
"""

from __future__ import annotations

from tests.synthetic.layout import Layout, SyntheticProfile
from tests.synthetic.ram import GIB, CountingMemory, PageTables, Ram
from tests.synthetic.structs import NEWER, OLDER
from vmi_inside.arch.paging import BY_LEVELS
from vmi_inside.kernel import Kernel
from vmi_inside.space import AddressSpace

IMAGE, IMAGE_SIZE = 0xFFFF_FFFF_8100_0000, 4 << 20
IMAGE_PA = 16 << 20
DIRECT = 0xFFFF_8880_0000_0000
HEAP = 0xFFFF_C900_0000_0000
#: A kernel address that nothing maps, and one that is mapped to where there is no RAM.
NOWHERE = 0xFFFF_B000_0000_1000
HOLE = DIRECT + (3 * GIB) + 0x1000
BOOTED = 1_700_000_000
CPUS = 2


class SyntheticGuest:
    """Plant structs with `new`, change them with `put`, then read them through `kernel`."""

    def __init__(self, levels: int = 4, *, older: bool = False, scattered: bool = False, seed: int = 1) -> None:
        self.ram = Ram(seed=seed)
        self.ram._blocks = [at for at in self.ram._blocks if not IMAGE_PA <= at < IMAGE_PA + IMAGE_SIZE]
        self.tables = PageTables(self.ram, levels)
        self.scattered = scattered
        self._where: dict[int, int] = {}  # virtual page to frame, of image and heap
        self._slabs: dict[str, tuple[int, int]] = {}
        self._heap = HEAP
        self._image = IMAGE
        for offset in range(0, IMAGE_SIZE, 2 << 20):
            self.tables.map(IMAGE + offset, IMAGE_PA + offset, level=2)
        for pa in range(0, 48 << 20, 2 << 20):
            self.tables.map(DIRECT + pa, pa, level=2)
        self.tables.map(DIRECT + 3 * GIB, 3 * GIB, level=3)  # the hole below 4 GiB
        self.tables.map(DIRECT + 4 * GIB, 4 * GIB, level=3)
        self.profile = SyntheticProfile(Layout(NEWER, OLDER) if older else Layout(NEWER))
        self.memory = CountingMemory(self.ram.memory)
        self.space = AddressSpace(self.memory, BY_LEVELS[levels], self.tables.root)
        self.kernel = Kernel(self.space, self.profile)  # type: ignore[arg-type]  # all of a Profile that is asked here
        self._path: dict[tuple[str, str], tuple[int, int]] = {}

    # -- memory -----------------------------------------------------------------------------------------------------

    def alloc(self, size: int, kind: str = "") -> int:
        """`size` zeroed bytes on the heap, beside others of the same kind."""
        size = (size + 7) & ~7
        at, end = self._slabs.get(kind, (0, 0))
        if at + size > end:
            at = self._slab(size)
            end = at + max(1 << 15, size)
        self._slabs[kind] = at + size, end
        return at

    def _slab(self, size: int) -> int:
        if not self.scattered and size <= 1 << 15:
            return DIRECT + self.ram.frames(8)
        at = self._heap
        for page in range(at, at + max(1 << 15, size), 4096):
            frame = self.ram.frames()
            self.tables.map(page, frame)
            self._where[page] = frame
            self._heap = page + 4096
        return at

    def unmap(self, va: int) -> None:
        """Take away the 4 KiB page of a scattered heap that holds `va`."""
        self.tables.put(va, 1, 0)

    def write(self, va: int, data: bytes) -> None:
        while data:
            here = min(len(data), 4096 - (va & 4095))
            if DIRECT <= va < DIRECT + (1 << 40):
                pa = va - DIRECT
            elif IMAGE <= va < IMAGE + IMAGE_SIZE:
                pa = IMAGE_PA + va - IMAGE
            else:
                pa = self._where[va & ~4095] + (va & 4095)
            self.ram.write(pa, data[:here])
            va, data = va + here, data[here:]

    def word(self, va: int, value: int) -> None:
        self.write(va, (value & (1 << 64) - 1).to_bytes(8, "little"))

    def string(self, value: bytes | str) -> int:
        """A NUL-terminated string on the heap."""
        data = value.encode() if isinstance(value, str) else value
        at = self.alloc(len(data) + 1, "string")
        self.write(at, data + b"\0")
        return at

    def global_(self, symbol: str, size: int) -> int:
        """Room in the kernel's image, under a symbol."""
        at = self._image
        self._image += (size + 63) & ~63
        self.profile.symbols[symbol] = at
        return at

    # -- structs ----------------------------------------------------------------------------------------------------

    def size(self, struct: str) -> int:
        return self.profile.struct(struct).size

    def offset(self, struct: str, path: str) -> int:
        return self._member(struct, path)[0]

    def _member(self, struct: str, path: str) -> tuple[int, int]:
        key = struct, path
        if key not in self._path:
            member = self.profile.struct(struct).member(path)
            self._path[key] = member.offset, member.size
        return self._path[key]

    def new(self, struct: str, **members: int | bytes) -> int:
        """A struct on the heap. A member's name may have `__` for a dot."""
        at = self.alloc(self.size(struct), struct)
        self.put(struct, at, **members)
        return at

    def put(self, struct: str, at: int, **members: int | bytes) -> None:
        """Set members of the struct at `at`; those that this kernel does not have are left out."""
        ctype = self.profile.struct(struct)
        for name, value in members.items():
            path = name if name in ctype.members else name.replace("__", ".")
            if (struct, path) in self._path or ctype.has(path):
                self.poke(struct, at, path, value)

    def poke(self, struct: str, at: int, path: str, value: int | bytes) -> None:
        offset, size = self._member(struct, path)
        data = (
            value.ljust(size, b"\0")
            if isinstance(value, bytes)
            else (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        )
        self.write(at + offset, data)

    def xarray(self, entries: dict[int, int]) -> int:
        """The head of an xarray of these entries."""
        if set(entries) <= {0}:
            return entries.get(0, 0)
        shift, level = 0, dict(entries)
        while True:
            nodes: dict[int, int] = {}
            for index, value in level.items():
                node = nodes.get(index >> 6)
                if node is None:
                    node = nodes[index >> 6] = self.new("xa_node", shift=shift)
                self.word(node + self.offset("xa_node", "slots") + 8 * (index & 63), value)
            level = {index: node | 2 for index, node in nodes.items()}
            shift += 6
            if set(level) == {0}:
                return level[0]

    def chain(self, head: int, nodes: list[int], end: int = 0) -> None:
        """Link nodes behind the pointer at `head`."""
        for at, to in zip([head, *nodes], [*nodes, end], strict=True):
            self.word(at, to)
