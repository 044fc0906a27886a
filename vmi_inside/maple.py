"""The maple tree, walked in batches: many trees side by side, breadth first.

Knows `struct maple_node` and what the low bits of its addresses say (include/linux/maple_tree.h, lib/maple_tree.c; 6.1
and later). What hangs in a tree is a table's matter; lists and the xarray are `walk`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside.profile.ctypes import CType
from vmi_inside.space import AddressSpace
from vmi_inside.types import I64, MASK64, U8, U64, Mask, among

#: Nodes that one walk visits at the most.
NODE_LIMIT: Final = 1 << 18
#: MAPLE_HEIGHT_MAX: no tree is higher.
HEIGHT_LIMIT: Final = 31
#: A node is 256 bytes; a profile that says much more lies.
_SIZE_LIMIT: Final = 1 << 12

#: enum maple_type, in bits 3 to 6 of a node's address.
DENSE, LEAF, RANGE, ARANGE = range(4)
_ZERO, _ONE = np.uint64(0), np.uint64(1)
_LAST = np.uint64(MASK64)


@dataclass(frozen=True, slots=True)
class Entries:
    """What `n` trees hold: pointers `entry` (m,), each for the indices `first` to `last` (m,) of tree `owner` (m,).

    Sorted by owner and index. `whole` (n,) says which trees were read to their end; `faults` why others were not.
    """

    entry: U64
    first: U64
    last: U64
    owner: I64
    whole: Mask
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Nodes:
    """Nodes to be read: their addresses with the tag bits, and the tree and the indices that each stands for."""

    node: U64
    low: U64
    high: U64
    owner: I64

    def take(self, which: Mask | NDArray[np.intp]) -> _Nodes:
        return _Nodes(self.node[which], self.low[which], self.high[which], self.owner[which])


def entries(space: AddressSpace, root: U64, node: CType, *, what: str = "maple tree") -> Entries:
    """All pointers in `n` maple trees; `root` (n,) holds the values of `ma_root`, `node` is `struct maple_node`.

    What is no pointer (a value, the kernel's own marks) is left out. Rounds are the height of the highest tree.
    """
    shapes = _shapes(node)
    count = len(root)
    whole = np.ones(count, dtype=np.bool_)
    faults: dict[str, None] = {}
    found: list[_Nodes] = []
    seen = np.empty(0, dtype=np.uint64)
    everything = _Nodes(root, np.zeros(count, np.uint64), np.full(count, _LAST), np.arange(count, dtype=np.int64))

    def torn(owner: I64, words: str) -> None:
        if len(owner):
            whole[owner] = False
            faults[f"{what}: {words}"] = None

    # A root that is no node is the entry of index 0 (mas_root_expand); one that is carries a mark of its own.
    tree = (root & np.uint64(3) == np.uint64(2)) & (root > np.uint64(4096))
    single = everything.take(~tree)
    found.append(_Nodes(single.node, single.low, single.low, single.owner))
    here = everything.take(tree)
    for _ in range(HEIGHT_LIMIT):
        address = here.node & ~np.uint64(0xFF)
        _, at = np.unique(address, return_index=True)
        fresh = np.zeros(len(address), dtype=np.bool_)
        fresh[at] = True
        fresh &= ~among(address, seen)
        torn(here.owner[~fresh], "a node stands twice in the trees")
        here, address = here.take(fresh), address[fresh]
        if len(seen) + len(address) > NODE_LIMIT:
            torn(here.owner, f"cut after {len(seen)} nodes")
            break
        seen = np.sort(np.concatenate((seen, address)))
        kind = (here.node >> np.uint64(3)) & np.uint64(15)
        raw, ok = space.gather(address, min(node.size, _SIZE_LIMIT))
        torn(here.owner[~ok | (kind >= len(shapes))], "a node could not be read or makes no sense")
        onward: list[_Nodes] = []
        for code, shape in enumerate(shapes):
            rows = np.flatnonzero(ok & (kind == code))
            if not len(rows):
                continue
            slots, sane = shape.slots(raw[rows], here.take(rows))
            torn(here.owner[rows[~sane]], "a node's limits do not ascend")
            (found if code < RANGE else onward).append(slots)
        if not onward:
            break
        here = _joined(onward)
        empty = here.node == _ZERO
        torn(here.owner[empty], "a node lacks a child")
        here = here.take(~empty)
    else:
        torn(here.owner, "higher than a tree can be")
    out = _joined(found)
    out = out.take((out.node & np.uint64(3) == _ZERO) & (out.node != _ZERO))
    out = out.take(np.lexsort((out.low, out.owner)))
    return Entries(out.node, out.low, out.high, out.owner, whole, tuple(faults))


@dataclass(frozen=True, slots=True)
class _Shape:
    """Where a kind of node keeps its slots and, but for dense ones, its pivots: the last index of each slot."""

    slot: int
    width: int
    pivot: int = 0
    pivots: int = 0

    def slots(self, raw: U8, nodes: _Nodes) -> tuple[_Nodes, Mask]:
        """The slots in use of k nodes, with the indices that each stands for; and (k,) bool: which make sense."""
        low, high = nodes.low[:, None], nodes.high[:, None]
        slot = _words(raw, self.slot, self.width)
        if self.pivots:
            last = np.repeat(high, self.width, axis=1)
            last[:, : self.pivots] = _words(raw, self.pivot, self.pivots)[:, : self.width]
            # A pivot of 0 means that the slot before was the last, unless it is index 0 itself that it limits.
            unset = last == _ZERO
            unset[:, 0] &= nodes.low != _ZERO
            last = np.where(unset, high, last)
        else:
            last = low + np.minimum(np.arange(self.width, dtype=np.uint64)[None, :], high - low)
        first = np.concatenate((low, last[:, :-1] + _ONE), axis=1)
        used = np.ones(last.shape, dtype=np.bool_)
        used[:, 1:] = ~np.logical_or.accumulate(last >= high, axis=1)[:, :-1]
        wrong = used & ((last < first) | (last > high))
        used &= ~np.logical_or.accumulate(wrong, axis=1)
        row, column = np.nonzero(used)
        made = _Nodes(slot[row, column], first[row, column], last[row, column], nodes.owner[row])
        return made, np.logical_not(np.bitwise_or.reduce(wrong, axis=1))


def _shapes(node: CType) -> tuple[_Shape, ...]:
    """The shapes of dense nodes, leaves, ranges and ranges with gaps, in the order of `enum maple_type`."""
    slot = node.member("slot")
    wide = _range(node, "mr64")
    return _Shape(slot.offset, slot.type.count), wide, wide, _range(node, "ma64")


def _range(node: CType, name: str) -> _Shape:
    slot, pivot = node.member(f"{name}.slot"), node.member(f"{name}.pivot")
    return _Shape(slot.offset, slot.type.count, pivot.offset, pivot.type.count)


def _words(raw: U8, offset: int, count: int) -> U64:
    return np.ascontiguousarray(raw[:, offset : offset + 8 * count]).view("<u8")


def _joined(parts: list[_Nodes]) -> _Nodes:
    return _Nodes(
        np.concatenate([part.node for part in parts]),
        np.concatenate([part.low for part in parts]),
        np.concatenate([part.high for part in parts]),
        np.concatenate([part.owner for part in parts]),
    )
