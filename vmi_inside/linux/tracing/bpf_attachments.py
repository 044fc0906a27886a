"""eBPF programs at control groups and network devices, those without a link too.

Knows `cgroup.bpf` and the lists in it (include/linux/bpf-cgroup-defs.h; kernel/bpf/cgroup.c), the tree of control
groups (include/linux/cgroup-defs.h), and `net_device.xdp_state` (net/core/dev.c). Links have a table of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.errors import NoMember, NoSymbol, ProfileError, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.processes.cgroups import node_paths
from vmi_inside.linux.tracing import bpf_objects
from vmi_inside.structs import Structs
from vmi_inside.table import Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask

_GROUPS: Final = 1 << 16
_DEPTH: Final = 256
#: enum bpf_xdp_mode, in words.
_MODES: Final = ("xdp_generic", "xdp_driver", "xdp_hardware")


class BpfAttachments(Table):
    """One row for each program at each place, in the order in which they run."""

    program_id: I64
    program: Text  # its name
    attach_type: Text  # cgroup_inet_egress, cgroup_device ...; xdp_generic, xdp_driver, xdp_hardware
    target: Text  # path of the control group, name of the device
    link_id: I64  # of the link that keeps it there, 0 where it was attached without one
    address: U64  # of struct bpf_prog


@dataclass(frozen=True, slots=True)
class _Found:
    """Programs (n,): `program` their structs, `link` their links or 0, where they are, and which could be read."""

    program: U64
    link: U64
    kind: Text
    target: Text
    ok: Mask
    faults: tuple[str, ...]


def bpf_attachments(kernel: Kernel, columns: Iterable[str] | None = None) -> BpfAttachments:
    """All programs at control groups and devices; `columns` asks for some columns only.

    Raises `Unsupported` where the kernel has no bpf(2).
    """
    wanted = list(BpfAttachments.schema if columns is None else columns)
    BpfAttachments.check(wanted)
    with kernel.operation():
        if kernel.profile.find_symbol("prog_idr") is None:
            raise Unsupported("eBPF: this kernel has none of these objects (prog_idr)")
        parts, notes = [], []
        for find, what in ((_at_groups, "control groups"), (_at_devices, "devices")):
            try:
                parts.append(find(kernel))
            except ProfileError as error:
                notes.append(f"programs at {what}: {error}")
        notes += [fault for part in parts for fault in part.faults]
        program, link, kind, target, ok = _joined(parts)
        links = kernel.structs("bpf_link", link) if kernel.find_struct("bpf_link") else None
        if links is not None:
            links.fetch("id", "prog")
            program = np.where(program == 0, links.pointer("prog"), program)
        programs = kernel.structs("bpf_prog", program)
        aux = programs.follow("aux").fetch("id", "name")
        faults = Faults(len(program))
        faults.mark(~ok, "place unreadable")
        faults.mark(programs.fault | aux.fault | (program == 0), "program unreadable")
        if links is not None:
            faults.mark(links.fault, "link unreadable")
        data = {
            "program_id": aux.number("id"),
            "program": text(aux.text("name")),
            "attach_type": kind,
            "target": target,
            "link_id": np.zeros(len(program), dtype=np.int64) if links is None else links.number("id"),
            "address": program,
            "fault": faults.column(),
        }
        return BpfAttachments({name: data[name] for name in (*wanted, "fault")}, notes)


def _joined(parts: list[_Found]) -> tuple[U64, U64, Text, Text, Mask]:
    none = np.zeros(0, dtype=np.uint64)
    return (
        np.concatenate([none, *(part.program for part in parts)]),
        np.concatenate([none, *(part.link for part in parts)]),
        np.concatenate([text(()), *(part.kind for part in parts)]),
        np.concatenate([text(()), *(part.target for part in parts)]),
        np.concatenate([np.zeros(0, dtype=np.bool_), *(part.ok for part in parts)]),
    )


def _at_groups(kernel: Kernel) -> _Found:
    """Programs at control groups: on a list for each way to attach."""
    group, listed = kernel.struct("cgroup"), kernel.struct("bpf_prog_list")
    groups, faults = _groups(kernel)
    progs = group.member("bpf.progs")
    ways, step = progs.type.count, np.uint64(progs.type.target.size)
    head = (groups.at("bpf.progs")[:, None] + step * np.arange(ways, dtype=np.uint64)[None, :]).ravel()
    raw, ok = kernel.space.gather(head, 8)
    # hlist since 6.0; a circular list before, which ends at its head.
    circular = listed.member("node").type.has("prev")
    found = walk.chains(
        kernel.space, raw.view("<u8")[:, 0], end=head if circular else None, what="programs of a control group"
    )  # fmt: skip
    order = np.argsort(found.owner, kind="stable")
    owner, rows = found.owner[order], kernel.structs(
        listed, found.address[order] - np.uint64(listed.member("node").offset)
    ).fetch("prog", "link")  # fmt: skip
    unique, back = np.unique(owner // ways, return_inverse=True)
    nodes = groups.select(unique).follow("kn")
    paths, whole = node_paths(kernel, nodes)
    names = bpf_objects.words(kernel, "cgroup_bpf_attach_type", "") or bpf_objects.words(
        kernel, "bpf_attach_type", "BPF_"
    )  # numbers of their own since 5.15
    if not ok.all():
        faults += ("programs of a control group could not be read",)
    holder = kernel.find_struct("bpf_cgroup_link")
    link = rows.pointer("link")
    if holder is not None and holder.has("link"):
        link = np.where(link == 0, link, link + np.uint64(holder.member("link").offset))
    return _Found(
        rows.pointer("prog"), link, bpf_objects.shown(owner % ways, names), text(paths)[back],
        ~rows.fault & whole[back], faults + found.faults,
    )  # fmt: skip


def _groups(kernel: Kernel) -> tuple[Structs, tuple[str, ...]]:
    """All control groups of the unified hierarchy, level by level."""
    group, state = kernel.struct("cgroup"), kernel.struct("cgroup_subsys_state")
    root = kernel.symbol("cgrp_dfl_root") + kernel.struct("cgroup_root").member("cgrp").offset
    inner = np.uint64(group.member("self").offset)
    link, children = (np.uint64(state.member(name).offset) for name in ("sibling", "children"))
    here = np.array([root], dtype=np.uint64) + inner
    found, faults = [here], []
    total = 1
    for _ in range(_DEPTH):
        head = here + children
        raw, ok = kernel.space.gather(head, 8)
        below = walk.chains(kernel.space, raw.view("<u8")[:, 0], end=head, what="control groups")
        faults += [*below.faults, *([] if ok.all() else ["control groups: one could not be read"])]
        here = np.setdiff1d(below.address - link, np.concatenate(found))
        if not len(here):
            break
        if total + len(here) > _GROUPS:
            faults.append(f"control groups: cut after {total}")
            break
        total += len(here)
        found.append(here)
    return kernel.structs(group, np.concatenate(found) - inner), tuple(faults)


def _at_devices(kernel: Kernel) -> _Found:
    """Programs at network devices of all namespaces: XDP."""
    try:
        nets = kernel.symbol("net_namespace_list")
        net, device = kernel.struct("net"), kernel.struct("net_device")
        state = device.member("xdp_state")
    except (NoSymbol, NoMember) as error:
        raise NoMember(f"no network devices ({error})") from error
    spaces = walk.serial(kernel.space, nets, what="network namespaces", limit=_GROUPS)
    rows = kernel.structs(net, spaces.address - np.uint64(net.member("list").offset))
    head = rows.at("dev_base_head")
    found = walk.chains(kernel.space, rows.pointer("dev_base_head.next"), end=head, what="network devices")
    devices = kernel.structs(device, found.address - np.uint64(device.member("dev_list").offset))
    modes = range(min(state.type.count, len(_MODES)))
    devices.fetch("name", *(f"xdp_state[{mode}].{name}" for mode in modes for name in ("prog", "link")))
    names = text(devices.text("name"))
    parts = []
    holder = kernel.find_struct("bpf_xdp_link")
    inner = np.uint64(holder.member("link").offset if holder is not None else 0)
    for mode in modes:
        prog, link = (devices.pointer(f"xdp_state[{mode}].{name}") for name in ("prog", "link"))
        used = np.flatnonzero((prog != 0) | (link != 0))
        link = np.where(link == 0, link, link + inner)
        parts.append((prog[used], link[used], text(_MODES[mode] for _ in used), names[used], ~devices.fault[used]))
    program, link, kind, target, ok = (np.concatenate([part[at] for part in parts]) for at in range(5))
    return _Found(program, link, kind, target, ok, (*spaces.faults, *found.faults))
