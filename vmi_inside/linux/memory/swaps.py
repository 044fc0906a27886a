"""Where memory is swapped to, as /proc/swaps shows it.

Knows `swap_info` and `struct swap_info_struct` (include/linux/swap.h, mm/swapfile.c). What a file is, is `opened`'s
knowledge; what is swapped out is left to others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside.errors import NoMember, NoSymbol, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.opened import opened
from vmi_inside.table import Faults, Table, Text, text
from vmi_inside.types import I64, PAGE_SIZE, U64, Mask

#: MAX_SWAPFILES is 32 at the most.
_FILES: Final = 32
#: SWAP_USAGE_OFFLIST_BIT (mm/swapfile.c, 6.13), a flag above the count.
_COUNT: Final = ~np.int64(1 << 30)


class Swaps(Table):
    """One row for each swap file or partition."""

    path: Text
    type: Text  # partition, file
    size: I64  # bytes
    used: I64  # bytes
    priority: I64
    active: Mask  # pages may be written to it; not while it is being taken away
    address: U64  # of struct swap_info_struct


def swaps(kernel: Kernel, columns: Iterable[str] | None = None) -> Swaps:
    """All swap files and partitions; `columns` asks for some columns only.

    Raises `Unsupported` where the kernel does not swap.
    """
    wanted = list(Swaps.schema if columns is None else columns)
    Swaps.check(wanted)
    with kernel.operation():
        try:
            array = kernel.symbol("swap_info")
            count = min(kernel.number(4, "nr_swapfiles"), _FILES)
            info = kernel.struct("swap_info_struct")
        except (NoSymbol, NoMember) as error:
            raise Unsupported("swaps: this kernel does not swap (CONFIG_SWAP)") from error
        raw, ok = kernel.space.gather(array + np.uint64(8) * np.arange(count, dtype=np.uint64), 8)
        notes = [] if ok.all() else ["swap_info could not be read"]
        address = raw.view("<u8")[:, 0]
        rows = kernel.structs(info, address[address != 0])
        rows.fetch("flags", "pages", ("inuse_pages.counter", "inuse_pages"), "prio", "swap_file")
        bits = {name: kernel.profile.enumerator(f"SWP_{name}") or 0 for name in ("USED", "WRITEOK")}
        rows = rows.select(np.flatnonzero((rows.number("flags") & bits["USED"] != 0) | rows.fault))
        faults = Faults(len(rows))
        faults.mark(rows.fault, "swap_info_struct unreadable")
        files = rows.follow("swap_file")
        shown = opened(kernel, files)
        faults.mark(files.fault | shown.fault | ((files.address == 0) & ~rows.fault), "file unreadable")
        faults.mark(~shown.path_whole, "path incomplete")
        used = rows.number(("inuse_pages.counter", "inuse_pages")) & _COUNT
        data = {
            "path": shown.path,
            "type": text("partition" if kind == "blk" else "file" for kind in shown.kind.tolist()),
            "size": rows.number("pages") * PAGE_SIZE,
            "used": np.clip(used, 0, 1 << 50) * PAGE_SIZE,
            "priority": rows.number("prio"),
            "active": rows.number("flags") & bits["WRITEOK"] != 0,
            "address": rows.address,
            "fault": faults.column(),
        }
        return Swaps({name: data[name] for name in (*wanted, "fault")}, notes)
