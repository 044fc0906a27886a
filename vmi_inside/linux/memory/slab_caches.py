"""The kernel's slab caches, as /proc/slabinfo shows them.

Knows SLUB (mm/slub.c `get_slabinfo`, mm/slab.h): `slab_caches`, each cache's nodes, their lists of partly used slabs.
Objects that CPUs keep for themselves count as used, as the kernel counts them. What objects hold is left to others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.errors import NoSymbol, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.memory.vmstat import NODE_LIMIT
from vmi_inside.structs import Structs
from vmi_inside.table import Faults, Table, Text, text
from vmi_inside.types import I64, PAGE_SIZE, U64, Mask

CACHE_LIMIT: Final = 1 << 14
#: kmem_cache_order_objects.x: the order of a slab above, the objects of one below (OO_SHIFT, OO_MASK).
_OO_SHIFT: Final = 16
_ORDER_LIMIT: Final = 20
_WHAT: Final = "partly used slabs"
#: Lists longer than this are walked one by one; so many of a list are looked at (MAX_PARTIAL_TO_SCAN), and of all.
_LONG: Final = 64
_SCANNED: Final = 10_000
_IN_ALL: Final = 1 << 17
_BELIEVED: Final = 1 << 32


class SlabCaches(Table):
    """One row for each cache, in the kernel's order; /proc/slabinfo's column names."""

    name: Text
    active_objs: I64
    num_objs: I64
    objsize: I64  # bytes that an object takes
    objperslab: I64
    pagesperslab: I64
    slabs: I64
    object_size: I64  # bytes of them that its user asked for
    memory: I64  # bytes, all slabs together
    address: U64  # of struct kmem_cache


def slab_caches(kernel: Kernel, columns: Iterable[str] | None = None) -> SlabCaches:
    """All slab caches; `columns` asks for some columns only. Raises `Unsupported` where the allocator is not SLUB."""
    wanted = list(SlabCaches.schema if columns is None else columns)
    SlabCaches.check(wanted)
    with kernel.operation():
        cache = kernel.struct("kmem_cache")
        if not cache.has("oo.x") or not kernel.struct("kmem_cache_node").has("total_objects.counter"):
            raise Unsupported("slab caches: this kernel's allocator is not SLUB, or it was built without SLUB_DEBUG")
        try:
            listed = walk.serial(kernel.space, kernel.symbol("slab_caches"), what="slab caches", limit=CACHE_LIMIT)
        except NoSymbol as error:
            raise Unsupported(f"slab caches: {error}") from error
        rows = kernel.structs(cache, listed.address - np.uint64(cache.member("list").offset))
        rows.fetch("name", "object_size", "size", "oo.x")
        names, named = kernel.strings(rows.pointer("name"))
        faults = Faults(len(rows))
        faults.mark(rows.fault, "cache unreadable")
        faults.mark(~named, "name unreadable")
        order = rows.number("oo.x") >> _OO_SHIFT
        faults.mark(order > _ORDER_LIMIT, "order not believable")
        pages = np.int64(1) << np.minimum(order, _ORDER_LIMIT)
        owner, nodes = _nodes(kernel, rows)
        nodes.fetch("nr_slabs.counter", "total_objects.counter")
        slabs, total = (_sum(owner, nodes.number(f"{name}.counter"), rows) for name in ("nr_slabs", "total_objects"))
        notes = list(listed.faults)
        bad = _where(owner[nodes.fault], rows)
        free = np.zeros(len(rows), dtype=np.int64)
        if "active_objs" in wanted or columns is None:
            free, torn, more = _free(kernel, owner, nodes, rows)
            bad |= torn
            notes += more
        faults.mark(bad, "counts incomplete")
        faults.mark((free > total) | (slabs < 0) | (total < 0), "counts do not agree")
        data = {
            "name": text(names),
            "active_objs": np.maximum(total - free, 0),
            "num_objs": total,
            "objsize": rows.number("size"),
            "objperslab": rows.number("oo.x") & ((1 << _OO_SHIFT) - 1),
            "pagesperslab": pages,
            "slabs": slabs,
            "object_size": rows.number("object_size"),
            "memory": np.maximum(slabs, 0) * pages * PAGE_SIZE,
            "address": rows.address,
            "fault": faults.column(),
        }
        return SlabCaches({name: data[name] for name in (*wanted, "fault")}, notes)


def _nodes(kernel: Kernel, rows: Structs) -> tuple[I64, Structs]:
    """The kmem_cache_node of each NUMA node of each cache, and (m,) which cache it is of."""
    try:
        count = min(max(kernel.number(4, "nr_node_ids"), 1), NODE_LIMIT)
    except NoSymbol:
        count = 1
    member = rows.type.member("node", "per_node")  # per_node: beside sheaves, since 7.0
    count = min(count, max(member.type.count, 1))
    step = member.type.target.size or 8
    inner = member.type.target.member("node").offset if member.type.target.kind == "struct" else 0
    offset = np.uint64(member.offset + inner) + np.uint64(step) * np.arange(count, dtype=np.uint64)
    raw, ok = kernel.space.gather((rows.address[:, None] + offset[None, :]).ravel(), 8)
    rows.fault |= ~ok.reshape(-1, count).all(axis=1)
    address = raw.view("<u8")[:, 0]
    there = np.flatnonzero(address)
    return there // count, kernel.structs("kmem_cache_node", address[there])


def _free(kernel: Kernel, owner: I64, nodes: Structs, rows: Structs) -> tuple[I64, Mask, tuple[str, ...]]:
    """Free objects (n,) in the partly used slabs of each cache, which (n,) could not be counted, and why."""
    slab = kernel.struct("slab", "page")  # split from struct page in 5.17
    link = slab.member("slab_list")
    head, length = nodes.at("partial"), nodes.unsigned("nr_partial")
    first = kernel.structs("list_head", head).pointer("next")
    # Rounds are for many lists: a long one is walked for itself.
    alone = np.flatnonzero(length > np.uint64(_LONG))
    found = walk.chains(kernel.space, np.where(length > np.uint64(_LONG), head, first), end=head, what=_WHAT)
    address, of, faults = [found.address], [found.owner], list(found.faults)
    left = _IN_ALL
    for row in alone.tolist():
        one = walk.serial(kernel.space, int(head[row]), what=_WHAT, limit=min(_SCANNED, left))
        left -= len(one.address)
        address.append(one.address)
        of.append(np.full(len(one.address), row, dtype=np.int64))
        faults += one.faults
    slabs = kernel.structs(slab, np.concatenate(address) - np.uint64(link.offset)).fetch("objects", "inuse")
    whose = np.concatenate(of)
    free = slabs.number("objects") - slabs.number("inuse")
    wrong = slabs.fault | (free < 0)
    counted = np.zeros(len(nodes), dtype=np.int64)
    np.add.at(counted, whose, np.where(wrong, 0, free))
    # Of a list that is longer than is scanned the rest is taken to be alike, as the kernel does since 6.9.
    scanned = np.bincount(whose, minlength=len(nodes))
    cut = np.flatnonzero((scanned == _SCANNED) & (length > np.uint64(_SCANNED)))
    believed = np.minimum(length, np.uint64(_BELIEVED)).astype(np.int64)
    counted[cut] = counted[cut] * believed[cut] // _SCANNED
    return _sum(owner, counted, rows), _where(owner[whose[wrong]], rows), tuple(faults)


def _sum(owner: I64, values: I64, rows: Structs) -> I64:
    out = np.zeros(len(rows), dtype=np.int64)
    np.add.at(out, owner, values)
    return out


def _where(owner: I64, rows: Structs) -> Mask:
    out = np.zeros(len(rows), dtype=np.bool_)
    out[owner] = True
    return out
