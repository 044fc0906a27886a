"""The red-black tree, walked in batches: many trees side by side, breadth first.

Knows `struct rb_node` (include/linux/rbtree_types.h; lib/rbtree.c). What hangs in a tree is a table's matter; lists and
the xarray are `walk`'s, the maple tree is `maple`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.profile.ctypes import CType
from vmi_inside.space import AddressSpace
from vmi_inside.types import I64, U64, Mask, among

#: Nodes that one walk visits at the most.
NODE_LIMIT: Final = 1 << 20
#: A balanced tree of `NODE_LIMIT` nodes is at most twice as high as its binary logarithm.
HEIGHT_LIMIT: Final = 48
#: A node is three words; a profile that says much more lies.
_SIZE_LIMIT: Final = 256
#: The two low bits of the parent's address: the colour, and what is to be masked out beside it.
_COLOUR: Final = np.uint64(3)
_NONE: Final = np.uint64(0)


@dataclass(frozen=True, slots=True)
class Nodes:
    """Nodes of `n` trees: addresses of the `rb_node`s (m,), and the tree `owner` (m,) that each belongs to.

    Sorted by tree, and in it as the tree is: by its key, ascending. `sure` (m,) says which name as their parent the
    node that they were found at; of others the row is given, but nothing below it is followed. `faults` names what cut
    the walk short, in words; empty when it came to its end.
    """

    address: U64
    owner: I64
    sure: Mask
    faults: tuple[str, ...]


def nodes(space: AddressSpace, root: U64, node: CType, *, what: str = "tree") -> Nodes:
    """All nodes of `n` trees; `root` (n,) holds the values of `rb_root.rb_node`, `node` is `struct rb_node`.

    Rounds are the height of the highest tree.
    """
    at = [node.member(name).offset for name in ("__rb_parent_color", "rb_left", "rb_right")]
    size = min(node.size, _SIZE_LIMIT)
    here = np.ascontiguousarray(root, dtype=np.uint64)
    owner = np.arange(len(root), dtype=np.int64)
    above = np.zeros(len(root), dtype=np.uint64)
    # Where a node stands among all of its tree: the path from the root, as a binary fraction.
    place = np.full(len(root), 1 << 63, dtype=np.uint64)
    found: list[tuple[U64, I64, U64, Mask]] = []
    faults: dict[str, None] = {}
    seen = np.empty(0, dtype=np.uint64)
    for height in range(HEIGHT_LIMIT):
        live = here != _NONE
        here, owner, above, place = here[live], owner[live], above[live], place[live]
        _, first = np.unique(here, return_index=True)
        fresh = np.zeros(len(here), dtype=np.bool_)
        fresh[first] = True
        fresh &= ~among(here, seen)
        if not fresh.all():
            faults[f"{what}: a node stands twice in the trees"] = None
            here, owner, above, place = here[fresh], owner[fresh], above[fresh], place[fresh]
        if not len(here):
            break
        if len(seen) + len(here) > NODE_LIMIT:
            faults[f"{what}: cut after {len(seen)} nodes"] = None
            break
        seen = np.sort(np.concatenate((seen, here)))
        raw, ok = space.gather(here, size)
        if not ok.all():
            faults[f"{what}: a node could not be read"] = None
            here, owner, above, place, raw = here[ok], owner[ok], above[ok], place[ok], raw[ok]
        parent, left, right = (np.ascontiguousarray(raw[:, offset : offset + 8]).view("<u8")[:, 0] for offset in at)
        sure = parent & ~_COLOUR == above
        found.append((here, owner, place, sure))
        if not sure.all():
            faults[f"{what}: a node names another parent; what hangs below it was not followed"] = None
            here, owner, place, left, right = here[sure], owner[sure], place[sure], left[sure], right[sure]
        step = np.uint64(1 << 62 - height)
        above = np.concatenate((here, here))
        owner = np.concatenate((owner, owner))
        place = np.concatenate((place - step, place + step))
        here = np.concatenate((left, right))
    else:
        if here.any():
            faults[f"{what}: higher than a tree can be"] = None
    if not found:
        return Nodes(_EMPTY, _EMPTY.astype(np.int64), _EMPTY.astype(np.bool_), tuple(faults))
    address, owner, place, sure = (np.concatenate([part[column] for part in found]) for column in range(4))
    order = np.lexsort((place, owner))
    return Nodes(address[order], owner[order], sure[order], tuple(faults))


_EMPTY: Final[U64] = np.empty(0, dtype=np.uint64)
