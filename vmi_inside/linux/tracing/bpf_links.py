"""eBPF links: which program is attached to what, as bpf(2) lists them.

Knows `struct bpf_link` (include/linux/bpf.h) and the structs that hold one: for tracepoints, perf events, cgroups,
network namespaces and devices, traced functions. What a perf event probes is `trace_events`' knowledge. Programs that
are attached without a link (sockets, older tc and cgroup attachments) are not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from vmi_inside import ragged
from vmi_inside.errors import ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.paths import paths
from vmi_inside.linux.processes.cgroups import node_paths
from vmi_inside.linux.symbols.code import Code
from vmi_inside.linux.tracing import bpf_objects
from vmi_inside.linux.tracing.bpf_programs import targets
from vmi_inside.linux.tracing.trace_events import event_targets
from vmi_inside.structs import Structs
from vmi_inside.table import Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask

#: Functions of one link that are named.
_NAMED: Final = 8
_FUNCTIONS: Final = 1 << 16


class BpfLinks(Table):
    """One row for each link that has a number."""

    id: I64
    type: Text  # perf_event, raw_tracepoint, cgroup ...: enum bpf_link_type's words
    program_id: I64
    program: Text  # its name
    attach_type: Text  # where a program of its type can be attached in several ways
    target: Text  # tracepoint, function, device, path of a cgroup, net:[inode] ...
    references: I64
    address: U64  # of struct bpf_link


def bpf_links(kernel: Kernel, columns: Iterable[str] | None = None) -> BpfLinks:
    """All eBPF links; `columns` asks for some columns only. Raises `Unsupported` where the kernel has none (5.7)."""
    wanted = list(BpfLinks.schema if columns is None else columns)
    BpfLinks.check(wanted)
    with kernel.operation():
        number, rows, notes = bpf_objects.objects(kernel, "link_idr", "bpf_link")
        rows.fetch("id", "type", "prog", "refcnt.counter")
        aux, reached = _along(rows, "prog", "aux")
        aux.fetch("id", "name", "attach_func_name", "dst_prog")
        faults = Faults(len(rows))
        faults.mark(rows.fault, "link unreadable")
        faults.mark(~rows.fault & (rows.number("id") != number), "its number is another")
        faults.mark(~reached | aux.fault, "program unreadable")
        kinds = bpf_objects.shown(rows.number("type"), bpf_objects.words(kernel, "bpf_link_type", "BPF_LINK_TYPE_"))
        data = {
            "id": number,
            "type": kinds,
            "program_id": aux.number("id"),
            "program": text(aux.text("name")),
            "references": rows.number("refcnt.counter"),
            "address": rows.address,
        }
        if "attach_type" in wanted:
            data["attach_type"] = _attach_types(kernel, rows, kinds)
        if "target" in wanted:
            found, good = _targets(kernel, rows, aux, kinds)
            data["target"] = found
            faults.mark(~good, "target unreadable")
        data["fault"] = faults.column()
        return BpfLinks({name: data[name] for name in (*wanted, "fault")}, notes)


#: Structs that hold a link of each type.
_HOLDERS: Final = {
    "raw_tracepoint": "bpf_raw_tp_link", "tracing": "bpf_tracing_link", "cgroup": "bpf_cgroup_link",
    "iter": "bpf_iter_link", "netns": "bpf_netns_link", "xdp": "bpf_xdp_link", "perf_event": "bpf_perf_link",
    "kprobe_multi": "bpf_kprobe_multi_link", "struct_ops": "bpf_struct_ops_link", "netfilter": "bpf_nf_link",
    "tcx": "tcx_link", "uprobe_multi": "bpf_uprobe_multi_link", "netkit": "netkit_link", "sockmap": "sockmap_link",
}  # fmt: skip


def _holders(kernel: Kernel, links: Structs, kind: str) -> Structs | None:
    """The structs around links of one type; None where that is not known."""
    ctype = kernel.find_struct(_HOLDERS[kind]) if kind in _HOLDERS else None
    return None if ctype is None else links.holder(ctype, "link.link", "link")


def _attach_types(kernel: Kernel, rows: Structs, kinds: Text) -> Text:
    """Words for attach types: in the link itself since 6.18, in some of the structs around it before.

    0 is a way to attach to a cgroup, and what stands where there is but one way.
    """
    names = bpf_objects.words(kernel, "bpf_attach_type", "BPF_")
    plain = {**names, 0: ""}
    out = np.full(len(rows), "", dtype=object)
    for kind in sorted(set(kinds.tolist())):
        mine = np.flatnonzero(kinds == kind)
        holders = rows.select(mine) if rows.has("attach_type") else _holders(kernel, rows.select(mine), kind)
        member = ("attach_type",) if rows.has("attach_type") else ("attach_type", "type")
        if holders is not None and holders.has(*member):
            out[mine] = bpf_objects.shown(holders.number(member), names if kind == "cgroup" else plain)
    return out


def _targets(kernel: Kernel, rows: Structs, aux: Structs, kinds: Text) -> tuple[Text, Mask]:
    """What each link (n,) is attached to, in words; and (n,) bool: of which that could be read."""
    out = np.full(len(rows), "", dtype=object)
    ok = np.ones(len(rows), dtype=np.bool_)
    for kind in sorted(set(kinds.tolist())):
        mine = np.flatnonzero(kinds == kind)
        if kind == "tracing":
            out[mine], ok[mine] = targets(kernel, aux.select(mine))
            continue
        around = _holders(kernel, rows.select(mine), kind)
        if around is None or kind not in _TARGETS:
            continue
        try:
            out[mine], ok[mine] = _TARGETS[kind](kernel, around)
        except ProfileError:
            ok[mine] = False
    return out, ok


def _along(rows: Structs, *members: str) -> tuple[Structs, Mask]:
    """The structs at the end of a chain of pointers, and (n,) bool: of which all could be read on the way there."""
    ok = np.ones(len(rows), dtype=np.bool_)
    for member in members:
        onward = rows.follow(member)
        ok &= ~rows.fault
        rows = onward
    return rows, ok


def _tracepoints(kernel: Kernel, around: Structs) -> tuple[Text, Mask]:
    points, ok = _along(around, "btp", "tp")
    names, named = kernel.strings(points.pointer("name"))
    return text(names), ok & named & ~points.fault


def _cgroups(kernel: Kernel, around: Structs) -> tuple[Text, Mask]:
    nodes, ok = _along(around, "cgroup", "kn")
    found, whole = node_paths(kernel, nodes)
    return text(found), ok & whole


def _namespaces(kernel: Kernel, around: Structs) -> tuple[Text, Mask]:
    nets, ok = _along(around, "net")  # none when the namespace is gone
    inodes = nets.number("ns.inum").tolist()
    return text(f"net:[{inode}]" if inode else "" for inode in inodes), ok & ~nets.fault


def _devices(kernel: Kernel, around: Structs) -> tuple[Text, Mask]:
    devices, ok = _along(around, "dev")
    return text(devices.text("name")), ok & ~devices.fault


def _iterators(kernel: Kernel, around: Structs) -> tuple[Text, Mask]:
    kinds, ok = _along(around, "tinfo", "reg_info")
    names, named = kernel.strings(kinds.pointer("target"))
    return text(names), ok & named & ~kinds.fault


def _maps(kernel: Kernel, around: Structs) -> tuple[Text, Mask]:
    maps, ok = _along(around, "map")
    maps.fetch("id", "name")
    shown = zip(maps.text("name"), maps.number("id").tolist(), strict=True)
    return text(f"map {number} {name}".rstrip() for name, number in shown), ok & ~maps.fault


def _events(kernel: Kernel, around: Structs) -> tuple[Text, Mask]:
    files, ok = _along(around, "perf_file")
    events = kernel.structs("perf_event", files.pointer("private_data"))
    found, read = event_targets(kernel, events.pointer("tp_event"))
    return found, ok & read & ~files.fault & ~events.fault


def _functions(kernel: Kernel, around: Structs) -> tuple[Text, Mask]:
    around.fetch("addrs", "cnt")
    count = around.number("cnt")
    found = ragged.gather(kernel.space, around.pointer("addrs"), np.minimum(count, _NAMED) * 8)
    address, owner, _ = found.words()
    names: list[list[str]] = [[] for _ in range(len(around))]
    for row, name in zip(owner.tolist(), Code(kernel).symbols(address).tolist(), strict=True):
        names[row].append(name)
    for row, more in enumerate((count - _NAMED).tolist()):
        if more > 0:
            names[row].append(f"and {more} more")
    return text(map(", ".join, names)), found.ok & (count >= 0) & (count <= _FUNCTIONS)


def _files(kernel: Kernel, around: Structs) -> tuple[Text, Mask]:
    around.fetch("path.dentry", "path.mnt")
    found, ok = paths(kernel, around.pointer("path.dentry"), around.pointer("path.mnt"))
    return text(found), ok & ~around.fault


def _hooks(kernel: Kernel, around: Structs) -> tuple[Text, Mask]:
    around.fetch("hook_ops.pf", "hook_ops.hooknum", "hook_ops.priority")
    parts = zip(*(around.number(f"hook_ops.{name}").tolist() for name in ("pf", "hooknum", "priority")), strict=True)
    return text(f"family {family} hook {hook} priority {priority}" for family, hook, priority in parts), ~around.fault


_TARGETS: Final[dict[str, Callable[[Kernel, Structs], tuple[Text, Mask]]]] = {
    "raw_tracepoint": _tracepoints, "cgroup": _cgroups, "netns": _namespaces, "xdp": _devices, "tcx": _devices,
    "netkit": _devices, "iter": _iterators, "struct_ops": _maps, "sockmap": _maps, "perf_event": _events,
    "kprobe_multi": _functions, "uprobe_multi": _files, "netfilter": _hooks,
}  # fmt: skip
