"""Loaded modules as the kernel's own list has them, and the memory that each takes.

Knows the list `modules` and `struct module`'s memory (include/linux/module.h): `mem[]` since 6.4, two `module_layout`
before. Hidden modules, and what a module is for, are left to others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs
from vmi_inside.types import I64, U64, Mask

MODULE_LIMIT: Final = 1 << 14
#: All of x86_64's module space is 1.5 GiB at the most (MODULES_VADDR, arch/x86/include/asm/pgtable_64_types.h).
REGION_LIMIT: Final = 3 << 29
#: MOD_TEXT and MOD_INIT_TEXT of enum mod_mem_type.
_TEXT: Final = ("MOD_TEXT", "MOD_INIT_TEXT")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Modules (n rows) and their memory (m regions): `owner` (m,) is the row of the module that a region belongs to.

    `text` (m,) says which regions hold code. `faults` says where the list was cut.
    """

    modules: Structs
    name: tuple[str, ...]
    owner: I64
    base: U64
    size: I64
    text: Mask
    faults: tuple[str, ...]

    def within(self, address: U64, *, text: bool = False) -> I64:
        """The row of the module that holds each address, -1 where none does; `text` looks at code only."""
        out = np.full(len(address), -1, dtype=np.int64)
        which = np.flatnonzero(self.text) if text else np.arange(len(self.base))
        for at in which.tolist():  # some hundreds at the most, each one comparison of all addresses
            out[address - self.base[at] < np.uint64(self.size[at])] = self.owner[at]
        return out


def listed(kernel: Kernel) -> tuple[Structs, tuple[str, ...]]:
    """All modules on the list, with `name` and `state`, and where it was cut. Raises `NoSymbol`."""
    ctype = kernel.struct("module")
    found = walk.serial(kernel.space, kernel.symbol("modules"), what="modules", limit=MODULE_LIMIT)
    rows = kernel.structs(ctype, found.address - np.uint64(ctype.member("list").offset)).fetch("name", "state")
    return rows, found.faults


def loaded(kernel: Kernel) -> Loaded:
    """All modules on the list. Raises `NoSymbol` where the kernel knows no modules."""
    return of_modules(kernel, *listed(kernel))


def of_modules(kernel: Kernel, rows: Structs, faults: tuple[str, ...] = ()) -> Loaded:
    """The memory of these `struct module`s, however they were found."""
    regions = list(_regions(kernel, rows))
    base = np.concatenate([region[0] for region in regions])
    size = np.clip(np.concatenate([region[1] for region in regions]), 0, REGION_LIMIT)
    text = np.repeat([region[2] for region in regions], len(rows))
    owner = np.tile(np.arange(len(rows)), len(regions))
    used = (base != 0) & (size != 0)
    return Loaded(rows, tuple(rows.text("name")), owner[used], base[used], size[used], text[used], faults)


def _regions(kernel: Kernel, rows: Structs) -> list[tuple[U64, I64, bool]]:
    """Base and size (n,) of each kind of memory that modules have, and whether it is code."""
    if rows.has("mem"):
        kinds = rows.type.member("mem").type.count
        code = {kernel.profile.enumerator(name) for name in _TEXT}
        names = [(f"mem[{kind}].base", f"mem[{kind}].size", kind in code) for kind in range(kinds)]
    else:
        names = [
            (f"{layout}.base", f"{layout}.{size}", code)
            for layout in ("core_layout", "init_layout")
            for size, code in (("text_size", True), ("size", False))
        ]
    rows.fetch(*(name for pair in names for name in pair[:2]))
    return [(rows.pointer(base), rows.number(size), code) for base, size, code in names]
