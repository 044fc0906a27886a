"""Where the kernel's own probes and tracers are: kprobes, and the places where ftrace may call.

Knows `kprobe_table` and `struct kprobe` (kernel/kprobes.c, include/linux/kprobes.h), `ftrace_pages_start` and
`struct dyn_ftrace` (kernel/trace/ftrace.c, include/linux/ftrace.h).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vmi_inside import ragged, walk
from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs
from vmi_inside.types import U64

_KPROBE_BUCKETS: Final = 64  # 1 << KPROBE_HASH_BITS
_PAGES: Final = 1 << 16
_RECORDS: Final = 1 << 16


def kprobes(kernel: Kernel) -> tuple[Structs, tuple[str, ...]]:
    """All `struct kprobe`s that are registered. Raises `NoSymbol`, `NoMember`."""
    ctype = kernel.struct("kprobe")
    table = np.uint64(kernel.symbol("kprobe_table")) + 8 * np.arange(_KPROBE_BUCKETS, dtype=np.uint64)
    raw, _ = kernel.space.gather(table, 8)
    found = walk.chains(kernel.space, raw.view("<u8")[:, 0], what="kprobes")
    rows = kernel.structs(ctype, found.address - np.uint64(ctype.member("hlist").offset))
    return rows, found.faults


def traced_places(kernel: Kernel) -> tuple[U64, tuple[str, ...]]:
    """Addresses (n,) at which ftrace may put a call, the modules' too. Raises `NoSymbol`, `NoMember`."""
    ctype, record = kernel.struct("ftrace_page"), kernel.struct("dyn_ftrace")
    first = np.array([kernel.pointer("ftrace_pages_start")], dtype=np.uint64)
    found = walk.chains(kernel.space, first, ctype.member("next").offset, what="ftrace's pages")
    pages = kernel.structs(ctype, found.address).fetch("records", "index")
    count = np.clip(pages.number("index"), 0, _RECORDS)
    got = ragged.gather(kernel.space, pages.pointer("records"), count * record.size)
    places = [
        np.frombuffer(part, np.uint8).reshape(-1, record.size)[:, record.member("ip").offset :][:, :8]
        for part in got.rows()
        if len(part)
    ]
    if not places:
        return np.empty(0, dtype=np.uint64), found.faults
    return np.ascontiguousarray(np.concatenate(places)).view("<u8")[:, 0], found.faults
