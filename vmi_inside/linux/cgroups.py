"""Control groups: the path of a process's group in the unified (v2) hierarchy.

Knows `css_set.dfl_cgrp`, `cgroup.kn` and `kernfs_node` (include/linux/cgroup-defs.h, include/linux/kernfs.h).
"""

from __future__ import annotations

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs
from vmi_inside.types import U64, Mask

#: Nesting deeper than the kernel lets anybody make.
DEPTH_LIMIT = 256
_PARENT = ("__parent", "parent")  # kernfs_node.parent renamed in 6.15


def cgroup_paths(kernel: Kernel, css_set: U64) -> tuple[list[str], Mask]:
    """The v2 paths of `n` css_sets, `/` being the root's, and (n,) bool: which are whole. 0 gives an empty path."""
    unique, back = np.unique(css_set, return_inverse=True)
    sets = kernel.structs("css_set", unique)
    groups = sets.follow("dfl_cgrp")
    nodes = groups.follow("kn")
    shown, ok = node_paths(kernel, nodes)
    ok &= ~(sets.fault | groups.fault)
    return [shown[i] for i in back.tolist()], ok[back]


def node_paths(kernel: Kernel, nodes: Structs) -> tuple[list[str], Mask]:
    """The paths of `n` kernfs nodes in their hierarchy, and (n,) bool: which are whole. 0 gives an empty path."""
    node = nodes.address.copy()
    ok = np.ones(len(node), dtype=np.bool_)
    parts: list[list[str]] = [[] for _ in range(len(node))]
    row = np.flatnonzero(node)
    for _ in range(DEPTH_LIMIT):
        if not len(row):
            break
        here = kernel.structs(nodes.type, node[row]).fetch(_PARENT, "name")
        parent = here.pointer(_PARENT)
        names, good = kernel.strings(np.where(parent == 0, np.uint64(0), here.pointer("name")))
        ok[row[here.fault | ~good]] = False
        for at, name in zip(row.tolist(), names, strict=True):
            if name:
                parts[at].append(name)
        node[row] = parent
        row = row[(parent != 0) & ~here.fault]
    ok[row] = False
    begun = nodes.address.tolist()
    return ["/" + "/".join(reversed(part)) if address else "" for part, address in zip(parts, begun, strict=True)], ok
