"""What network devices count: packets, bytes, errors, drops.

Knows where `dev_get_stats` (net/core/dev.c) and the drivers that it asks keep counts: in the device, for each CPU, or,
of veth, bridges and virtio_net, in structs of their own (drivers/net/veth.c, drivers/net/virtio_net.c; types from the
module). Other drivers keep them where only they know: those devices are said to be so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.symbols.code import Code
from vmi_inside.linux.symbols.module_types import find_struct
from vmi_inside.profile.ctypes import CType
from vmi_inside.structs import Structs
from vmi_inside.table import Text
from vmi_inside.types import I64, U64, Mask

#: What is counted, by `struct rtnl_link_stats64`'s names.
COUNTED: Final = (
    "rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_errors", "tx_errors", "rx_dropped", "tx_dropped",
    "multicast", "collisions",
)  # fmt: skip
#: Drivers' `ndo_get_stats64` that add the sums of `tstats` to the device's own counts.
_TSTATS: Final = ("dev_get_tstats64", "ip_tunnel_get_stats64", "ip6_get_stats", "tun_net_get_stats64")
#: enum netdev_stat_type (include/linux/netdevice.h, 6.2): what the kernel adds where a driver has no function.
_TYPE_TSTATS, _TYPE_DSTATS = 2, 3
#: What all sums for each CPU have.
_MOVED: Final = {name: name for name in COUNTED[:4]}
_PRIVATE_ALIGN: Final = 32  # NETDEV_ALIGN: where a driver's own struct begins behind the net_device
_QUEUE_LIMIT: Final = 1 << 12
_TOTAL_LIMIT: Final = 1 << 21  # structs that one kind of counts is added up from


@dataclass(frozen=True, slots=True)
class Counters:
    """Counts of `n` devices by `COUNTED`'s names; -1 where `known` (n,) is False: `keeper` is then who has them."""

    counts: Mapping[str, I64]
    known: Mask
    keeper: Text
    fault: Mask


class _Counts:
    """The counts of one reading, added up from where they are kept."""

    def __init__(self, kernel: Kernel, rows: Structs) -> None:
        self.kernel = kernel
        self.rows = rows
        self.total = {name: _fixed(rows.unsigned(f"stats.{name}")) for name in COUNTED}
        self.known = np.ones(len(rows), dtype=np.bool_)
        self.fault = np.zeros(len(rows), dtype=np.bool_)

    def clear(self, which: I64) -> None:
        """Forget what the devices themselves say: their drivers do."""
        for name in COUNTED:
            self.total[name][which] = 0

    def add(self, which: I64, **counts: I64) -> None:
        """Add to these rows (k,) counts (k,)."""
        for name, count in counts.items():
            np.add.at(self.total[name], which, count)

    def summed(self, which: I64, pointer: U64, ctype: CType, names: Mapping[str, str]) -> None:
        """Add what is kept for each CPU: `pointer` (k,) are per-CPU, `names` say which member counts what."""
        most = _TOTAL_LIMIT // len(self.kernel.percpu_offset)
        self.fault[which[most:]] = True
        which, pointer = which[:most], pointer[:most]
        every = pointer[:, None] + self.kernel.percpu_offset[None, :]
        every[pointer == 0] = 0
        kept = Structs(self.kernel.space, ctype, every.ravel())
        for name, member in names.items():
            if ctype.has(member):
                cells = _words(kept, member).reshape(every.shape)
                self.add(which, **{name: cells.sum(axis=1)})
        self.fault[which] |= kept.fault.reshape(every.shape).any(axis=1)


def counters(kernel: Kernel, rows: Structs, code: Code) -> Counters:
    """The counts of these `struct net_device`, as `ip -s link` shows them."""
    made = _Counts(kernel, rows)
    operations = rows.follow("netdev_ops").fetch("ndo_get_stats64", "ndo_get_stats")
    own = np.where(
        operations.pointer("ndo_get_stats64") != 0,
        operations.pointer("ndo_get_stats64"),
        operations.pointer("ndo_get_stats"),
    )
    keeper = np.where(own == 0, "", code.symbols(own)).astype(object)
    name = np.array([each.partition(" ")[0] for each in keeper.tolist()], dtype=object)
    made.fault |= operations.fault
    if rows.has("pcpu_stat_type"):
        kind = np.where(own == 0, rows.number("pcpu_stat_type"), 0)
    else:
        kind = np.zeros(len(rows), dtype=np.int64)
    summed = np.isin(name, _TSTATS) & (rows.pointer("tstats") != 0)  # TUN has sums of its own before 5.12
    simple = np.flatnonzero(summed | (kind == _TYPE_TSTATS))
    _tstats(made, simple, rows.pointer("tstats")[simple])
    _dstats(made, np.flatnonzero(kind == _TYPE_DSTATS))
    for function, add in _DRIVERS.items():
        which = np.flatnonzero(name == function)
        if len(which):
            made.clear(which)
            made.known[which] = add(made, which)
    made.known &= (own == 0) | summed | np.isin(name, tuple(_DRIVERS))
    _core(made)
    counts = {each: np.where(made.known, column, -1) for each, column in made.total.items()}
    return Counters(counts, made.known, keeper, made.fault)


def _core(made: _Counts) -> None:
    """What the core drops before or behind the driver: for each CPU since 5.18, counters in the device before."""
    rows = made.rows
    every = np.arange(len(rows))
    names = {name: name for name in ("rx_dropped", "tx_dropped")}
    if rows.has("core_stats"):
        made.summed(every, rows.pointer("core_stats"), rows.type.member("core_stats").type.target, names)
    else:
        for name in names:
            made.add(every, **{name: rows.number(f"{name}.counter")})


def _tstats(made: _Counts, which: I64, pointer: U64) -> None:
    if len(which):
        made.summed(which, pointer, made.kernel.struct("pcpu_sw_netstats"), _MOVED)


def _dstats(made: _Counts, which: I64) -> None:
    ctype = made.kernel.find_struct("pcpu_dstats")
    if len(which) and ctype is not None:
        names = {**_MOVED, "rx_dropped": "rx_drops", "tx_dropped": "tx_drops"}
        made.summed(which, made.rows.pointer("dstats")[which], ctype, names)


def _lstats(made: _Counts, which: I64, pointer: U64, *sides: str) -> None:
    """Packets and bytes that one side counts; of loopback both sides are the same."""
    ctype = made.kernel.struct("pcpu_lstats")
    for side in sides:
        made.summed(which, pointer, ctype, {f"{side}_packets": "packets", f"{side}_bytes": "bytes"})


def _loopback(made: _Counts, which: I64) -> bool:
    _lstats(made, which, made.rows.pointer("lstats")[which], "rx", "tx")
    return True


def _dummy(made: _Counts, which: I64) -> bool:
    _lstats(made, which, made.rows.pointer("lstats")[which], "tx")
    return True


def _bridge(made: _Counts, which: I64) -> bool:
    """In `tstats` since 5.11, in the bridge's own struct before (net/bridge/br_private.h)."""
    own = _private(made, "bridge", "net_bridge", which)
    if own is None or not own.has("stats"):
        _tstats(made, which, made.rows.pointer("tstats")[which])
    else:
        _tstats(made, which, own.pointer("stats"))
        made.fault[which] |= own.fault
    return True


def _private(made: _Counts, module: str, struct: str, which: I64) -> Structs | None:
    """The drivers' own structs, or None where their type is not known."""
    ctype = find_struct(made.kernel, module, struct)
    if ctype is None:
        return None
    return Structs(made.kernel.space, ctype, _behind(made.rows.select(which)))


def _behind(devices: Structs) -> U64:
    """Where the drivers' own structs begin (n,): behind the devices (`netdev_priv`)."""
    size = np.uint64((devices.type.size + _PRIVATE_ALIGN - 1) & -_PRIVATE_ALIGN)
    return np.where(devices.address == 0, np.uint64(0), devices.address + size)


def _veth(made: _Counts, which: I64) -> bool:
    """Each end counts what it sends; what went the way of NAPI, the end that received it counts."""
    own = _private(made, "veth", "veth_priv", which)
    if own is None:
        return False
    own.fetch("peer", "rq")
    peer = own.follow("peer", made.rows.type).fetch("lstats")
    other = Structs(made.kernel.space, own.type, _behind(peer)).fetch("rq")
    ends = made.rows.select(which)
    kind = ends.number("pcpu_stat_type") if ends.has("pcpu_stat_type") else np.zeros(len(which), dtype=np.int64)
    mine, theirs = ends.pointer("lstats"), peer.pointer("lstats")
    simple = np.flatnonzero(kind != _TYPE_TSTATS)  # tstats since 6.7, in the same place
    _lstats(made, which[simple], mine[simple], "tx")
    _lstats(made, which[simple], theirs[simple], "rx")
    full = np.flatnonzero(kind == _TYPE_TSTATS)
    _tstats(made, which[full], mine[full])
    sent = {"rx_packets": "tx_packets", "rx_bytes": "tx_bytes"}
    made.summed(which[full], theirs[full], made.kernel.struct("pcpu_sw_netstats"), sent)
    queue = own.type.member("rq").type.target
    packets, bytes_ = "stats.vs.xdp_packets", "stats.vs.xdp_bytes"
    into = {"rx_packets": packets, "rx_bytes": bytes_, "rx_dropped": "stats.vs.rx_drops"}
    made.fault[which] |= own.fault | peer.fault | other.fault
    _queues(made, which, own.pointer("rq"), ends.number("num_rx_queues"), queue, into)
    out = {"tx_packets": packets, "tx_bytes": bytes_}
    _queues(made, which, other.pointer("rq"), peer.number("num_rx_queues"), queue, out)
    return True


def _virtio(made: _Counts, which: I64) -> bool:
    """virtio_net counts in its queues."""
    own = _private(made, "virtio_net", "virtnet_info", which)
    if own is None:
        return False
    own.fetch("rq", "sq", "max_queue_pairs")
    pairs = own.number("max_queue_pairs")
    made.fault[which] |= own.fault
    for queues, side in (("rq", "rx"), ("sq", "tx")):
        names = {f"{side}_packets": "stats.packets", f"{side}_bytes": "stats.bytes"}
        if side == "rx":
            names["rx_dropped"] = "stats.drops"
        _queues(made, which, own.pointer(queues), pairs, own.type.member(queues).type.target, names)
    return True


def _queues(made: _Counts, which: I64, first: U64, count: I64, ctype: CType, names: Mapping[str, str]) -> None:
    """Add what `count` (k,) structs in a row, from `first` (k,) on, count."""
    count = np.where(first == 0, 0, np.maximum(count, 0))
    absurd = (count > _QUEUE_LIMIT) | (np.cumsum(np.minimum(count, _QUEUE_LIMIT)) > _TOTAL_LIMIT)
    made.fault[which[absurd]] = True
    count = np.where(absurd, 0, count)
    owner = np.repeat(np.arange(len(first)), count)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    queues = Structs(made.kernel.space, ctype, first[owner] + within.astype(np.uint64) * np.uint64(ctype.size))
    for name, member in names.items():
        if ctype.has(member):
            made.add(which[owner], **{name: _words(queues, member)})
    np.logical_or.at(made.fault, which[owner], queues.fault)


def _words(rows: Structs, member: str) -> I64:
    """A 64-bit count, a plain number or a `u64_stats_t` or `local64_t`, as (n,) int64."""
    rows.fetch(member)
    return _fixed(np.ascontiguousarray(rows[member]).view("<u8").reshape(len(rows)))


def _fixed(values: U64) -> I64:
    return values.astype(np.uint64).view(np.int64).copy()


#: Drivers' `ndo_get_stats64` whose counts are found; each gives whether they were.
_DRIVERS: Final[dict[str, Callable[[_Counts, I64], bool]]] = {
    "loopback_get_stats64": _loopback,
    "dummy_get_stats64": _dummy,
    "br_get_stats64": _bridge,
    "veth_get_stats64": _veth,
    "virtnet_stats": _virtio,
}
