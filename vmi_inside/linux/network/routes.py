"""The routing tables of all network namespaces, as `ip route show table all` and its IPv6 twin show them.

Knows what `struct fib_alias` and `fib_info` (net/ipv4/fib_lookup.h, include/net/ip_fib.h) and `fib6_info`
(include/net/ip6_fib.h) say of a route. Where they hang is `fib`'s knowledge, where they lead `nexthops`'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from vmi_inside.errors import NoMember, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.network import fib, words
from vmi_inside.linux.network.devices import Namespaces, namespaces
from vmi_inside.linux.network.nexthops import Hops, Legs, legs
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U8, U64, Mask


class Routes(Table):
    """One row for each next hop of each route; osquery's column names where it has them."""

    net_namespace: I64  # inode number
    family: Text  # inet, inet6
    table: Text  # main, local, default, or a number
    destination: Text  # 0.0.0.0 or :: of a default route
    netmask: I64  # prefix length
    gateway: Text  # the next router's address; empty on the link
    interface: Text
    source: Text  # the address that packets get, where the route says so
    metric: I64
    type: Text  # unicast local broadcast anycast multicast blackhole unreachable prohibit throw
    protocol: Text  # who made it: kernel boot static dhcp ra bird zebra ...
    scope: Text  # global site link host
    mtu: I64  # bytes; 0 where the route does not say
    hopcount: I64  # hop limit; 0 where the route does not say
    flags: I64  # RTNH_F_*: 1 dead, 4 onlink, 16 no carrier
    weight: I64  # among several next hops
    nexthop_id: I64  # of the nexthop object that it goes by; 0 for none
    tos: I64  # of IPv4: only for packets of this type of service
    source_prefix: Text  # of IPv6: only for packets from there
    pointer: U64  # of the struct fib_info or fib6_info


#: RT_TABLE_*, RTN_*, RTPROT_* (include/uapi/linux/rtnetlink.h), in ip's words.
TABLES: Final = {253: "default", 254: "main", 255: "local"}
TYPES: Final = dict(enumerate((
    "none", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit", "throw",
    "nat", "xresolve",
)))  # fmt: skip
PROTOCOLS: Final = {
    0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 8: "gated", 9: "ra", 10: "mrt", 11: "zebra",
    12: "bird", 13: "dnrouted", 14: "xorp", 15: "ntk", 16: "dhcp", 17: "mrouted", 18: "keepalived", 42: "babel",
    186: "bgp", 187: "isis", 188: "ospf", 189: "rip", 192: "eigrp",
}  # fmt: skip
SCOPES: Final = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
#: RTAX_MTU and RTAX_HOPLIMIT, less one: their places among the metrics.
_MTU, _HOPLIMIT = 1, 9


@dataclass(frozen=True, slots=True)
class _Said:
    """What the routes (n) of one family say of themselves. Addresses are (n, 4) or (n, 16), in network order."""

    family: str
    net: I64
    table: I64
    destination: U8
    bits: I64
    source: U8
    metric: I64
    type: I64
    protocol: I64
    scope: I64
    metrics: U64
    tos: I64
    source_prefix: Text
    pointer: U64
    legs: Legs
    fault: Mask
    faults: tuple[str, ...]


def _four(kernel: Kernel, known: Namespaces) -> _Said:
    found = fib.ipv4(kernel, known)
    alias = found.rows.fetch("fa_info", ("fa_dscp", "fa_tos"), "fa_type", "fa_slen")
    unique, back = np.unique(alias.pointer("fa_info"), return_inverse=True)
    info = kernel.structs("fib_info", unique).fetch(
        "fib_protocol", "fib_scope", "fib_prefsrc", "fib_priority", "fib_metrics", "fib_nhs", "nh"
    )
    info = info.select(back)
    hop = info.type.member("fib_nh").type.target
    behind = hop.member("nh_common").offset
    own = legs(kernel, info.pointer("nh"), info.at("fib_nh"), info.number("fib_nhs"), hop.size, behind)
    return _Said(
        "inet", known.inode[found.net], found.table,
        found.key.astype(">u4").view(np.uint8).reshape(-1, 4), 32 - alias.number("fa_slen"),
        info.unsigned("fib_prefsrc").astype("<u4").view(np.uint8).reshape(-1, 4), info.number("fib_priority"),
        alias.number("fa_type"), info.number("fib_protocol"), info.number("fib_scope"), info.pointer("fib_metrics"),
        alias.number(("fa_dscp", "fa_tos")), text([""] * len(back)), info.address, own, alias.fault | info.fault,
        found.faults,
    )  # fmt: skip


def _six(kernel: Kernel, known: Namespaces) -> _Said:
    found = fib.ipv6(kernel, known)
    rows = found.rows.fetch(
        "fib6_dst.addr", "fib6_dst.plen", "fib6_src.addr", "fib6_src.plen", "fib6_prefsrc.addr", "fib6_prefsrc.plen",
        "fib6_metric", "fib6_protocol", "fib6_type", "fib6_metrics", "nh",
    )  # fmt: skip
    hop = rows.type.member("fib6_nh").type.target
    count = np.ones(len(rows), dtype=np.int64)
    own = legs(kernel, rows.pointer("nh"), rows.at("fib6_nh"), count, hop.size, hop.member("nh_common").offset)
    source = rows["fib6_prefsrc.addr"].view(np.uint8) * (rows.number("fib6_prefsrc.plen") != 0)[:, None]
    bits = rows.number("fib6_src.plen")
    prefix = words.inet(rows["fib6_src.addr"].view(np.uint8), bits != 0)
    zero = np.zeros(len(rows), dtype=np.int64)
    return _Said(
        "inet6", known.inode[found.net], found.table, rows["fib6_dst.addr"].view(np.uint8),
        rows.number("fib6_dst.plen"), source.astype(np.uint8), rows.unsigned("fib6_metric").astype(np.int64),
        rows.number("fib6_type"), rows.number("fib6_protocol"), zero, rows.pointer("fib6_metrics"), zero,
        text(f"{each}/{size}" if each else "" for each, size in zip(prefix.tolist(), bits.tolist(), strict=True)),
        rows.address, own, rows.fault, found.faults,
    )  # fmt: skip


class _Rows:
    """The routes of one family, one row (m) for each of their next hops: `of` (m,) is the route of each."""

    def __init__(self, kernel: Kernel, said: _Said) -> None:
        self.kernel = kernel
        self.said = said
        self.of = said.legs.owner
        self.faults = Faults(len(self.of))
        self.faults.mark(said.fault[self.of], "route unreadable")
        odd = (said.bits < 0) | (said.bits > 8 * said.destination.shape[1])
        self.faults.mark(odd[self.of], "netmask not believed")

    @cached_property
    def hops(self) -> Hops:
        """The next hops."""
        made = Hops(self.kernel, self.said.legs)
        self.faults.mark(made.fault, "next hop unreadable, or their number not believed")
        self.faults.mark(made.device.fault, "interface unreadable")
        return made

    def metric(self, place: int) -> I64:
        """One of the routes' metrics; most routes share the same, which are all 0."""
        unique, back = np.unique(self.said.metrics, return_inverse=True)
        rows = self.kernel.structs("dst_metrics", unique)
        value = rows.number(f"metrics[{place}]")
        self.faults.mark(rows.fault[back][self.of], "metrics unreadable")
        return value[back][self.of]

    def source(self) -> Text:
        """Preferred source addresses."""
        return words.inet(self.said.source, words.given(self.said.source))[self.of]


_COLUMNS: Final[dict[str, Callable[[_Rows], Column]]] = {
    "net_namespace": lambda made: made.said.net[made.of],
    "family": lambda made: np.full(len(made.of), made.said.family, dtype=object),
    "table": lambda made: words.code(made.said.table, TABLES)[made.of],
    "destination": lambda made: words.inet(made.said.destination)[made.of],
    "netmask": lambda made: made.said.bits[made.of],
    "gateway": lambda made: made.hops.gateway(),
    "interface": lambda made: made.hops.device.name,
    "source": _Rows.source,
    "metric": lambda made: made.said.metric[made.of],
    "type": lambda made: words.code(made.said.type, TYPES)[made.of],
    "protocol": lambda made: words.code(made.said.protocol, PROTOCOLS)[made.of],
    "scope": lambda made: words.code(made.said.scope, SCOPES)[made.of],
    "mtu": lambda made: made.metric(_MTU),
    "hopcount": lambda made: made.metric(_HOPLIMIT),
    "flags": lambda made: made.hops.flags,
    "weight": lambda made: made.hops.weight,
    "nexthop_id": lambda made: made.said.legs.identity,
    "tos": lambda made: made.said.tos[made.of],
    "source_prefix": lambda made: made.said.source_prefix[made.of],
    "pointer": lambda made: made.said.pointer[made.of],
}


def routes(kernel: Kernel, columns: Iterable[str] | None = None) -> Routes:
    """All routes of all namespaces. `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have.
    """
    wanted = list(Routes.schema if columns is None else columns)
    Routes.check(wanted)
    with kernel.operation():
        known = namespaces(kernel)
        notes = list(known.faults)
        made = []
        for find, what in ((_four, "IPv4"), (_six, "IPv6")):
            try:
                made.append(_Rows(kernel, find(kernel, known)))
            except NoMember as error:
                notes.append(f"{what} routes: this kernel keeps them otherwise: {error}")
        if not made:
            raise Unsupported(notes[-1])
        data = {name: np.concatenate([_COLUMNS[name](one) for one in made]) for name in wanted if name in _COLUMNS}
        data["fault"] = np.concatenate([one.faults.column() for one in made])
        return Routes(data, (*notes, *(note for one in made for note in one.said.faults)))
