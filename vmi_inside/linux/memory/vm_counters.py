"""The kernel's counters of memory and of what was done with it, as /proc/vmstat lists them.

Knows `vmstat_text` and in which order it names counters (mm/vmstat.c), and the events that each CPU counts
(`vm_event_states`). Counts of zones and nodes are `vmstat`'s knowledge. Left out are NUMA's hits and misses, and limits
that are computed when the file is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside.errors import NoMember, NoSymbol, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.memory.vmstat import counters
from vmi_inside.table import Faults, Table, Text, text
from vmi_inside.types import I64

_NAMES: Final = 1024
_NAME_LIMIT: Final = 64
#: Counted in small pages since 5.12, and shown as huge ones (`vmstat_item_print_in_thp`).
_HUGE: Final = frozenset(("NR_ANON_THPS", "NR_FILE_THPS", "NR_SHMEM_THPS", "NR_SHMEM_PMDMAPPED", "NR_FILE_PMDMAPPED"))
_HUGE_ORDER: Final = 9
#: The first of `enum vm_event_item`: what stands between nodes' counters and it differs.
_FIRST_EVENT: Final = "pgpgin"
#: Counted in sectors of 512 bytes, shown in KiB.
_SECTORS: Final = 2


class VmCounters(Table):
    """One row for each counter, in /proc/vmstat's order and by its names."""

    name: Text
    value: I64  # pages, or times; nr_kernel_stack, pgpgin and pgpgout in KiB
    kind: Text  # zone, node: what is now; event: what happened since the system started


def vm_counters(kernel: Kernel, columns: Iterable[str] | None = None) -> VmCounters:
    """All counters; `columns` asks for some columns only. Raises `Unsupported` where the kernel does not name them."""
    wanted = list(VmCounters.schema if columns is None else columns)
    VmCounters.check(wanted)
    with kernel.operation():
        try:
            table = kernel.symbol("vmstat_text")
            zones, nodes = (_ordered(kernel, f"{kind}_stat_item") for kind in ("zone", "node"))
        except (NoSymbol, NoMember) as error:
            raise Unsupported(f"vmstat: this kernel does not name its counters ({error})") from error
        count = counters(kernel)
        between = _width(kernel, "numa_stat_item")
        events, whole = _events(kernel)
        names, ok = _names(kernel, table, len(zones) + between + len(nodes) + len(events) + 16)
        first = len(zones) + between
        scale = _HUGE_ORDER if "NR_SWAPCACHE" in count else 0
        rows = [(names[at], count.zones.get(item, 0), "zone", ok[at]) for at, item in enumerate(zones)]
        for at, item in enumerate(nodes, first):
            value = count.nodes.get(item, 0) >> (scale if item in _HUGE else 0)
            rows.append((names[at], value, "node", ok[at]))
        start = names.index(_FIRST_EVENT) if _FIRST_EVENT in names else len(names)
        for at, value in enumerate(events.tolist()):
            if start + at < len(names):
                rows.append((names[start + at], value, "event", ok[start + at]))
        faults = Faults(len(rows))
        faults.mark(np.array([not row[3] for row in rows], dtype=np.bool_), "name unreadable")
        data = {
            "name": text(row[0] for row in rows),
            "value": np.array([row[1] for row in rows], dtype=np.int64),
            "kind": text(row[2] for row in rows),
            "fault": faults.column(),
        }
        notes = [*count.faults, *([] if whole else ["events of a CPU could not be read"])]
        if start == len(names) and len(events):
            notes.append(f"events are not shown: nothing is called {_FIRST_EVENT}")
        return VmCounters({name: data[name] for name in (*wanted, "fault")}, notes)


def _ordered(kernel: Kernel, enum: str) -> list[str]:
    """The items of an enum, each at its number; of several names for one, as the first of some have, the last."""
    items = dict(kernel.profile.enum(enum))
    named = {number: name for name, number in items.items() if 0 <= number < _NAMES}
    return [named.get(number, "") for number in range(min(_end(items), _NAMES))]


def _end(items: dict[str, int]) -> int:
    """How many items an enum has: its last, which is called so."""
    return next((number for name, number in items.items() if name.startswith("NR_VM_") and name.endswith("_ITEMS")), 0)


def _width(kernel: Kernel, enum: str) -> int:
    try:
        return min(_end(dict(kernel.profile.enum(enum))), _NAMES)
    except NoMember:
        return 0


def _names(kernel: Kernel, table: int, count: int) -> tuple[list[str], list[bool]]:
    """The first names that the kernel has for counters, and which of them could be read."""
    raw, ok = kernel.space.gather(table + np.uint64(8) * np.arange(min(count, _NAMES), dtype=np.uint64), 8)
    names, fine = kernel.strings(raw.view("<u8")[:, 0], _NAME_LIMIT)
    return names, (ok & fine).tolist()


def _events(kernel: Kernel) -> tuple[I64, bool]:
    """How often each event happened, on all CPUs together; none where the kernel does not count them."""
    state = kernel.find_struct("vm_event_state")
    symbol = kernel.profile.find_symbol("vm_event_states")
    if state is None or symbol is None:
        return np.zeros(0, dtype=np.int64), True
    width = min(state.member("event").type.count, _NAMES)
    raw, ok = kernel.space.gather(np.uint64(symbol) + kernel.percpu_offset, 8 * width)
    total = raw.view("<i8").sum(axis=0, dtype=np.int64)
    for name in ("PGPGIN", "PGPGOUT"):
        number = kernel.profile.enumerator(name)
        if number is not None and 0 <= number < width:
            total[number] //= _SECTORS
    return total, bool(ok.all())
