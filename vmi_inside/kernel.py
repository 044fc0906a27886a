"""One running kernel: its address space and its profile, and the short ways between them.

Knows how to find a global, a per-CPU variable, a struct's type. What any of them means is left to the tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from vmi_inside.errors import MemoryFault, NoMember, NoSymbol
from vmi_inside.profile.ctypes import CType
from vmi_inside.space import AddressSpace
from vmi_inside.structs import Structs
from vmi_inside.types import U64, Mask

if TYPE_CHECKING:
    from vmi_inside.profile.profile import Profile

#: CONFIG_NR_CPUS is 8192 at the most on x86_64.
CPU_LIMIT = 8192
#: A C string in the kernel that names something is not longer.
STRING_LIMIT = 4096
_STRING_STEP = 64


class Kernel:
    """A kernel's memory and its profile. Holds nothing that was read from the guest, but what cannot change."""

    def __init__(self, space: AddressSpace, profile: Profile) -> None:
        self.space = space
        self.profile = profile
        #: What `linux.symbols.module_types` parsed of modules, by the module's and its BTF's identity.
        self.modules: dict[tuple[object, ...], Any] = {}

    def operation(self) -> AbstractContextManager[None]:
        """The reading of one table: translations are remembered inside, never across."""
        return self.space.operation()

    def symbol(self, *names: str) -> int:
        """The address of the first of these symbols that the kernel has. Raises `NoSymbol`."""
        found = self.profile.find_symbol(*names)
        if found is None:
            raise NoSymbol(" or ".join(names))
        return found

    def struct(self, *names: str) -> CType:
        """The first of these structs that the kernel has. Raises `NoMember`."""
        return self.profile.struct(*names)

    def find_struct(self, *names: str) -> CType | None:
        """As `struct`, None where the kernel has none of them."""
        try:
            return self.profile.struct(*names)
        except NoMember:
            return None

    def structs(self, ctype: CType | str, address: U64 | Iterable[int]) -> Structs:
        """Structs of this type at these addresses."""
        if not isinstance(address, np.ndarray):
            address = np.array(list(address), dtype=np.uint64)
        return Structs(self.space, self.struct(ctype) if isinstance(ctype, str) else ctype, address)

    def object(self, ctype: CType | str, *symbols: str) -> Structs:
        """The global struct of that symbol: one row. Raises `NoSymbol`."""
        return self.structs(ctype, [self.symbol(*symbols)])

    def pointer(self, *symbols: str) -> int:
        """The value of a global pointer. Raises `NoSymbol`, `PageFault`."""
        return self.space.read_u64(self.symbol(*symbols))

    def number(self, size: int, *symbols: str) -> int:
        """The value of a global unsigned integer of `size` bytes. Raises `NoSymbol`, `PageFault`."""
        return int.from_bytes(self.space.read(self.symbol(*symbols), size), "little")

    @cached_property
    def cpus(self) -> int:
        """How many possible CPUs there are (`nr_cpu_ids`, kernel/smp.c); fixed at boot."""
        try:
            count = self.number(4, "nr_cpu_ids")
        except (NoSymbol, MemoryFault):
            return 1
        return min(max(count, 1), CPU_LIMIT)

    @cached_property
    def percpu_offset(self) -> U64:
        """What to add to a per-CPU address for each CPU, (cpus,) uint64 (`__per_cpu_offset`, mm/percpu.c)."""
        found = self.profile.find_symbol("__per_cpu_offset")
        if found is None:
            return np.zeros(1, dtype=np.uint64)
        raw, _ = self.space.gather(np.array([found], dtype=np.uint64) + 8 * np.arange(self.cpus, dtype=np.uint64), 8)
        return raw.view("<u8")[:, 0]

    def strings(self, address: U64, limit: int = 256) -> tuple[list[str], Mask]:
        """NUL-terminated strings at `n` addresses, cut at `limit` bytes, and (n,) bool: which could be read.

        An address of 0 gives an empty string.
        """
        limit = min(limit, STRING_LIMIT)
        parts = [b""] * len(address)
        ok = np.ones(len(address), dtype=np.bool_)
        live = np.flatnonzero(address)
        # Most are short: one reading of a few bytes. One that runs into a page that is not there is read again from an
        # aligned piece, which lies in one page.
        here = address[live]
        for _ in range(2 * (limit // _STRING_STEP) + 2):
            if not len(live):
                break
            rows, good = self.space.gather(here, _STRING_STEP)
            lead = np.zeros(len(live), dtype=np.intp)
            if not good.all():
                torn = np.flatnonzero(~good)
                low = here[torn] & ~np.uint64(_STRING_STEP - 1)
                lead[torn] = (here[torn] - low).astype(np.intp)
                rows[torn], good[torn] = self.space.gather(low, _STRING_STEP)
                here[torn] = low
            ok[live[~good]] = False
            onward = []
            for at, (row, cell, skip, fine) in enumerate(
                zip(live.tolist(), rows, lead.tolist(), good.tolist(), strict=True)
            ):
                head, nul, _ = cell.tobytes()[skip:].partition(b"\0")
                parts[row] += head
                if fine and not nul and len(parts[row]) < limit:
                    onward.append(at)
            here = here[onward] + np.uint64(_STRING_STEP)
            live = live[onward]
        return [part[:limit].decode("utf-8", "backslashreplace") for part in parts], ok
