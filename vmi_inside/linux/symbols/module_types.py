"""What loaded modules add to the kernel's own types and symbols: split BTF and their symbol tables.

Knows `struct module`, `struct mod_kallsyms` (include/linux/module.h) and the list `btf_modules` (kernel/bpf/btf.c).
Parsing BTF is `profile`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vmi_inside import ragged, walk
from vmi_inside.errors import MemoryFault, ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux.symbols.loaded import MODULE_LIMIT, listed
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
    return next(_each(kernel, name), None)


def every_module(kernel: Kernel) -> list[ModuleTypes]:
    """All modules that can be read, the last loaded first; each parsed once. Before 5.11 they have symbols only."""
    return list(_each(kernel))


def _each(kernel: Kernel, name: str | None = None) -> Iterator[ModuleTypes]:
    kept: dict[int, tuple[int, int, int]] = {}
    try:
        modules, _ = listed(kernel)
        names = modules.text("name")
        if name in names or (name is None and kernel.profile.find_symbol("btf_modules")):
            kept = _kept(kernel)
    except (ProfileError, MemoryFault):
        return
    for row, own in enumerate(names):
        if name in (None, own):
            module = modules.select(np.array([row]))
            address = int(module.address[0])
            parsed = kept.get(address, (0, 0, 0))
            key = (own, address, *parsed)
            try:
                if key not in kernel.modules:
                    kernel.modules[key] = ModuleTypes(own, _types(kernel, *parsed), module_symbols(kernel, module))
            except (ProfileError, MemoryFault):
                continue
            found: ModuleTypes = kernel.modules[key]
            yield found


def find_struct(kernel: Kernel, module: str, name: str) -> CType | None:
    """A struct of a part of the kernel that may be a module: the kernel's own, the module's, or None."""
    found = kernel.find_struct(name)
    if found is None:
        types = module_types(kernel, module)
        found = types.struct(name) if types else None
    return found


def _kept(kernel: Kernel) -> dict[int, tuple[int, int, int]]:
    """The BTF that the kernel parsed and keeps, by the address of its module: id, address and size.

    The section that the module came with may be gone by now. Raises `NoSymbol` where the kernel keeps none.
    """
    found = walk.serial(kernel.space, kernel.symbol("btf_modules"), what="btf_modules", limit=MODULE_LIMIT)
    ctype = kernel.struct("btf_module")
    holders = kernel.structs(ctype, found.address - np.uint64(ctype.member("list").offset)).fetch("module", "btf")
    held = holders.follow("btf").fetch("id", "data", "data_size")
    told = (held.unsigned("id"), held.pointer("data"), held.unsigned("data_size"))
    rows = zip(*(each.tolist() for each in told), strict=True)
    return dict(zip(holders.pointer("module").tolist(), rows, strict=True))


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
