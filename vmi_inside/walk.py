"""Walkers of the kernel's containers, in batches: hash chains, lists, the xarray.

Knows `struct hlist_*`, `struct list_head` (include/linux/types.h), `hlist_nulls` (include/linux/list_nulls.h) and
`struct xarray` (include/linux/xarray.h, 4.20 and later). What hangs in the containers is a table's matter.

Every walk has a limit, and says where it was cut: by a cycle, by memory that cannot be read, by the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmi_inside.errors import MemoryFault
from vmi_inside.profile.ctypes import CType
from vmi_inside.space import AddressSpace
from vmi_inside.types import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, U64, among, distinct

#: Nodes that one walk visits at the most.
NODE_LIMIT = 1 << 20
#: Rounds that one walk of chains takes at the most: no chain is believed to be longer.
ROUND_LIMIT = 1 << 14
#: An xarray of 64-bit indices with 64 slots a node is no deeper than this.
XARRAY_DEPTH = 11

#: Lists of so many nodes are remembered, of so many lists: one reading of all costs as much as some of one.
_WORTH, _KEPT_NODES, _KEPT_LISTS = 8, 1 << 12, 64

_NONE = np.uint64(0)
#: xa_is_node: an entry with this tag, above the small reserved ones (include/linux/xarray.h).
_INTERNAL, _RESERVED = np.uint64(2), np.uint64(4096)


@dataclass(frozen=True, slots=True)
class Walk:
    """Nodes found: `address` (m,) uint64 and `owner` (m,) the chain or slot index that each belongs to.

    `faults` names what cut the walk short, in words; empty when it came to its end.
    """

    address: U64
    owner: NDArray[np.int64]
    faults: tuple[str, ...]


def chains(
    space: AddressSpace,
    first: U64,
    next_offset: int = 0,
    *,
    end: U64 | None = None,
    nulls: bool = False,
    what: str = "list",
) -> Walk:
    """Walk `n` linked chains at once, one node of each a round.

    `first` (n,) holds each chain's first node; the pointer to the next lies `next_offset` bytes into a node. A chain
    ends at NULL, at its own `end[i]` (a circular list's head), or with `nulls` at an odd pointer (the end marker of
    `hlist_nulls`); where it ends otherwise, `faults` say so. Rounds are as many as the longest chain is long.
    """
    owner = np.arange(len(first), dtype=np.int64)
    node = np.ascontiguousarray(first, dtype=np.uint64)
    seen = recent = np.empty(0, dtype=np.uint64)
    nodes: list[U64] = []
    owners: list[NDArray[np.int64]] = []
    faults: dict[str, None] = {}
    total = 0
    while True:
        odd = node & np.uint64(1) != 0
        live = (node != _NONE) & ~odd
        if end is not None:
            live &= node != end[owner]
        # A list that was never made has no first node; one that was made does not end in the middle.
        wrong = odd & (not nulls) if end is None or not nodes else ~live & (node != end[owner])
        if wrong.any():
            faults[f"{what}: a chain ends in what is no pointer, or before its end"] = None
        node, owner = node[live], owner[live]
        if not len(node):
            break
        fresh = ~(among(node, seen) | among(node, recent))
        ordered, index = np.unique(node, return_index=True)
        once = np.zeros(len(node), dtype=np.bool_)
        once[index] = True
        fresh &= once
        if not fresh.all():
            faults[f"{what}: a chain runs in a circle or into another"] = None
            node, owner = node[fresh], owner[fresh]
            ordered = np.sort(node)
        if total + len(node) > NODE_LIMIT or len(nodes) == ROUND_LIMIT:
            faults[f"{what}: cut after {total} nodes"] = None
            break
        total += len(node)
        recent = np.sort(np.concatenate((recent, ordered)))
        if len(recent) > max(1024, len(seen) // 8):  # seldom, so that a long chain does not sort all of it every round
            seen, recent = np.sort(np.concatenate((seen, recent))), recent[:0]
        raw, ok = space.gather(node + np.uint64(next_offset), 8)
        if not ok.all():
            faults[f"{what}: a node could not be read"] = None
            node, owner, raw = node[ok], owner[ok], raw[ok]
        nodes.append(node)
        owners.append(owner)
        node = raw.view("<u8")[:, 0]
    if not nodes:
        return Walk(np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64), tuple(faults))
    return Walk(np.concatenate(nodes), np.concatenate(owners), tuple(faults))


def serial(
    space: AddressSpace, head: int, next_offset: int = 0, *, what: str = "list", limit: int = NODE_LIMIT
) -> Walk:
    """Walk one circular list from its `head`, which is not among the nodes given. Address by address.

    Where the list was walked before, its nodes are read all at once: mostly it is as it was.
    """
    before = space.lists.get((head, next_offset))
    if before is not None and len(before) <= limit and _linked(space, head, next_offset, before):
        return Walk(before, np.zeros(len(before), dtype=np.int64), ())
    nodes: list[int] = []
    seen = {head}
    faults: tuple[str, ...] = ()
    try:
        node = space.read_u64(head + next_offset)
        while node not in seen and node:
            if len(nodes) >= limit:
                faults = (f"{what}: cut after {limit} nodes",)
                break
            seen.add(node)
            following = space.read_u64(node + next_offset)
            nodes.append(node)
            node = following
        else:
            if node != head:
                faults = (f"{what}: runs in a circle at {node:#x}" if node else f"{what}: ends in NULL",)
    except MemoryFault as error:
        faults = (f"{what}: {error}",)
    found = np.array(nodes, dtype=np.uint64)
    if not faults and _WORTH <= len(found) <= _KEPT_NODES:
        if len(space.lists) >= _KEPT_LISTS:
            space.lists.clear()
        space.lists[head, next_offset] = found
    return Walk(found, np.zeros(len(found), dtype=np.int64), faults)


def _linked(space: AddressSpace, head: int, next_offset: int, nodes: U64) -> bool:
    """Whether these are all the nodes of a list now, in that order."""
    ring = np.concatenate((np.array([head], dtype=np.uint64), nodes))
    raw, ok = space.gather(ring + np.uint64(next_offset), 8)
    return bool(ok.all()) and np.array_equal(raw.view("<u8")[:, 0], np.roll(ring, -1))


def dense(space: AddressSpace, heads: U64, next_offset: int = 0, *, what: str = "list") -> Walk:
    """Walk `n` long circular lists, whose nodes lie close together as those of one kind of object do.

    `heads` (n,) are not among the nodes given. As `serial`, but memory is read page by page, and no page twice: of
    objects of 600 bytes that is one reading for six of them, and what was read is of one moment.
    """
    pages: dict[int, memoryview | None] = {}

    def page(number: int) -> memoryview | None:
        try:
            raw = space.memory.read(space.translate_one(number << PAGE_SHIFT), PAGE_SIZE)
        except MemoryFault:
            raw = None
        pages[number] = held = None if raw is None else np.frombuffer(bytes(raw), "<u8").data
        return held

    def following(node: int) -> int | None:
        at = node + next_offset
        number = at >> PAGE_SHIFT
        held = pages[number] if number in pages else page(number)
        return None if held is None or at & 7 else held[(at & PAGE_MASK) >> 3]

    nodes: list[int] = []
    owner: list[int] = []
    faults: dict[str, None] = {}
    seen = set(heads.tolist())
    for row, head in enumerate(heads.tolist()):
        node = following(head) if head else head
        while node != head:
            if not node:
                faults[f"{what}: a node could not be read" if node is None else f"{what}: ends in NULL"] = None
                break
            if node in seen:
                faults[f"{what}: runs in a circle or into another"] = None
                break
            if len(nodes) >= NODE_LIMIT:
                faults[f"{what}: cut after {NODE_LIMIT} nodes"] = None
                break
            seen.add(node)
            after = following(node)
            if after is not None:
                nodes.append(node)
                owner.append(row)
            node = after
    return Walk(np.array(nodes, dtype=np.uint64), np.array(owner, dtype=np.int64), tuple(faults))


def xarray(space: AddressSpace, head: int, node: CType, *, what: str = "xarray") -> Walk:
    """All entries of an xarray (an IDR's too), breadth first; `head` is the value of `xa_head`.

    Gives the entries that are pointers to objects, low tag bits cleared, with `owner` their index. Value entries
    (odd) are left out. Rounds are the depth of the tree.
    """
    slots = node.member("slots")
    width = slots.type.count or 64
    shift_at, slots_at = node.member("shift").offset, slots.offset
    low = min(shift_at, slots_at)
    size = max(shift_at + 1, slots_at + 8 * width) - low
    entry = np.array([head], dtype=np.uint64)
    index = np.zeros(1, dtype=np.int64)
    found: list[U64] = []
    where: list[NDArray[np.int64]] = []
    faults: dict[str, None] = {}
    seen = np.empty(0, dtype=np.uint64)
    limit = 64  # the shift must fall from level to level
    for _ in range(XARRAY_DEPTH + 1):
        tag = entry & np.uint64(3)
        leaf = (tag == 0) & (entry != _NONE)
        found.append(entry[leaf])
        where.append(index[leaf])
        inner = (tag == _INTERNAL) & (entry > _RESERVED)
        address, base = entry[inner] - _INTERNAL, index[inner]
        if not len(address):
            break
        ordered = distinct(address)
        if len(ordered) != len(address) or among(ordered, seen).any():
            faults[f"{what}: a node stands twice in the tree"] = None
            address, first = np.unique(address, return_index=True)
            new = ~among(address, seen)
            ordered = address = address[new]
            base = base[first][new]
            if not len(address):
                break
        if len(seen) + len(address) > NODE_LIMIT // width:
            faults[f"{what}: cut after {len(seen)} nodes"] = None
            break
        seen = np.sort(np.concatenate((seen, ordered)))
        raw, ok = space.gather(address + np.uint64(low), size)
        rows = raw[:, slots_at - low : slots_at - low + 8 * width]
        shift = raw[:, shift_at - low].astype(np.int64)
        sane = ok & (shift < limit)
        if not sane.all():
            faults[f"{what}: a node could not be read or makes no sense"] = None
            rows, base, shift = rows[sane], base[sane], shift[sane]
            if not len(rows):
                break
        limit = int(shift.max())
        entry = np.ascontiguousarray(rows).view("<u8").ravel()
        index = (base[:, None] + (np.arange(width)[None, :] << shift[:, None])).ravel()
    else:
        faults[f"{what}: deeper than an xarray can be"] = None
    return Walk(np.concatenate(found), np.concatenate(where), tuple(faults))
