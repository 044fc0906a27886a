"""The IP addresses of all interfaces of all network namespaces, as `ip addr` shows them.

Knows `struct in_device` and `in_ifaddr` (include/linux/inetdevice.h), `inet6_dev` and `inet6_ifaddr`
(include/net/if_inet6.h). The interfaces themselves have a table of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.errors import NoMember
from vmi_inside.kernel import Kernel
from vmi_inside.linux.network import words
from vmi_inside.linux.network.devices import Devices, devices
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64


class InterfaceAddresses(Table):
    """One row for each address of an interface; osquery's column names where it has them."""

    net_namespace: I64  # inode number
    interface: Text
    label: Text  # of an IPv4 address: the interface's name, or an alias such as eth0:1
    family: Text  # inet, inet6
    address: Text
    mask: Text
    prefix_length: I64
    broadcast: Text
    point_to_point: Text  # the other end's address, where it has one
    scope: Text  # global, site, link, host
    type: Text  # manual: for ever; auto: IPv6 for a time; unknown: IPv4 for a time, as from DHCP
    flags: Text  # ip's words: permanent secondary tentative dadfailed deprecated noprefixroute ...
    ifindex: I64
    pointer: U64  # of the struct in_ifaddr or inet6_ifaddr


#: IFA_F_* (include/uapi/linux/if_addr.h). The lowest bit is `secondary` of IPv4, `temporary` of IPv6.
FLAGS: Final = {
    0x80: "permanent", 0x02: "nodad", 0x04: "optimistic", 0x08: "dadfailed", 0x10: "home", 0x20: "deprecated",
    0x40: "tentative", 0x100: "mngtmpaddr", 0x200: "noprefixroute", 0x400: "autojoin", 0x800: "stable-privacy",
}  # fmt: skip
_LOWEST: Final = {words.INET: "secondary", words.INET6: "temporary"}
_PERMANENT: Final = 0x80
#: RT_SCOPE_* (include/uapi/linux/rtnetlink.h).
SCOPES: Final = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
#: IFA_HOST, IFA_LINK, IFA_SITE of an IPv6 address's scope (include/net/if_inet6.h), and what `rt_scope` makes of them.
_SCOPES6: Final = ((0x10, 254), (0x20, 253), (0x40, 200))


class _Addresses:
    """The addresses (n) of one family: `rows`, and the row of the device that each belongs to."""

    def __init__(self, kernel: Kernel, found: Devices, family: int) -> None:
        self.kernel = kernel
        self.family = family
        self.devices = found.rows
        self.inode = found.inode
        self.width = 4 if family == words.INET else 16
        rows, owner, self.notes = (_four if family == words.INET else _six)(kernel, found.rows)
        order = np.lexsort((np.arange(len(owner)), owner))
        self.rows, self.owner = rows.select(order), owner[order]
        self.faults = Faults(len(self.owner))
        self.faults.mark(self.rows.fault, "address unreadable")
        self.faults.mark(self.devices.fault[self.owner], "interface unreadable")
        self.faults.mark(self.prefix > 8 * self.width, "prefix length not believed")

    def bytes_of(self, member: str) -> Text:
        """An address, in network order, as text."""
        raw = self.rows[member]
        return words.inet(np.ascontiguousarray(raw).view(np.uint8).reshape(len(self.owner), self.width))

    @property
    def prefix(self) -> I64:
        """How many bits of each address name the network."""
        return self.rows.number("ifa_prefixlen" if self.family == words.INET else "prefix_len")

    @property
    def bits(self) -> I64:
        """IFA_F_*."""
        return self.rows.number("ifa_flags" if self.family == words.INET else "flags") & 0xFFFFFFFF

    def address(self) -> Text:
        """The interface's own address."""
        return self.bytes_of("ifa_local" if self.family == words.INET else "addr")

    def label(self) -> Text:
        """An IPv4 address's label; IPv6 has none."""
        return text(self.rows.text("ifa_label") if self.family == words.INET else [""] * len(self.owner))

    def broadcast(self) -> Text:
        """IPv4's only."""
        if self.family == words.INET6:
            return text([""] * len(self.owner))
        return words.inet(_raw(self.rows.unsigned("ifa_broadcast")), self.rows.number("ifa_broadcast") != 0)

    def peer(self) -> Text:
        """The other end's address."""
        if self.family == words.INET:
            far = self.rows.number("ifa_address")
            return words.inet(
                _raw(self.rows.unsigned("ifa_address")), (far != self.rows.number("ifa_local")) & (far != 0)
            )
        raw = np.ascontiguousarray(self.rows["peer_addr"]).view(np.uint8).reshape(len(self.owner), 16)
        return words.inet(raw, words.given(raw))

    def scope(self) -> Text:
        """Where the address means something."""
        if self.family == words.INET:
            return words.code(self.rows.number("ifa_scope"), SCOPES)
        bits = self.rows.number("scope")
        known = [bits & bit != 0 for bit, _ in _SCOPES6]
        return words.code(np.select(known, [scope for _, scope in _SCOPES6], 0).astype(np.int64), SCOPES)

    def type(self) -> Text:
        """Where it comes from, as far as that can be told."""
        passing = "unknown" if self.family == words.INET else "auto"
        return np.where(self.bits & _PERMANENT != 0, "manual", passing).astype(object)


def _raw(values: U64) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """__be32 members (n,) as bytes (n, 4)."""
    return values.astype("<u4").view(np.uint8).reshape(-1, 4)


def _four(kernel: Kernel, rows: Structs) -> tuple[Structs, I64, tuple[str, ...]]:
    """All IPv4 addresses, and the devices' rows: a plain list in each in_device."""
    ctype = kernel.struct("in_ifaddr")
    first = rows.follow("ip_ptr", kernel.struct("in_device"))
    found = walk.chains(kernel.space, first.pointer("ifa_list"), ctype.member("ifa_next").offset, what="IPv4 addresses")
    listed = kernel.structs(ctype, found.address).fetch(
        "ifa_local", "ifa_address", "ifa_broadcast", "ifa_scope", "ifa_prefixlen", "ifa_flags", "ifa_label"
    )
    return listed, found.owner, _noted(found.faults, first, "IPv4")


def _six(kernel: Kernel, rows: Structs) -> tuple[Structs, I64, tuple[str, ...]]:
    """All IPv6 addresses, and the devices' rows: a circular list in each inet6_dev."""
    if not rows.has("ip6_ptr") or kernel.find_struct("inet6_ifaddr") is None:
        raise NoMember("net_device", "ip6_ptr")
    ctype = kernel.struct("inet6_ifaddr")
    holder = rows.follow("ip6_ptr", kernel.struct("inet6_dev"))
    heads = holder.at("addr_list")
    found = walk.chains(kernel.space, holder.pointer("addr_list.next"), end=heads, what="IPv6 addresses")
    listed = kernel.structs(ctype, found.address - np.uint64(ctype.member("if_list").offset)).fetch(
        "addr", "prefix_len", "flags", "scope", "peer_addr"
    )
    return listed, found.owner, _noted(found.faults, holder, "IPv6")


def _noted(faults: tuple[str, ...], holders: Structs, what: str) -> tuple[str, ...]:
    return (*faults, f"{what} addresses: an interface's could not be read") if holders.fault.any() else faults


_COLUMNS: Final[dict[str, Callable[[_Addresses], Column]]] = {
    "net_namespace": lambda made: made.inode[made.owner],
    "interface": lambda made: text(made.devices.text("name"))[made.owner],
    "label": _Addresses.label,
    "family": lambda made: np.full(len(made.owner), "inet" if made.family == words.INET else "inet6", dtype=object),
    "address": _Addresses.address,
    "mask": lambda made: words.masks(made.prefix, made.width),
    "prefix_length": lambda made: made.prefix,
    "broadcast": _Addresses.broadcast,
    "point_to_point": _Addresses.peer,
    "scope": _Addresses.scope,
    "type": _Addresses.type,
    "flags": lambda made: words.flags(made.bits, {1: _LOWEST[made.family], **FLAGS}),
    "ifindex": lambda made: made.devices.number("ifindex")[made.owner],
    "pointer": lambda made: made.rows.address,
}


def interface_addresses(kernel: Kernel, columns: Iterable[str] | None = None) -> InterfaceAddresses:
    """All addresses of all interfaces of all namespaces. `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have.
    """
    wanted = list(InterfaceAddresses.schema if columns is None else columns)
    InterfaceAddresses.check(wanted)
    with kernel.operation():
        found = devices(kernel)
        found.rows.fetch("name", "ifindex", "ip_ptr")
        notes = list(found.faults)
        made = [_Addresses(kernel, found, words.INET)]
        try:
            made.append(_Addresses(kernel, found, words.INET6))
        except NoMember as error:
            notes.append(f"IPv6 addresses: {error}")
        order = np.argsort(np.concatenate([one.owner for one in made]), kind="stable")
        data = {
            name: np.concatenate([_COLUMNS[name](one) for one in made])[order] for name in wanted if name in _COLUMNS
        }
        data["fault"] = np.concatenate([one.faults.column() for one in made])[order]
        return InterfaceAddresses(data, (*notes, *(note for one in made for note in one.notes)))
