"""eBPF maps, as bpf(2) lists them.

Knows `struct bpf_map` (include/linux/bpf.h). What is in a map is left to others.
"""

from __future__ import annotations

from collections.abc import Iterable

from vmi_inside.kernel import Kernel
from vmi_inside.linux.tracing import bpf_objects
from vmi_inside.table import Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask


class BpfMaps(Table):
    """One row for each map that has a number."""

    id: I64
    type: Text  # hash, array, ringbuf ...: enum bpf_map_type's words
    name: Text
    key_size: I64  # bytes
    value_size: I64  # bytes
    max_entries: I64
    flags: U64  # BPF_F_*
    frozen: Mask  # programs may write it, nobody else
    references: I64
    users: I64  # references from user space: descriptors, pins
    address: U64  # of struct bpf_map


def bpf_maps(kernel: Kernel, columns: Iterable[str] | None = None) -> BpfMaps:
    """All eBPF maps; `columns` asks for some columns only. Raises `Unsupported` where the kernel has no bpf(2)."""
    wanted = list(BpfMaps.schema if columns is None else columns)
    BpfMaps.check(wanted)
    with kernel.operation():
        number, rows, notes = bpf_objects.objects(kernel, "map_idr", "bpf_map")
        rows.fetch(
            "map_type", "name", "key_size", "value_size", "max_entries", "map_flags", "id", "frozen",
            "refcnt.counter", "usercnt.counter",
        )  # fmt: skip
        faults = Faults(len(rows))
        faults.mark(rows.fault, "map unreadable")
        faults.mark(~rows.fault & (rows.number("id") != number), "its number is another")
        types = bpf_objects.words(kernel, "bpf_map_type", "BPF_MAP_TYPE_")
        data = {
            "id": number,
            "type": bpf_objects.shown(rows.number("map_type"), types),
            "name": text(rows.text("name")),
            "key_size": rows.number("key_size"),
            "value_size": rows.number("value_size"),
            "max_entries": rows.number("max_entries"),
            "flags": rows.unsigned("map_flags"),
            "frozen": rows.number("frozen") != 0,
            "references": rows.number("refcnt.counter"),
            "users": rows.number("usercnt.counter"),
            "address": rows.address,
            "fault": faults.column(),
        }
        return BpfMaps({name: data[name] for name in (*wanted, "fault")}, notes)
