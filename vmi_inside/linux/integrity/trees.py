"""Red-black trees, many at once, breadth first.

Knows `struct rb_node` (include/linux/rbtree.h). What hangs in them is the asker's matter.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside.kernel import Kernel
from vmi_inside.types import U64
from vmi_inside.walk import NODE_LIMIT, Walk

#: A balanced tree of 2**64 nodes is no deeper.
DEPTH_LIMIT: Final = 128


def tree_nodes(kernel: Kernel, roots: U64, what: str) -> Walk:
    """All nodes below the root nodes (n,), 0 being an empty tree; `owner` is the row of the root."""
    ctype = kernel.struct("rb_node")
    node, owner = roots[roots != 0], np.flatnonzero(roots).astype(np.int64)
    seen = np.empty(0, dtype=np.uint64)
    nodes: list[U64] = [seen]
    owners: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
    faults: dict[str, None] = {}
    for _ in range(DEPTH_LIMIT):
        node, first = np.unique(node, return_index=True)
        fresh = ~np.isin(node, seen)
        if not fresh.all() or len(first) != len(owner):
            faults[f"{what}: a node stands twice in the tree"] = None
        node, owner = node[fresh], owner[first[fresh]]
        if not len(node):
            break
        if len(seen) + len(node) > NODE_LIMIT:
            faults[f"{what}: cut after {len(seen)} nodes"] = None
            break
        rows = kernel.structs(ctype, node).fetch("rb_left", "rb_right")
        if rows.fault.any():
            faults[f"{what}: a node could not be read"] = None
        node, owner = node[~rows.fault], owner[~rows.fault]
        rows = rows.select(~rows.fault)
        seen = np.concatenate((seen, node))
        nodes.append(node)
        owners.append(owner)
        node, owner = np.concatenate((rows.pointer("rb_left"), rows.pointer("rb_right"))), np.tile(owner, 2)
        node, owner = node[node != 0], owner[node != 0]
    else:
        faults[f"{what}: deeper than a tree can be"] = None
    return Walk(np.concatenate(nodes), np.concatenate(owners), tuple(faults))
