"""Everything in /proc that is no process: all `proc_dir_entry`s, breadth first.

Knows `struct proc_dir_entry` (fs/proc/internal.h) and that each network namespace has a tree of its own.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.integrity.trees import tree_nodes
from vmi_inside.linux.sockets.namespaces import network_namespaces
from vmi_inside.structs import Structs
from vmi_inside.types import U64, distinct

DEPTH_LIMIT: Final = 32
ENTRY_LIMIT: Final = 1 << 18
_NAME_LIMIT: Final = 64


class ProcEntries:
    """All entries (n rows), and the row of the one above each, -1 for a root. Raises `NoSymbol`, `NoMember`."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        ctype = kernel.struct("proc_dir_entry")
        net, _ = network_namespaces(kernel)
        roots = np.array([kernel.symbol("proc_root")], dtype=np.uint64)
        if net.has("proc_net"):
            roots = np.concatenate((roots, net.pointer("proc_net")))
        self.faults: tuple[str, ...] = ()
        level: U64 = distinct(roots[roots != 0])
        found, above = [level], [np.full(len(level), -1)]
        seen, first = level, 0
        for _ in range(DEPTH_LIMIT):
            tops = kernel.structs(ctype, level).pointer("subdir.rb_node")
            nodes = tree_nodes(kernel, tops, "/proc")
            self.faults += nodes.faults
            below = nodes.address - np.uint64(ctype.member("subdir_node").offset)
            new = ~np.isin(below, seen)
            if not new.any() or len(seen) > ENTRY_LIMIT:
                break
            found.append(below[new])
            above.append(first + nodes.owner[new])
            first, level = len(seen), below[new]
            seen = np.concatenate((seen, level))
        self.rows: Structs = kernel.structs(ctype, np.concatenate(found))
        self.above = np.concatenate(above)

    def path(self, row: int) -> str:
        """Where it stands, as far as that can be read."""
        chain: list[int] = []
        while row >= 0 and len(chain) <= DEPTH_LIMIT:
            chain.append(row)
            row = int(self.above[row])
        names, _ = self.kernel.strings(self.rows.select(np.array(chain)).pointer("name"), _NAME_LIMIT)
        return "/".join(("/proc", *(name for name in reversed(names) if name and name != "/proc")))
