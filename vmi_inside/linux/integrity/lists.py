"""Circular lists, many at once, of nodes that are mostly known beforehand: read in one round, then followed.

Knows `struct list_head` (include/linux/types.h). A list that a walk must take node by node costs a round a node; where
another view has told the nodes, their pointers are read together, and only what is new is read one by one.
"""

from __future__ import annotations

import numpy as np

from vmi_inside.errors import MemoryFault
from vmi_inside.space import AddressSpace
from vmi_inside.types import U64, distinct
from vmi_inside.walk import NODE_LIMIT, Walk


def followed(space: AddressSpace, heads: U64, known: U64, what: str) -> Walk:
    """The nodes of the lists with these heads (n,), which are not among them; `known` are nodes that may be met."""
    every = distinct(np.concatenate((heads, known)))
    raw, ok = space.gather(every, 8)
    following = dict(zip(every[ok].tolist(), raw.view("<u8")[ok, 0].tolist(), strict=True))
    nodes: list[int] = []
    owners: list[int] = []
    seen: set[int] = set()
    faults: dict[str, None] = {}
    for row, head in enumerate(heads.tolist()):
        node = following.get(head)
        if node is None:
            faults[f"{what}: a list's head could not be read"] = None
            continue
        if not node:
            continue  # never made a list: what it is in was never a task
        while node != head:
            if node in seen:
                faults[f"{what}: a list runs in a circle or into another"] = None
                break
            if len(nodes) == NODE_LIMIT:
                faults[f"{what}: cut after {NODE_LIMIT} nodes"] = None
                break
            seen.add(node)
            after = following.get(node)
            if after is None:
                try:
                    after = space.read_u64(node)
                except MemoryFault as error:
                    faults[f"{what}: {error}"] = None
                    break
            nodes.append(node)
            owners.append(row)
            node = after
    return Walk(np.array(nodes, dtype=np.uint64), np.array(owners, dtype=np.int64), tuple(faults))
