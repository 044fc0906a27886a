"""Where in the guest the kernel keeps the tables of its own symbols.

The tables (kernel/kallsyms_internal.h) are no symbols of the kernel's that it lists itself; tools that read them anew
ask for them by name. How they look is `profile.kallsyms`' knowledge.
"""

from __future__ import annotations

from vmi_inside.errors import MemoryFault
from vmi_inside.kernel import Kernel
from vmi_inside.profile import kallsyms


def symbol_tables(kernel: Kernel) -> dict[str, int]:
    """The address of each table: `kallsyms_names`, `kallsyms_markers` ...; empty where they are not found.

    Decodes the tables again: some 100 ms.
    """
    origin = kernel.profile.origin
    try:
        start = kernel.space.translate_one(origin)
    except MemoryFault:
        return {}
    for found in kallsyms.find(kernel.space.memory, start):
        if found.origin in (None, origin):
            return {name: at - start + origin for name, at in found.tables.items()}
    return {}
