"""The network devices of all network namespaces, and what a device is called that something points at.

Knows how `struct net_device` hangs in `struct net` (include/linux/netdevice.h, include/net/net_namespace.h). What a
device says of itself is left to the tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vmi_inside import walk
from vmi_inside.kernel import Kernel
from vmi_inside.linux.sockets.namespaces import network_namespaces
from vmi_inside.structs import Structs
from vmi_inside.table import Text, text
from vmi_inside.types import I64, U64, Mask


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Network namespaces: `rows` (n) are `struct net`, `inode` (n,) what /proc/PID/ns/net calls them."""

    rows: Structs
    inode: I64
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Devices:
    """Network devices: `rows` (n) are `struct net_device`, in each namespace as `ip link` lists them.

    `inode` (n,) are their namespaces', `faults` says where a list was cut.
    """

    rows: Structs
    inode: I64
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """Devices that were pointed at: `name` (n,), empty for no device; `inode` (n,) of their namespaces, 0 for none."""

    name: Text
    inode: I64
    fault: Mask


def namespaces(kernel: Kernel) -> Namespaces:
    """All network namespaces, the initial one first."""
    rows, faults = network_namespaces(kernel)
    inode = rows.number("ns.inum")
    if rows.fault.any():
        faults = (*faults, "network namespaces: one could not be read")
    return Namespaces(rows, inode, faults)


def devices(kernel: Kernel) -> Devices:
    """All devices of all namespaces."""
    known = namespaces(kernel)
    heads = known.rows.at("dev_base_head")
    first = kernel.structs("list_head", heads).pointer("next")
    found = walk.chains(kernel.space, first, end=heads, what="network devices")
    order = np.argsort(found.owner, kind="stable")
    ctype = kernel.struct("net_device")
    address = found.address[order] - np.uint64(ctype.member("dev_list").offset)
    return Devices(
        Structs(kernel.space, ctype, address), known.inode[found.owner[order]], (*known.faults, *found.faults)
    )


def named(kernel: Kernel, pointer: U64) -> Named:
    """What the devices at these addresses (n,) are called; each is looked at once."""
    unique, back = np.unique(pointer, return_inverse=True)
    rows = kernel.structs("net_device", unique).fetch("name", "nd_net.net")
    net, of_net = np.unique(rows.pointer("nd_net.net"), return_inverse=True)
    owners = kernel.structs("net", net)
    inode = owners.number("ns.inum")[of_net]
    fault = rows.fault | owners.fault[of_net]
    return Named(text(rows.text("name"))[back], inode[back], fault[back])
