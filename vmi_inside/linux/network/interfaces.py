"""Network interfaces of all network namespaces, as `ip -d -s link` shows them.

Knows `struct net_device` (include/linux/netdevice.h) beside its counters, which are `counters`' knowledge. What only
the driver can tell (a link's speed, a virtual cable's other end) is left out; addresses have a table of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.kernel import Kernel
from vmi_inside.linux.network import words
from vmi_inside.linux.network.counters import Counters, counters
from vmi_inside.linux.network.devices import Devices, devices, named
from vmi_inside.linux.symbols.code import Code
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask


class InterfaceDetails(Table):
    """One row for each network interface; osquery's column names where it has them. A count of -1 is not known."""

    net_namespace: I64  # inode number
    interface: Text
    ifindex: I64
    state: Text  # UP, DOWN, UNKNOWN (up, but nothing says so: lo), LOWERLAYERDOWN, DORMANT ...
    kind: Text  # veth, bridge, vlan, tun ...; empty for hardware and virtio
    mac: Text
    type: I64  # ARPHRD_*: 1 Ethernet, 772 loopback
    mtu: I64  # bytes
    flags: I64  # IFF_*, as `ip link` asks for them
    flag_names: Text  # the same in ip's words
    promiscuous: Mask  # it takes all packets, whoever asked for that
    master: Text  # the bridge, bond ... that it is a port of
    qdisc: Text
    alias: Text
    ipackets: I64
    opackets: I64
    ibytes: I64
    obytes: I64
    ierrors: I64
    oerrors: I64
    idrops: I64
    odrops: I64
    collisions: I64
    multicast: I64  # packets received
    address: U64  # of the struct net_device


#: Operational states (include/uapi/linux/if.h), as ip writes them.
STATES: Final = ("UNKNOWN", "NOTPRESENT", "DOWN", "LOWERLAYERDOWN", "TESTING", "DORMANT", "UP")
_UNKNOWN, _DOWN, _UP = 0, 2, 6
#: net_device_flags, in ip's order.
FLAGS: Final = {
    1 << 3: "LOOPBACK", 1 << 1: "BROADCAST", 1 << 4: "POINTOPOINT", 1 << 12: "MULTICAST", 1 << 7: "NOARP",
    1 << 9: "ALLMULTI", 1 << 8: "PROMISC", 1 << 10: "MASTER", 1 << 11: "SLAVE", 1 << 2: "DEBUG", 1 << 15: "DYNAMIC",
    1 << 14: "AUTOMEDIA", 1 << 13: "PORTSEL", 1 << 5: "NOTRAILERS", 1 << 0: "UP", 1 << 16: "LOWER_UP",
    1 << 17: "DORMANT", 1 << 18: "ECHO",
}  # fmt: skip
_RUNNING, _PROMISC, _ALLMULTI, _LOWER_UP, _DORMANT = 1 << 6, 1 << 8, 1 << 9, 1 << 16, 1 << 17
#: Bits of net_device.state: __LINK_STATE_START, NOCARRIER, DORMANT.
_START, _NO_CARRIER, _IS_DORMANT = 1 << 0, 1 << 2, 1 << 4
_KIND_LIMIT: Final = 32
_ALIAS_LIMIT: Final = 256  # IFALIASZ
#: osquery's names, and the kernel's (struct rtnl_link_stats64).
COUNTS: Final = {
    "ipackets": "rx_packets", "opackets": "tx_packets", "ibytes": "rx_bytes", "obytes": "tx_bytes",
    "ierrors": "rx_errors", "oerrors": "tx_errors", "idrops": "rx_dropped", "odrops": "tx_dropped",
    "collisions": "collisions", "multicast": "multicast",
}  # fmt: skip


class _Interfaces:
    """The devices of one reading, and what hangs on them, each fetched when first asked for."""

    def __init__(self, kernel: Kernel, found: Devices) -> None:
        self.kernel = kernel
        self.inode = found.inode
        self.rows = found.rows
        self.faults = Faults(len(found.rows))
        self.notes: list[str] = list(found.faults)
        self.rows.fetch(
            "name", "ifindex", "state", "operstate", "type", "mtu", "flags", "gflags", "promiscuity", "addr_len",
            "dev_addr", "netdev_ops", "rtnl_link_ops", "qdisc", "ifalias",
        )  # fmt: skip
        self.faults.mark(self.rows.fault, "interface unreadable")

    def noted(self, rows: Structs, what: str) -> Structs:
        """Mark the rows of which `what` could not be read."""
        self.faults.mark(rows.fault, f"{what} unreadable")
        return rows

    @cached_property
    def running(self) -> Mask:
        """Which are administratively up."""
        up: Mask = self.rows.unsigned("state") & np.uint64(_START) != 0
        return up

    @cached_property
    def flags(self) -> I64:
        """As `dev_get_flags` puts them together (net/core/dev.c)."""
        made = _RUNNING | _PROMISC | _ALLMULTI | _LOWER_UP | _DORMANT
        asked = self.rows.number("gflags") & (_PROMISC | _ALLMULTI)
        flags = self.rows.number("flags") & ~np.int64(made) | asked
        state, operating = self.rows.unsigned("state"), self.rows.number("operstate")
        for bit, which in (
            (_RUNNING, (operating == _UP) | (operating == _UNKNOWN)),
            (_LOWER_UP, state & np.uint64(_NO_CARRIER) == 0),
            (_DORMANT, state & np.uint64(_IS_DORMANT) != 0),
        ):
            flags |= np.where(self.running & which, np.int64(bit), np.int64(0))
        return flags

    def state(self) -> Text:
        """Operational states; one that is not up is down."""
        code = np.where(self.running, self.rows.number("operstate"), _DOWN)
        return words.code(code, dict(enumerate(STATES)))

    def kind(self) -> Text:
        """What `ip link add type` calls it."""
        operations = self.noted(self.rows.follow("rtnl_link_ops").fetch("kind"), "kind")
        return self._strings(operations.pointer("kind"), _KIND_LIMIT, "kind")

    def mac(self) -> Text:
        """Link-layer addresses."""
        pointer = self.rows.pointer("dev_addr")
        live = np.flatnonzero(pointer)
        raw = np.zeros((len(pointer), words.HARDWARE_LIMIT), dtype=np.uint8)
        raw[live], ok = self.kernel.space.gather(pointer[live], words.HARDWARE_LIMIT)
        size = self.rows.number("addr_len")
        self.faults.mark(_spread(live[~ok], len(pointer)) | (size > words.HARDWARE_LIMIT), "mac unreadable")
        return words.hardware(raw, size)

    def master(self) -> Text:
        """Names of the devices above that have made it theirs (`netdev_master_upper_dev_get`)."""
        out = np.full(len(self.rows), "", dtype=object)
        heads = self.rows.at("adj_list.upper")
        found = walk.chains(
            self.kernel.space, self.rows.pointer("adj_list.upper.next"), end=heads, what="upper devices"
        )
        self.notes += found.faults
        link = self.kernel.struct("netdev_adjacent")
        links = self.kernel.structs(link, found.address - np.uint64(link.member("list").offset)).fetch("dev", "master")
        above = np.flatnonzero(links.number("master"))
        names = named(self.kernel, links.pointer("dev")[above])
        owner = found.owner[above]
        out[owner] = names.name
        self.faults.mark(
            _spread(np.append(owner[names.fault], found.owner[links.fault]), len(out)), "master unreadable"
        )
        return out

    def qdisc(self) -> Text:
        """Names of the root queueing disciplines."""
        operations = self.noted(self.rows.follow("qdisc").fetch("ops"), "qdisc").follow("ops")
        return text(self.noted(operations.fetch("id"), "qdisc").text("id"))

    def alias(self) -> Text:
        """What an administrator wrote on it."""
        pointer = self.rows.pointer("ifalias")
        behind = np.uint64(self.kernel.struct("dev_ifalias").member("ifalias").offset)
        return self._strings(np.where(pointer == 0, np.uint64(0), pointer + behind), _ALIAS_LIMIT, "alias")

    @cached_property
    def counters(self) -> Counters:
        """Packets, bytes and the rest."""
        found = counters(self.kernel, self.rows, Code(self.kernel))
        self.faults.mark(found.fault, "counters unreadable")
        for keeper in set(found.keeper[~found.known].tolist()):
            which = ~found.known & (found.keeper == keeper)
            self.faults.mark(which, f"counters: only the driver knows them ({keeper})")
        return found

    def count(self, name: str) -> I64:
        """One of osquery's counters."""
        return self.counters.counts[COUNTS[name]]

    def _strings(self, pointer: U64, limit: int, what: str) -> Text:
        strings, ok = self.kernel.strings(pointer, limit)
        self.faults.mark(~ok, f"{what} unreadable")
        return text(strings)


def _spread(rows: I64, size: int) -> Mask:
    out = np.zeros(size, dtype=np.bool_)
    out[rows] = True
    return out


_COLUMNS: Final[dict[str, Callable[[_Interfaces], Column]]] = {
    "net_namespace": lambda made: made.inode,
    "interface": lambda made: text(made.rows.text("name")),
    "ifindex": lambda made: made.rows.number("ifindex"),
    "state": _Interfaces.state,
    "kind": _Interfaces.kind,
    "mac": _Interfaces.mac,
    "type": lambda made: made.rows.number("type"),
    "mtu": lambda made: made.rows.number("mtu"),
    "flags": lambda made: made.flags,
    "flag_names": lambda made: words.flags(made.flags, FLAGS, ","),
    "promiscuous": lambda made: made.rows.number("promiscuity") > 0,
    "master": _Interfaces.master,
    "qdisc": _Interfaces.qdisc,
    "alias": _Interfaces.alias,
    **{name: partial(_Interfaces.count, name=name) for name in COUNTS},
    "address": lambda made: made.rows.address,
}


def interface_details(kernel: Kernel, columns: Iterable[str] | None = None) -> InterfaceDetails:
    """All network interfaces of all namespaces. `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have.
    """
    wanted = list(InterfaceDetails.schema if columns is None else columns)
    InterfaceDetails.check(wanted)
    with kernel.operation():
        made = _Interfaces(kernel, devices(kernel))
        data = {name: _COLUMNS[name](made) for name in wanted if name in _COLUMNS}
        data["fault"] = made.faults.column()
        return InterfaceDetails(data, made.notes)
