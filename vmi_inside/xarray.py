"""The xarray with all that it holds, walked in batches: many arrays side by side, breadth first.

Knows `struct xa_node` and what the low bits of an entry say (include/linux/xarray.h, lib/xarray.c; 4.20 and later):
pointers, values, entries that stand for several indices, marks. What the entries mean is a table's matter; where only
the pointers of one array are wanted, `walk.xarray` gives them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside.profile.ctypes import CType
from vmi_inside.space import AddressSpace
from vmi_inside.types import I64, U8, U64, Mask, among

#: Entries that one walk gives at the most: the page cache of 256 GiB in single pages.
ENTRY_LIMIT: Final = 1 << 26
#: An xarray of 64-bit indices with 64 slots a node is no deeper than this.
DEPTH_LIMIT: Final = 11
#: Nodes that are read in one round; of more the rest is read in the next ones.
_BATCH: Final = 1 << 14
_SHIFT_LIMIT: Final = 64
_NONE, _ONE = np.uint64(0), np.uint64(1)


@dataclass(frozen=True, slots=True)
class Entries:
    """What `n` xarrays hold: `entry` (m,) as it stands there, for `count` (m,) indices from `index` (m,) on.

    Sorted by `owner` (m,), the row of the array, and index. An entry is a pointer, or a value (odd). `marks` (m,) has
    bit i where XA_MARK_i is set; of an entry that is the array's only one, marks stand in the array's flags, and are 0
    here. `whole` (n,) says which arrays were read to their end; `faults` why others were not.
    """

    entry: U64
    index: I64
    count: I64
    owner: I64
    marks: U8
    whole: Mask
    faults: tuple[str, ...]

    @property
    def value(self) -> Mask:
        """Which entries are values, and no pointers (xa_is_value)."""
        odd: Mask = self.entry & _ONE != _NONE
        return odd


def entries(space: AddressSpace, head: U64, node: CType, *, what: str = "xarray") -> Entries:
    """All entries of `n` xarrays; `head` (n,) holds the values of `xa_head`, `node` is `struct xa_node`.

    Rounds are the depth of the deepest. Nodes that cannot be read or make no sense cost only what hangs below them.
    """
    shape = _Shape.of(node)
    count = len(head)
    whole = np.ones(count, dtype=np.bool_)
    faults: dict[str, None] = {}

    def torn(owner: I64, words: str) -> None:
        if len(owner):
            whole[owner] = False
            faults[f"{what}: {words}"] = None

    everything = _Slots(
        head, np.zeros(count, np.int64), np.ones(count, np.int64), np.arange(count), np.zeros(count, np.uint8)
    )
    inner = _is_node(head)
    plain = everything.take(~inner & (head != _NONE) & (head & np.uint64(3) != np.uint64(2)))
    found = [plain]
    here = everything.take(inner)
    limit = np.full(len(here.entry), _SHIFT_LIMIT)
    seen = np.empty(0, dtype=np.uint64)
    total = len(plain.entry)
    for _ in range(DEPTH_LIMIT):
        if not len(here.entry):
            break
        address = here.entry - np.uint64(2)
        _, at = np.unique(address, return_index=True)
        fresh = np.zeros(len(address), dtype=np.bool_)
        fresh[at] = True
        fresh &= ~among(address, seen)
        torn(here.owner[~fresh], "a node stands twice in the trees")
        here, limit = here.take(fresh), limit[fresh]
        seen = np.sort(np.concatenate((seen, address[fresh])))
        below: list[tuple[_Slots, I64]] = []
        for start in range(0, len(here.entry), _BATCH):
            part = here.take(slice(start, start + _BATCH))
            slots, shift, sane = shape.read(space, part, limit[start : start + _BATCH])
            torn(part.owner[~sane], "a node could not be read or makes no sense")
            deeper = _is_node(slots.entry)
            leaves = slots.take(~deeper)
            total += len(leaves.entry)
            found.append(leaves)
            below.append((slots.take(deeper), shift[deeper]))
            if total > ENTRY_LIMIT:
                torn(here.owner[start + _BATCH :], f"cut after {total} entries")
                torn(below[-1][0].owner, f"cut after {total} entries")
                below = []
                break
        here = _joined([each for each, _ in below])
        limit = np.concatenate([each for _, each in below]) if below else np.empty(0, dtype=np.int64)
    else:
        torn(here.owner, "deeper than an xarray can be")
    out = _joined(found)
    out = out.take(np.lexsort((out.index, out.owner)))
    return Entries(out.entry, out.index, out.count, out.owner, out.marks, whole, tuple(faults))


@dataclass(frozen=True, slots=True)
class _Slots:
    """Slots: what stands in them, the indices that each is for, the array that each belongs to, its marks."""

    entry: U64
    index: I64
    count: I64
    owner: I64
    marks: U8

    def take(self, which: Mask | NDArray[np.intp] | slice) -> _Slots:
        return _Slots(
            self.entry[which], self.index[which], self.count[which], self.owner[which], self.marks[which]
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Shape:
    """Where a node keeps its shift, slots and marks."""

    size: int
    shift: int
    slots: int
    width: int
    marks: int
    kinds: int

    @classmethod
    def of(cls, node: CType) -> _Shape:
        slots = node.member("slots")
        width = slots.type.count or 64
        has_marks = node.has("marks")
        marks = node.member("marks") if has_marks else slots
        end = max(slots.offset + 8 * width, marks.offset + marks.size)
        kinds = min(marks.type.count, 8) if has_marks and width <= 64 else 0
        return cls(end, node.member("shift").offset, slots.offset, width, marks.offset, kinds)

    def read(self, space: AddressSpace, nodes: _Slots, limit: I64) -> tuple[_Slots, I64, Mask]:
        """The slots in use of k nodes, the shift of the node that each stands in, and (k,) bool: which nodes are sane.

        A node's shift is less than `limit` (k,), that of the node above it.
        """
        raw, ok = space.gather(nodes.entry - np.uint64(2), self.size)
        shift = raw[:, self.shift].astype(np.int64)
        sane = ok & (shift < limit)
        rows = np.flatnonzero(sane)
        raw, shift = raw[rows], shift[rows]
        entry = np.ascontiguousarray(raw[:, self.slots : self.slots + 8 * self.width]).view("<u8")
        place = np.arange(self.width)
        # A slot that says which slot before it stands for it, too (xa_is_sibling), adds to that one's count.
        sibling = (entry & np.uint64(3) == np.uint64(2)) & (entry < np.uint64(self.width << 2))
        first = np.where(sibling, (entry >> np.uint64(2)).astype(np.int64), place[None, :])
        follows = np.zeros_like(sibling)
        follows[:, 1:] = sibling[:, 1:] & (first[:, 1:] == first[:, :-1])
        row, column = np.nonzero(follows)
        count = np.ones(entry.shape, dtype=np.int64)
        np.add.at(count, (row, first[row, column]), 1)
        used = (entry != _NONE) & ((entry & np.uint64(3) != np.uint64(2)) | _is_node(entry))
        row, column = np.nonzero(used)
        marks = np.zeros(len(row), dtype=np.uint8)
        for kind in range(self.kinds):
            at = self.marks + 8 * kind
            bits = np.ascontiguousarray(raw[:, at : at + 8]).view("<u8")[:, 0]
            marks |= ((bits[row] >> column.astype(np.uint64) & _ONE) << np.uint64(kind)).astype(np.uint8)
        here = rows[row]
        each = shift[row]
        slots = _Slots(
            entry[row, column], nodes.index[here] + (column << each), count[row, column] << each, nodes.owner[here],
            marks,
        )  # fmt: skip
        return slots, each, sane


def _is_node(entry: U64) -> Mask:
    """xa_is_node: an internal entry above the small reserved ones."""
    internal: Mask = entry & np.uint64(3) == np.uint64(2)
    return internal & (entry > np.uint64(4096))


def _joined(parts: list[_Slots]) -> _Slots:
    if not parts:
        none = np.empty(0, dtype=np.int64)
        return _Slots(none.astype(np.uint64), none, none, none, none.astype(np.uint8))
    return _Slots(
        np.concatenate([part.entry for part in parts]),
        np.concatenate([part.index for part in parts]),
        np.concatenate([part.count for part in parts]),
        np.concatenate([part.owner for part in parts]),
        np.concatenate([part.marks for part in parts]),
    )
