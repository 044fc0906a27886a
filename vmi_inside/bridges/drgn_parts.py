"""What drgn takes of a guest of ours: memory, symbols and variables, each found when it is asked for.

Knows drgn's finders. Imported only where drgn is. Types are made in `drgn_types`.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import numpy as np
from drgn import (
    FaultError,
    FindObjectFlags,
    Object,
    Program,
    Symbol,
    SymbolBinding,
    SymbolKind,
    Type,
    TypeMember,
    sizeof,
)

from vmi_inside.bridges.drgn_types import Types
from vmi_inside.errors import MemoryFault, ProfileError, VmiError
from vmi_inside.guest import Guest
from vmi_inside.linux.symbols.loaded import Loaded, loaded
from vmi_inside.linux.symbols.module_types import ModuleTypes, every_module
from vmi_inside.profile import btf
from vmi_inside.types import align_up

#: Where kernels' half of the addresses begins, with five levels of page tables.
KERNEL_HALF: Final = 0xFF00_0000_0000_0000
#: Arrays whose length depends on the kernel's configuration: what they hold. They end where the next symbol begins.
_COUNTED: Final = {
    "__per_cpu_offset": "unsigned long",
    "cgroup_subsys": "struct cgroup_subsys *",
    "hstates": "struct hstate",
    "node_data": "struct pglist_data *",
    "node_states": "nodemask_t",
    "nr_swapper_spaces": "unsigned int",
    "stack_pools": "void *",
    "stack_slabs": "void *",
    "swap_info": "struct swap_info_struct *",
    "swapper_spaces": "struct address_space *",
    "timekeeper_data": "struct tk_data",
    "uidhash_table": "struct hlist_head",
    "vm_node_stat": "atomic_long_t",
    "vm_numa_event": "atomic_long_t",
    "vm_zone_stat": "atomic_long_t",
}


class Memory:
    """The guest's memory, physical and the kernel's: read anew each time."""

    def __init__(self, guest: Guest) -> None:
        self._memory = guest.memory
        self._space = guest.kernel.space

    def physical(self, address: int, count: int, _: int, physical: bool) -> bytes:
        """drgn's reader of physical memory."""
        raw = self._memory.read(address, count)
        if raw is None:
            raise FaultError("could not read physical memory of the guest", address)
        return bytes(raw)

    def virtual(self, address: int, count: int, _: int, physical: bool) -> bytes:
        """drgn's reader of the kernel's addresses."""
        try:
            return self._space.read(address, count)
        except MemoryFault as fault:
            raise FaultError(str(fault), address) from None


class Symbols:
    """The symbols of the kernel, and of the modules that are loaded when one is asked for."""

    def __init__(self, guest: Guest) -> None:
        self._kernel = guest.kernel
        self._profile = guest.kernel.profile

    def find(self, _: Program, name: str | None, address: int | None, one: bool) -> list[Symbol]:
        """drgn's symbol finder: by name, by an address within, by both, or all there are."""
        symbols = self._profile.symbols
        if address is not None:
            found = symbols.at(address - self._profile.origin) if self._inside(address) else None
            rows = [] if found is None else [found[0]]
            rows = [row for row in rows if name in (None, symbols[row].name)]
        elif name is not None:
            best = symbols.find(name)
            rows = [] if best is None else [best] if one else symbols.rows(name)
        else:
            rows = list(range(len(symbols)))
        given = [self._symbol(row) for row in (rows[:1] if one else rows)]
        if not (given and one) and (address is None or not self._inside(address)):
            given += self._of_modules(name, address)
        return given[:1] if one else given

    def _inside(self, address: int) -> bool:
        end = self._profile.find_symbol("_end")
        return self._profile.origin <= address and (end is None or address < end)

    def _symbol(self, row: int) -> Symbol:
        symbols = self._profile.symbols
        each = symbols[row]
        values = symbols.values[: symbols.fixed] if each.fixed else symbols.values[symbols.fixed :]
        after = int(np.searchsorted(values, each.value, "right"))
        size = int(values[after]) - each.value if after < len(values) else 0
        start = each.value if each.fixed else (each.value + self._profile.origin) % (1 << 64)
        weak = each.type in "wWvV"
        binding = SymbolBinding.WEAK if weak else SymbolBinding.GLOBAL if each.type.isupper() else SymbolBinding.LOCAL
        kind = SymbolKind.FUNC if self._profile.is_code(row) else SymbolKind.OBJECT
        return Symbol(each.name, start, size, binding, kind)

    def _of_modules(self, name: str | None, address: int | None) -> list[Symbol]:
        try:
            memory = loaded(self._kernel)
        except (ProfileError, MemoryFault):
            return []
        if address is not None and memory.within(np.array([address], np.uint64))[0] < 0:
            return []
        return [
            found
            for module in every_module(self._kernel)
            if name is None or name in module.symbols
            for found in _placed(module, memory)
            if name in (None, found.name) and (address is None or found.address <= address < found.address + found.size)
        ]


def _placed(module: ModuleTypes, memory: Loaded) -> list[Symbol]:
    """A module's symbols that lie in its memory, ascending; each ends where the next begins, or its region does."""
    names = sorted(module.symbols, key=lambda name: module.symbols[name])
    value = np.array([module.symbols[name] for name in names], np.uint64)
    found: dict[str, Symbol] = {}  # before 6.4 the region of code is part of a greater one, which comes behind it
    for at in range(len(memory.base)):
        base, size = int(memory.base[at]), int(memory.size[at])
        if memory.name[int(memory.owner[at])] != module.name:
            continue
        kind = SymbolKind.FUNC if memory.text[at] else SymbolKind.OBJECT
        first, last = np.searchsorted(value, np.array([base, base + size], np.uint64))
        ends = [*value[first + 1 : last].tolist(), base + size][: last - first]
        for name, start, end in zip(names[first:last], value[first:last].tolist(), ends, strict=True):
            found.setdefault(name, Symbol(name, start, end - start, SymbolBinding.UNKNOWN, kind))
    return list(found.values())


class Objects:
    """Variables, functions and enumerators by name."""

    def __init__(self, program: Program, guest: Guest, types: Types) -> None:
        self._program = program
        self._kernel = guest.kernel
        self._profile = guest.kernel.profile
        self._types = types

    def find(self, _: Program, name: str, flags: FindObjectFlags, filename: str | None) -> Object | None:
        """drgn's object finder."""
        if filename:
            return None
        if flags & FindObjectFlags.CONSTANT and name in self._constants:
            one, value = self._constants[name]
            return Object(self._program, self._types.type(one), value)
        row = self._profile.symbols.find(name)
        if row is None:
            return None
        address = self._profile.symbol(name)
        if self._profile.is_code(row):
            of = self._functions.get(name) if flags & FindObjectFlags.FUNCTION else None
            return None if of is None else Object(self._program, self._types.type(of), address=address)
        found = self._variable(name) if flags & FindObjectFlags.VARIABLE else None
        return None if found is None else Object(self._program, found, address=address)

    def _variable(self, name: str) -> Type | None:
        """The type of a variable: BTF's word, or that of the table of globals, or what is known of it here."""
        types = self._profile.types
        for one in types.ids(name, btf.VAR):
            return self._types.type(one)
        if name in _COUNTED:
            element = self._program.type(_COUNTED[name])
            return self._program.array_type(element, self._profile.room(name) // sizeof(element))
        for text in self._profile.listed_texts(name):
            try:
                return self._program.type(text)
            except LookupError:
                continue
        if name == "tk_core":  # without a name before 6.13 (kernel/time/timekeeping.c)
            return self._keeper()
        return None

    def _keeper(self) -> Type | None:
        types = self._profile.types
        counter = next(types.ids("seqcount_raw_spinlock", btf.STRUCT), None) or next(
            types.ids("seqcount", btf.STRUCT), None
        )
        keeper = next(types.ids("timekeeper", btf.STRUCT), None)
        if counter is None or keeper is None:
            return None
        seq, inner = self._types.type(counter), self._types.type(keeper)
        at = align_up(types.type(counter).size, 8)
        members = [TypeMember(seq, "seq", 0), TypeMember(inner, "timekeeper", 8 * at)]
        return self._program.struct_type(None, at + types.type(keeper).size, members)

    @cached_property
    def _constants(self) -> dict[str, tuple[int, int]]:
        """Every enumerator: the id of its enum, its value."""
        types = self._profile.types
        found: dict[str, tuple[int, int]] = {}
        for one in self._ids(btf.ENUM, btf.ENUM64):
            for label, value in types.enumerators(one):
                found.setdefault(label, (one, value))
        return found

    @cached_property
    def _functions(self) -> dict[str, int]:
        """The id of every function."""
        return {self._profile.types.record(one).name: one for one in self._ids(btf.FUNC)}

    def _ids(self, *kinds: int) -> list[int]:
        types = self._profile.types
        return [one for one in range(1, types.end_id) if types.record(one).kind in kinds]


def vmcoreinfo(guest: Guest) -> bytes:
    """What the kernel tells crash tools of itself (kernel/crash_core.c); a few lines of ours where it has none."""
    kernel = guest.kernel
    try:
        size = kernel.number(8, "vmcoreinfo_size")
        if 0 < size <= 1 << 16:
            return kernel.space.read(kernel.pointer("vmcoreinfo_data"), size)
    except VmiError:
        pass
    profile, space = kernel.profile, kernel.space
    lines = {
        "OSRELEASE": profile.release, "PAGESIZE": "4096", "KERNELOFFSET": f"{profile.slide:x}",
        "SYMBOL(swapper_pg_dir)": f"{kernel.symbol('init_top_pgt', 'swapper_pg_dir'):x}",
        "SYMBOL(_stext)": f"{kernel.symbol('_stext'):x}",
        "NUMBER(pgtable_l5_enabled)": str(int(space.paging.levels == 5)),
        "NUMBER(phys_base)": str(kernel.number(8, "phys_base")),
    }  # fmt: skip
    return "".join(f"{name}={value}\n" for name, value in lines.items()).encode()
