"""What loaded modules add to the kernel's own types and symbols: split BTF and their symbol tables.

Knows `struct module`, `struct mod_kallsyms` (include/linux/module.h) and the list `btf_modules` (kernel/bpf/btf.c).
Parsing BTF is `profile`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vmi_inside import ragged, walk
from vmi_inside.errors import MemoryFault, ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux.loaded import MODULE_LIMIT, loaded
from vmi_inside.profile.btf import Btf
from vmi_inside.profile.ctypes import CType
from vmi_inside.structs import Structs

#: Split BTF of the largest modules is some hundred KB, a module's symbols some thousands.
BTF_LIMIT = 8 << 20
SYMBOL_LIMIT = 1 << 18
_ELF_SYM_SIZE = 24  # Elf64_Sym: name u32, info, other, shndx u16, value u64, size u64


@dataclass(frozen=True, slots=True)
class ModuleTypes:
    """One loaded module's own types and symbols."""

    name: str
    types: Btf | None
    symbols: dict[str, int]

    def struct(self, name: str) -> CType | None:
        """A struct of the module, or of the kernel; None where neither has it."""
        return self.types.struct(name) if self.types else None


def module_types(kernel: Kernel, name: str) -> ModuleTypes | None:
    """The module of that name, or None when it is not loaded or cannot be read.

    Parsed once for each loading of the module: the kernel gives every BTF that it loads an id of its own.
    """
    try:
        found = _find(kernel, name)
        if found is None:
            return None
        parsed = _parsed(kernel, found)
        key = (name, int(found.address[0]), *parsed)
        if key not in kernel.modules:
            kernel.modules[key] = ModuleTypes(name, _types(kernel, *parsed), module_symbols(kernel, found))
        known: ModuleTypes = kernel.modules[key]
        return known
    except (ProfileError, MemoryFault):
        return None


def find_struct(kernel: Kernel, module: str, name: str) -> CType | None:
    """A struct of a part of the kernel that may be a module: the kernel's own, the module's, or None."""
    found = kernel.find_struct(name)
    if found is None:
        types = module_types(kernel, module)
        found = types.struct(name) if types else None
    return found


def _find(kernel: Kernel, name: str) -> Structs | None:
    known = loaded(kernel)
    at = [row for row, text in enumerate(known.name) if text == name]
    return known.modules.select(np.array(at[:1])) if at else None


def _parsed(kernel: Kernel, module: Structs) -> tuple[int, int, int]:
    """The BTF that the kernel parsed and keeps: id, address and size; zeros where there is none.

    The section that the module came with may be gone by now.
    """
    listed = walk.serial(kernel.space, kernel.symbol("btf_modules"), what="btf_modules", limit=MODULE_LIMIT)
    ctype = kernel.struct("btf_module")
    holders = kernel.structs(ctype, listed.address - np.uint64(ctype.member("list").offset)).fetch("module", "btf")
    mine = np.flatnonzero(holders.pointer("module") == module.address[0])
    if not len(mine):
        return 0, 0, 0
    held = holders.select(mine[:1]).follow("btf").fetch("id", "data", "data_size")
    return int(held.unsigned("id")[0]), int(held.pointer("data")[0]), int(held.unsigned("data_size")[0])


def _types(kernel: Kernel, _: int, address: int, size: int) -> Btf | None:
    if not address or not 0 < size <= BTF_LIMIT:
        return None
    return Btf(kernel.space.read(address, size), base=kernel.profile.types)


def module_symbols(kernel: Kernel, module: Structs) -> dict[str, int]:
    """The symbols of one module (one row), by name, as its own symbol table has them. Raises `MemoryFault`.

    Of several of one name the first.
    """
    found: dict[str, int] = {}
    for name, value in module_symbol_list(kernel, module):
        found.setdefault(name, value)
    return found


def module_symbol_list(kernel: Kernel, module: Structs) -> list[tuple[str, int]]:
    """All of them, name and value; local ones may share a name. Raises `MemoryFault`."""
    table = module.follow("kallsyms").fetch("symtab", "num_symtab", "strtab")
    count = min(int(table.unsigned("num_symtab")[0]), SYMBOL_LIMIT)
    raw = kernel.space.read(int(table.pointer("symtab")[0]), count * _ELF_SYM_SIZE)
    rows = np.frombuffer(raw, np.dtype([("name", "<u4"), ("pad", "<u4"), ("value", "<u8"), ("size", "<u8")]))
    base = np.uint64(table.pointer("strtab")[0])
    named = rows[(rows["name"] != 0) & (rows["name"] < BTF_LIMIT)]
    size = int(named["name"].max()) + 256 if len(named) else 0
    strings = ragged.gather(kernel.space, np.array([base]), np.array([size])).row(0)
    found = []
    for at, value in zip(named["name"].tolist(), named["value"].tolist(), strict=True):
        end = strings.find(b"\0", at)
        found.append((strings[at : end if end >= 0 else None].decode("latin-1"), value))
    return found
