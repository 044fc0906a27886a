"""What parts of the kernel that may be modules keep for each network namespace.

Knows `struct net_generic` (include/net/netns/generic.h): a slot for each part, whose number is a variable of the
part's. What lies there is told by those who ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.errors import MemoryFault
from vmi_inside.kernel import Kernel
from vmi_inside.linux.network.devices import Namespaces, namespaces
from vmi_inside.linux.symbols.code import Code
from vmi_inside.linux.symbols.module_types import ModuleTypes, module_types
from vmi_inside.profile.ctypes import CType
from vmi_inside.structs import Structs

_SLOT_LIMIT: Final = 1 << 12


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the kernel: `own` (n) are its structs in the namespaces `known`, or None; `faults` may say why."""

    known: Namespaces
    own: Structs | None
    types: ModuleTypes | None
    faults: tuple[str, ...]

    def struct(self, kernel: Kernel, name: str) -> CType:
        """A struct of that part, the kernel's own or the module's. Raises `NoMember`."""
        found = kernel.find_struct(name) or (self.types.struct(name) if self.types else None)
        return found or kernel.struct(name)


def part(kernel: Kernel, module: str, slot: str, struct: str) -> Part:
    """That module, whose slot's number is in the variable `slot`, and which keeps a `struct` for each namespace.

    A kernel without it has none; where it is there, but not its types, that is said.
    """
    known = namespaces(kernel)
    types = module_types(kernel, module)
    number = types.symbols.get(slot) if types else kernel.profile.find_symbol(slot)
    if number is None:
        modules = Code(kernel).modules
        if not modules or module not in modules.name:
            return Part(known, None, types, known.faults)
    if number is None or not (kernel.find_struct(struct) or (types and types.struct(struct))):
        missing = f"{module}: the kernel has no types of it in memory (BTF of modules, since 5.11)"
        return Part(known, None, types, (*known.faults, missing))
    try:
        index = int.from_bytes(kernel.space.read(number, 4), "little")
    except MemoryFault as error:
        return Part(known, None, types, (*known.faults, f"{module}: {error}"))
    if index >= _SLOT_LIMIT:
        return Part(known, None, types, (*known.faults, f"{module}: slot {index} is not believed"))
    generic = known.rows.follow("gen", kernel.struct("net_generic"))
    at = np.where(generic.address == 0, np.uint64(0), generic.at("ptr") + np.uint64(8 * index))
    held = kernel.structs("list_head", at)
    found = Part(known, None, types, known.faults)
    own = Structs(kernel.space, found.struct(kernel, struct), held.pointer("next"))
    bad = (f"{module}: what it keeps for a namespace could not be read",) if held.fault.any() else ()
    return Part(known, own, types, (*known.faults, *bad))
