"""Where routes lead: next hops, a route's own or those of nexthop objects that several routes share.

Knows `struct fib_nh_common` (include/net/ip_fib.h, 5.2), `struct nexthop` and its groups (include/net/nexthop.h, 5.3).
Which route has which is told by those who ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.network import words
from vmi_inside.linux.network.devices import Named, named
from vmi_inside.profile.ctypes import CType
from vmi_inside.structs import Structs
from vmi_inside.table import Text
from vmi_inside.types import I64, U64, Mask

#: Next hops of one route at the most, and of all that are read.
_HOPS_LIMIT: Final = 1 << 12
TOTAL_LIMIT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Legs:
    """One row for each next hop of each route, and one for a route without any.

    `owner` (m,) is the row of the route, `common` (m,) the address of the `fib_nh_common`, `identity` (m,) the id of
    the nexthop object, 0 where the hop is the route's own; `weight` (m,) is 0 where the hop itself tells it.
    """

    owner: I64
    common: U64
    weight: I64
    identity: I64
    fault: Mask


def legs(kernel: Kernel, objects: U64, first: U64, count: I64, stride: int, behind: int) -> Legs:
    """The next hops of n routes: those of nexthop objects (`objects` (n,), 0 where there is none), or else own ones.

    Own ones are `count` (n,) structs in a row from `first` (n,) on, each `stride` bytes, in which the `fib_nh_common`
    lies `behind` bytes.
    """
    shared = objects != 0
    absurd = ~shared & ((count < 0) | (count > _HOPS_LIMIT))
    absurd |= _over(np.where(shared | absurd, 0, count))
    none = absurd | (count == 0) | (first == 0)  # one row without a next hop
    owner, address = _repeated(
        np.where(none, np.uint64(0), first), np.where(shared, 0, np.where(none, 1, count)), stride
    )
    common = np.where(address == 0, address, address + np.uint64(behind))
    parts = [Legs(owner, common, _zeros(owner), _zeros(owner), absurd[owner])]
    rows = np.flatnonzero(shared)
    if len(rows):
        unique, back = np.unique(objects[rows], return_inverse=True)
        found = _objects(kernel, unique)
        # Each route takes all legs of its object; where that would be too many in all, the first.
        order = np.argsort(found.owner, kind="stable")
        each = np.bincount(found.owner, minlength=len(unique))
        cut = _over(each[back])
        wanted = np.where(cut, 1, each[back])
        at = np.repeat((np.cumsum(each) - each)[back], wanted)
        within = np.arange(len(at)) - np.repeat(np.cumsum(wanted) - wanted, wanted)
        leg = order[at + within]
        fault = found.fault[leg] | np.repeat(cut, wanted)
        route = np.repeat(rows, wanted)
        parts.append(Legs(route, found.common[leg], found.weight[leg], found.identity[leg], fault))
    owner = np.concatenate([part.owner for part in parts])
    order = np.argsort(owner, kind="stable")
    return Legs(
        owner[order],
        np.concatenate([part.common for part in parts])[order],
        np.concatenate([part.weight for part in parts])[order],
        np.concatenate([part.identity for part in parts])[order],
        np.concatenate([part.fault for part in parts])[order],
    )


def _objects(kernel: Kernel, address: U64) -> Legs:
    """The legs of nexthop objects: one of a single hop, several of a group."""
    rows = kernel.structs("nexthop", address).fetch("id", "is_group", "nh_info")
    grouped = (rows.number("is_group") != 0) & (rows.pointer("nh_info") != 0)
    group = kernel.structs("nh_group", np.where(grouped, rows.pointer("nh_info"), np.uint64(0))).fetch("num_nh")
    entry = kernel.struct("nh_grp_entry")
    first = np.where(grouped, group.address + np.uint64(group.type.member("nh_entries").offset), np.uint64(0))
    told = group.number("num_nh")
    absurd = grouped & ((told < 1) | (told > _HOPS_LIMIT))
    absurd |= _over(np.where(grouped & ~absurd, told, 0))
    count = np.where(grouped, np.where(absurd, 1, told), 0)
    owner, member = _repeated(np.where(absurd, np.uint64(0), first), count, entry.size)
    entries = kernel.structs(entry, member).fetch("nh", "weight")
    singles = np.flatnonzero(~grouped)
    hops = kernel.structs("nexthop", np.concatenate((entries.pointer("nh"), address[singles])))
    info = hops.follow("nh_info", kernel.struct("nh_info"))
    owner = np.concatenate((owner, singles))
    weight = np.concatenate((entries.number("weight"), _zeros(singles)))
    fault = (rows.fault | group.fault | absurd)[owner] | hops.fault
    fault[: len(member)] |= entries.fault
    return Legs(owner, info.at("fib_nhc"), weight, rows.number("id")[owner], fault)


def _repeated(first: U64, count: I64, stride: int) -> tuple[I64, U64]:
    """The owners and addresses of `count` (n,) structs in a row, from `first` (n,) on; 0 stays 0."""
    owner = np.repeat(np.arange(len(first)), count)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    base = first[owner]
    return owner, np.where(base == 0, base, base + within.astype(np.uint64) * np.uint64(stride))


def _over(count: I64) -> Mask:
    """Which of these counts (n,) are more than is read in all, with those before them."""
    over: Mask = (np.cumsum(count) > TOTAL_LIMIT) & (count > 1)
    return over


def _zeros(like: I64) -> I64:
    return np.zeros(len(like), dtype=np.int64)


class Hops:
    """What `fib_nh_common`s (m) say: devices, gateways, flags, weights."""

    def __init__(self, kernel: Kernel, found: Legs) -> None:
        ctype: CType = kernel.struct("fib_nh_common")
        self.found = found
        self.rows: Structs = kernel.structs(ctype, found.common).fetch(
            "nhc_dev", "nhc_gw_family", "nhc_gw", "nhc_flags", "nhc_weight"
        )
        self.device: Named = named(kernel, self.rows.pointer("nhc_dev"))
        self.fault: Mask = found.fault | self.rows.fault
        self.flags: I64 = self.rows.number("nhc_flags")
        told = np.maximum(self.rows.number("nhc_weight"), 0)
        self.weight: I64 = np.where(found.weight > 0, found.weight, told)

    def gateway(self) -> Text:
        """The next routers, of either family; empty where the destination is on the link."""
        raw = np.ascontiguousarray(self.rows["nhc_gw"]).view(np.uint8)
        family = self.rows.number("nhc_gw_family")
        four = words.inet(raw[:, :4], family == words.INET)
        return np.where(family == words.INET6, words.inet(raw[:, :16]), four).astype(object)
