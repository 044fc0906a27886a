"""Free memory by zone and by size of its pieces, as /proc/buddyinfo shows it.

Knows `struct zone` and its `free_area`s (include/linux/mmzone.h; mm/vmstat.c `frag_show_print`). Where zones are is
`vmstat`'s knowledge; what pages are used for is left to others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.memory.vmstat import Zones
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, PAGE_SIZE, U64

#: Sizes that have a column: order 10 is 4 MiB, the largest piece unless a kernel was built otherwise.
_ORDERS: Final = 11


class BuddyInfo(Table):
    """One row for each zone that has memory. `order_N` counts free pieces of 2**N pages."""

    node: I64
    zone: Text  # DMA, DMA32, Normal, Movable, Device
    order_0: I64
    order_1: I64
    order_2: I64
    order_3: I64
    order_4: I64
    order_5: I64
    order_6: I64
    order_7: I64
    order_8: I64
    order_9: I64
    order_10: I64
    free: I64  # bytes, in all these pieces
    managed: I64  # bytes that the allocator has
    present: I64  # bytes of RAM
    first_page: U64  # the number of the zone's first page frame
    address: U64  # of struct zone


def buddy_info(kernel: Kernel, columns: Iterable[str] | None = None) -> BuddyInfo:
    """All zones that have memory; `columns` asks for some columns only."""
    wanted = list(BuddyInfo.schema if columns is None else columns)
    BuddyInfo.check(wanted)
    with kernel.operation():
        found = Zones(kernel)
        found.zones.fetch("present_pages", "managed_pages.counter", "name", "zone_start_pfn")
        used = np.flatnonzero((found.zones.unsigned("present_pages") != 0) | found.zones.fault)
        rows, notes = found.zones.select(used), list(found.faults)
        orders = rows.type.member("free_area").type.count
        if orders > _ORDERS:
            notes.append(f"pieces of more than {1 << _ORDERS - 1} pages are not shown")
        names = [f"free_area[{order}].nr_free" for order in range(min(orders, _ORDERS))]
        rows.fetch(*names)
        pieces = np.zeros((_ORDERS, len(rows)), dtype=np.int64)
        for order, name in enumerate(names):
            pieces[order] = np.minimum(rows.unsigned(name), np.uint64(1 << 40)).astype(np.int64)
        named, fine = kernel.strings(rows.pointer("name"))
        faults = Faults(len(rows))
        faults.mark(rows.fault, "zone unreadable")
        faults.mark(~fine, "name unreadable")
        pages = rows.number("present_pages")
        free = (pieces << np.arange(_ORDERS)[:, None]).sum(axis=0)
        faults.mark(free > pages, "more is free than there is")
        data: dict[str, Column] = {
            "node": found.node[used],
            "zone": text(named),
            **{f"order_{order}": pieces[order] for order in range(_ORDERS)},
            "free": free * PAGE_SIZE,
            "managed": rows.number("managed_pages.counter") * PAGE_SIZE,
            "present": pages * PAGE_SIZE,
            "first_page": rows.unsigned("zone_start_pfn"),
            "address": rows.address,
            "fault": faults.column(),
        }
        return BuddyInfo({name: data[name] for name in (*wanted, "fault")}, notes)
