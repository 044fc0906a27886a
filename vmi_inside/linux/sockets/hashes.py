"""The kernel's socket hash tables, all of them walked at once.

Knows where TCP, UDP, raw, ping, unix, netlink and packet sockets hang: include/net/inet_hashtables.h, net/ipv4/udp.c,
net/ipv4/raw.c, net/ipv4/ping.c, net/unix/af_unix.c, net/netlink/af_netlink.c, net/packet/af_packet.c. A kernel without
one of them has no such sockets. What a socket says is `rows`' matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from vmi_inside import ragged, walk
from vmi_inside.errors import MemoryFault, ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.profile.ctypes import CType
from vmi_inside.structs import Structs
from vmi_inside.types import U64, distinct

_UNIX_BUCKETS = 512  # UNIX_HASH_SIZE since 6.0, 2 * UNIX_HASH_SIZE before (include/net/af_unix.h)
_NETLINK_PROTOCOLS = 32  # MAX_LINKS (include/uapi/linux/netlink.h)
_BUCKET_LIMIT = 1 << 24


class HashTable(NamedTuple):
    """An array of buckets: `address`, how many, how far apart, where in each the chain's first pointer is.

    `node` is how far into the socket the chain's links lie.
    """

    what: str
    address: int
    buckets: int
    stride: int
    head: int
    node: int
    locked: bool = False  # the lowest bit of a first pointer is a lock (lib/rhashtable.c)


Tables = Iterator[HashTable]


def hashed_sockets(kernel: Kernel, namespaces: Structs) -> tuple[U64, list[str]]:
    """Addresses of all hashed `struct sock_common`, and notes on what could not be followed.

    One reading of all bucket arrays, then all chains side by side: as many rounds as the longest chain is long.
    """
    notes: list[str] = []
    tables: dict[tuple[int, int], HashTable] = {}
    for finder in FINDERS:
        try:
            for table in finder(kernel, namespaces):
                if table.address and 0 < table.buckets <= _BUCKET_LIMIT and table.head + 8 <= table.stride:
                    tables.setdefault((table.address, table.head), table)
                elif table.address:
                    size = f"{table.buckets} buckets of {table.stride} bytes"
                    notes.append(f"{table.what}: a size of {size} is not believed")
        except (ProfileError, MemoryFault) as error:
            notes.append(f"{finder.__name__.removeprefix('_')} sockets: {error}")
    found = list(tables.values())
    got = ragged.gather(
        kernel.space,
        np.array([table.address for table in found], dtype=np.uint64),
        np.array([table.buckets * table.stride for table in found], dtype=np.int64),
    )
    heads: list[U64] = []
    for index, table in enumerate(found):
        if not got.ok[index]:
            notes.append(f"{table.what}: part of the table at {table.address:#x} could not be read")
        buckets = int(got.size[index]) // table.stride
        first: U64 = np.ndarray((buckets,), "<u8", got.data, int(got.start[index]) + table.head, (table.stride,))
        heads.append(first & ~np.uint64(1) if table.locked else first)
    if not heads:
        return np.empty(0, dtype=np.uint64), notes
    owner = np.repeat(np.arange(len(found)), [len(head) for head in heads])
    walked = walk.chains(kernel.space, np.concatenate(heads), nulls=True, what="socket hash")
    node = np.array([table.node for table in found], dtype=np.uint64)
    return walked.address - node[owner[walked.owner]], [*notes, *walked.faults]


def _common(kernel: Kernel, member: str) -> int:
    return kernel.struct("sock_common").member(member).offset


def _tcp(kernel: Kernel, namespaces: Structs) -> Tables:
    """Established and all that is in between (ehash), and listeners.

    Listeners hang in `listening_hash` until 5.18, in `lhash2` since.
    """
    hashinfo = kernel.struct("inet_hashinfo")
    address = [kernel.profile.find_symbol("tcp_hashinfo") or 0]
    if namespaces.has("ipv4.tcp_death_row.hashinfo"):  # may be the namespace's own since 6.1
        address += namespaces.pointer("ipv4.tcp_death_row.hashinfo").tolist()
    node = _common(kernel, "skc_nulls_node")
    for info in distinct(np.array([each for each in address if each], dtype=np.uint64)).tolist():
        rows = kernel.structs(hashinfo, [info]).fetch("ehash", "ehash_mask")
        bucket = kernel.struct("inet_ehash_bucket")
        count = int(rows.unsigned("ehash_mask")[0]) + 1
        head = bucket.member("chain").offset
        yield HashTable("tcp ehash", int(rows.pointer("ehash")[0]), count, bucket.size, head, node)
        bucket = kernel.struct("inet_listen_hashbucket")
        head = bucket.member("nulls_head", "head").offset
        if rows.has("listening_hash"):
            listening = hashinfo.member("listening_hash")
            yield HashTable("tcp listeners", info + listening.offset, listening.type.count, bucket.size, head, node)
        else:
            count = int(rows.unsigned("lhash2_mask")[0]) + 1
            yield HashTable("tcp listeners", int(rows.pointer("lhash2")[0]), count, bucket.size, head, node)


def _udp(kernel: Kernel, namespaces: Structs) -> Tables:
    """One global table, or since 6.2 perhaps the namespace's own; UDP-Lite beside it until it went away."""
    table, slot = kernel.struct("udp_table"), kernel.struct("udp_hslot")
    address = [kernel.profile.find_symbol(name) or 0 for name in ("udp_table", "udplite_table")]
    if namespaces.has("ipv4.udp_table"):
        address += namespaces.pointer("ipv4.udp_table").tolist()
    rows = kernel.structs(table, distinct(np.array([each for each in address if each], dtype=np.uint64))).fetch(
        "hash", "mask"
    )
    node = _common(kernel, "skc_node")
    for base, mask in zip(rows.pointer("hash").tolist(), rows.unsigned("mask").tolist(), strict=True):
        yield HashTable("udp hash", base, mask + 1, slot.size, slot.member("head").offset, node)


def _arrays(kernel: Kernel, ctype: CType, member: str, symbols: tuple[str, ...]) -> Tables:
    array = ctype.member(member)
    for symbol in symbols:
        base = kernel.profile.find_symbol(symbol)
        if base is not None:
            yield HashTable(symbol, base + array.offset, array.type.count, 8, 0, _common(kernel, "skc_node"))


def _raw(kernel: Kernel, namespaces: Structs) -> Tables:
    return _arrays(kernel, kernel.struct("raw_hashinfo"), "ht", ("raw_v4_hashinfo", "raw_v6_hashinfo"))


def _ping(kernel: Kernel, namespaces: Structs) -> Tables:
    return _arrays(kernel, kernel.struct("ping_table"), "hash", ("ping_table",))


def _unix(kernel: Kernel, namespaces: Structs) -> Tables:
    """A table for each namespace since 6.0, one for all before."""
    node = _common(kernel, "skc_node")
    if namespaces.has("unx.table.buckets"):
        for base in namespaces.pointer("unx.table.buckets").tolist():
            yield HashTable("unix sockets", base, _UNIX_BUCKETS, 8, 0, node)
    else:
        yield HashTable("unix sockets", kernel.symbol("unix_socket_table"), _UNIX_BUCKETS, 8, 0, node)


def _packet(kernel: Kernel, namespaces: Structs) -> Tables:
    if namespaces.has("packet.sklist"):
        for base in namespaces.at("packet.sklist").tolist():
            yield HashTable("packet sockets", base, 1, 8, 0, _common(kernel, "skc_node"))


def _netlink(kernel: Kernel, namespaces: Structs) -> Tables:
    """A resizable hash (lib/rhashtable.c) for each protocol, and the one that it is growing into."""
    protocol = kernel.struct("netlink_table")
    base = kernel.pointer("nl_table")
    links = kernel.structs(protocol, base + protocol.size * np.arange(_NETLINK_PROTOCOLS, dtype=np.uint64))
    bucket = kernel.struct("bucket_table")
    node = kernel.struct("netlink_sock").member("node").offset
    tables = links.follow("hash.tbl", bucket)
    for _ in range(2):
        tables.fetch("size", "future_tbl")
        for address, size in zip(tables.at("buckets").tolist(), tables.unsigned("size").tolist(), strict=True):
            if address:
                yield HashTable("netlink hash", address, size, 8, 0, node, locked=True)
        tables = tables.follow("future_tbl", bucket)


#: To add a family of sockets: write its finder above, and name it here.
FINDERS: tuple[Callable[[Kernel, Structs], Tables], ...] = (_tcp, _udp, _raw, _ping, _unix, _packet, _netlink)
