"""The routing tables in memory: IPv4's tries, IPv6's trees.

Knows `struct fib_table`, `trie` and `key_vector` (include/net/ip_fib.h, net/ipv4/fib_trie.c; 4.1 and later),
`fib6_table` and `fib6_node` (include/net/ip6_fib.h; 4.18 and later). What the routes in them say is `routes`' matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside import ragged, walk
from vmi_inside.kernel import Kernel
from vmi_inside.linux.network.devices import Namespaces
from vmi_inside.profile.ctypes import CType
from vmi_inside.structs import Structs
from vmi_inside.types import I64, U64, Mask

#: FIB_TABLE_HASHSZ and FIB6_TABLE_HASHSZ, with and without more tables than the usual.
_TABLES, _TABLES_ALONE, _TABLES6, _TABLES6_ALONE = 256, 2, 256, 1
#: No trie is deeper than its keys have bits; IPv6 may have a tree of source addresses below a destination's.
_DEPTH, _DEPTH6 = 33, 260
_BITS_LIMIT: Final = 20  # of a trie's node: 8 MiB of children
NODE_LIMIT: Final = 1 << 20
_RTINFO: Final = 1 << 2  # RTN_RTINFO: the node has routes of its own


@dataclass(frozen=True, slots=True)
class Routes:
    """Routes found: `rows` (n) are `struct fib_alias` or `fib6_info`, `net` (n,) the row of the namespace.

    `table` (n,) is the number of the routing table, `key` (n,) of IPv4 the destination as a number.
    """

    rows: Structs
    net: I64
    key: I64
    table: I64
    faults: tuple[str, ...]


def _listed(kernel: Kernel, known: Namespaces, member: str, count: int, ctype: CType, link: str) -> tuple[Structs, I64,
                                                                                       tuple[str, ...]]:  # fmt: skip
    """The routing tables in all namespaces' hashes, the rows of their namespaces, and faults."""
    heads = ragged.gather(
        kernel.space, known.rows.pointer(member), np.where(known.rows.pointer(member) == 0, 0, np.int64(8 * count))
    )
    first, net, _ = heads.words()
    found = walk.chains(kernel.space, first, what="routing tables")
    faults = found.faults if heads.ok.all() else (*found.faults, "routing tables: a namespace's could not be read")
    tables = kernel.structs(ctype, found.address - np.uint64(ctype.member(link).offset))
    return tables, net[found.owner].astype(np.int64), faults


def ipv4(kernel: Kernel, known: Namespaces) -> Routes:
    """All IPv4 routes of all namespaces, each table's in the order of their destinations. Raises `NoMember`."""
    # The hash is wide where the kernel has rules, which choose among tables (CONFIG_IP_MULTIPLE_TABLES).
    count = _TABLES if known.rows.has("ipv4.rules_ops") else _TABLES_ALONE
    tables, net, faults = _listed(kernel, known, "ipv4.fib_table_hash", count, kernel.struct("fib_table"), "tb_hlist")
    # Two tables may share one trie: local and main do, until there are rules.
    tries, at = np.unique(tables.pointer("tb_data"), return_index=True)
    net = net[at][tries != 0]
    vector = kernel.struct("key_vector")
    roots = kernel.structs("trie", tries[tries != 0]).inside("kv[0]", vector)
    leaves, owner, more = _leaves(kernel, roots, vector)
    alias = kernel.struct("fib_alias")
    found = walk.chains(kernel.space, leaves.pointer("leaf.first"), alias.member("fa_list").offset, what="IPv4 routes")
    rows = kernel.structs(alias, found.address - np.uint64(alias.member("fa_list").offset))
    key = leaves.number("key")[found.owner]
    net = net[owner[found.owner]]
    number = rows.unsigned("tb_id").astype(np.int64)
    order = np.lexsort((np.arange(len(key)), key, number, net))
    bad = ("routing tables: one could not be read",) if (tables.fault.any() or roots.fault.any()) else ()
    return Routes(rows.select(order), net[order], key[order], number[order], (*faults, *more, *found.faults, *bad))


def _leaves(kernel: Kernel, roots: Structs, vector: CType) -> tuple[Structs, I64, tuple[str, ...]]:
    """The leaves of n tries, breadth first, and the row of the trie that each belongs to."""
    child = np.uint64(vector.member("tnode").offset)
    # A root has one child, at the place of its first.
    node = kernel.structs("list_head", roots.address + child).pointer("next")
    owner = np.flatnonzero(node)
    node = node[owner]
    seen = np.empty(0, dtype=np.uint64)
    found: list[Structs] = []
    owners: list[I64] = []
    faults: dict[str, None] = {}
    for _ in range(_DEPTH):
        distinct, at = np.unique(node, return_index=True)
        fresh = ~np.isin(distinct, seen)
        if not fresh.all() or len(distinct) != len(node):
            faults["IPv4 routes: a node stands twice in the tries"] = None
        node, owner = distinct[fresh], owner[at[fresh]]
        if not len(node):
            break
        if len(seen) + len(node) > NODE_LIMIT:
            faults[f"IPv4 routes: cut after {len(seen)} nodes"] = None
            break
        seen = np.concatenate((seen, node))
        rows = kernel.structs(vector, node).fetch("key", "bits", "leaf.first")
        bits = rows.number("bits")
        good = ~rows.fault & (bits <= _BITS_LIMIT)
        if not good.all():
            faults["IPv4 routes: a node could not be read or makes no sense"] = None
        leaf = good & (bits == 0)
        found.append(rows.select(leaf))
        owners.append(owner[leaf])
        inner = np.flatnonzero(good & (bits > 0))
        children = ragged.gather(kernel.space, node[inner] + child, np.int64(8) << bits[inner])
        if not children.ok.all():
            faults["IPv4 routes: a node's children could not be read"] = None
        node, parent, _ = children.words()
        owner = owner[inner[parent]]
    else:
        faults["IPv4 routes: a trie is deeper than it can be"] = None
    if not found:
        return kernel.structs(vector, []).fetch("key", "leaf.first"), np.empty(0, dtype=np.int64), tuple(faults)
    leaves = kernel.structs(vector, np.concatenate([rows.address for rows in found])).fetch("key", "leaf.first")
    return leaves, np.concatenate(owners).astype(np.int64), tuple(faults)


def ipv6(kernel: Kernel, known: Namespaces) -> Routes:
    """All IPv6 routes of all namespaces, but for the entry that says "none". Raises `NoMember`."""
    count = _TABLES6 if known.rows.has("ipv6.fib6_local_tbl") else _TABLES6_ALONE
    table = kernel.struct("fib6_table")
    tables, net, faults = _listed(kernel, known, "ipv6.fib_table_hash", count, table, "tb6_hlist")
    number = tables.number("tb6_id")
    nodes, owner, more = _nodes(kernel, tables.at("tb6_root"))
    info = kernel.struct("fib6_info")
    # Only some nodes have routes; all tables of a namespace share the entry that says that there is none.
    leaf, null = nodes.pointer("leaf"), known.rows.pointer("ipv6.fib6_null_entry")
    own = np.flatnonzero((nodes.number("fn_flags") & _RTINFO != 0) & (leaf != null[net[owner]]))
    found = walk.chains(kernel.space, leaf[own], info.member("fib6_next").offset, what="IPv6 routes")
    of = owner[own[found.owner]]
    rows = kernel.structs(info, found.address).fetch("fib6_dst.addr")
    high, low = np.ascontiguousarray(rows["fib6_dst.addr"]).view(">u8").T.astype(np.uint64)
    order = np.lexsort((np.arange(len(of)), low, high, number[of], net[of]))
    of = of[order]
    bad = ("routing tables: one could not be read",) if tables.fault.any() else ()
    none = np.zeros(len(of), dtype=np.int64)
    return Routes(rows.select(order), net[of], none, number[of], (*faults, *more, *found.faults, *bad))


def _nodes(kernel: Kernel, roots: U64) -> tuple[Structs, I64, tuple[str, ...]]:
    """All nodes of n trees, breadth first, and the row of the tree that each belongs to."""
    node, owner = roots, np.arange(len(roots), dtype=np.int64)
    ctype = kernel.struct("fib6_node")
    branches = [name for name in ("left", "right", "subtree") if ctype.has(name)]
    seen = np.empty(0, dtype=np.uint64)
    every: list[U64] = []
    owners: list[I64] = []
    faults: dict[str, None] = {}
    for _ in range(_DEPTH6):
        distinct, at = np.unique(node, return_index=True)
        fresh: Mask = ~np.isin(distinct, seen)
        if not fresh.all() or len(distinct) != len(node):
            faults["IPv6 routes: a node stands twice in the trees"] = None
        node, owner = distinct[fresh], owner[at[fresh]]
        if not len(node):
            break
        if len(seen) + len(node) > NODE_LIMIT:
            faults[f"IPv6 routes: cut after {len(seen)} nodes"] = None
            break
        seen = np.concatenate((seen, node))
        rows = kernel.structs(ctype, node).fetch(*branches)
        if rows.fault.any():
            faults["IPv6 routes: a node could not be read"] = None
        good = np.flatnonzero(~rows.fault)
        every.append(node[good])
        owners.append(owner[good])
        onward = np.concatenate([rows.pointer(name)[good] for name in branches])
        owner = np.tile(owner[good], len(branches))[onward != 0]
        node = onward[onward != 0]
    else:
        faults["IPv6 routes: a tree is deeper than it can be"] = None
    address = np.concatenate(every) if every else np.empty(0, dtype=np.uint64)
    found = np.concatenate(owners) if owners else np.empty(0, dtype=np.int64)
    return kernel.structs(ctype, address).fetch("leaf", "fn_flags"), found, tuple(faults)
