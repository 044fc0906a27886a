"""Uprobes: instructions of programs and libraries at which the kernel runs somebody's code.

Knows `uprobes_tree` and `struct uprobe` with its consumers (kernel/events/uprobes.c; a list of `uprobe_consumer`, of
the kernel's common kind since 6.12). What events tracefs makes of them is `trace_events`' knowledge.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside import rbtree, walk
from vmi_inside.errors import MemoryFault, NoMember, NoSymbol, ProfileError, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.paths import paths
from vmi_inside.linux.symbols.code import Code
from vmi_inside.linux.tracing.trace_events import uprobe_events
from vmi_inside.structs import Structs
from vmi_inside.table import Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask

#: Handlers of what tracefs and perf make of uprobes, and of eBPF's links to several.
_TRACED: Final = ("uprobe_dispatcher", "uretprobe_dispatcher")
_MULTI: Final = ("uprobe_multi_link_handler", "uprobe_multi_link_ret_handler")


class Uprobes(Table):
    """One row for each user of each probe."""

    path: Text  # of the file, where its user keeps one
    inode: I64
    offset: I64  # bytes, in the file
    handler: Text  # what runs before the instruction
    return_handler: Text  # what runs when the function returns
    owner: Text  # whose code that is: kernel, a module's name; empty where nobody's
    event: Text  # `group:event` in tracefs, where it is one's
    users: I64  # of the probe
    address: U64  # of struct uprobe; 0 handlers where it has no user


def uprobes(kernel: Kernel, columns: Iterable[str] | None = None) -> Uprobes:
    """All uprobes; `columns` asks for some columns only. Raises `Unsupported` where the kernel has none."""
    wanted = list(Uprobes.schema if columns is None else columns)
    Uprobes.check(wanted)
    with kernel.operation():
        probes, notes = _probes(kernel)
        probes.fetch("inode", "offset")
        owner, consumers, more = _consumers(kernel, probes)
        notes += more
        handlers = consumers.fetch("handler", "ret_handler")
        inodes = probes.follow("inode").fetch("i_ino")
        before, behind = handlers.pointer("handler"), handlers.pointer("ret_handler")
        faults = Faults(len(owner))
        faults.mark(probes.fault[owner], "probe unreadable")
        faults.mark(inodes.fault[owner], "inode unreadable")
        faults.mark(consumers.fault, "user unreadable")
        code = Code(kernel)
        function = np.where(before != 0, before, behind)
        owners = code.owners(function)
        faults.mark((function != 0) & (owners == ""), "its handler is nobody's code")
        data = {
            "inode": inodes.number("i_ino")[owner],
            "offset": probes.number("offset")[owner],
            "owner": owners,
            "users": np.bincount(owner, minlength=len(probes))[owner] * (consumers.address != 0),
            "address": probes.address[owner],
        }
        for name, address in (("handler", before), ("return_handler", behind)):
            if name in wanted:
                data[name] = np.where(address == 0, "", code.symbols(address))
        if {"path", "event"} & set(wanted):
            data["path"], data["event"], read = _names(kernel, consumers, before, behind)
            faults.mark(~read, "path unreadable")
        data["fault"] = faults.column()
        return Uprobes({name: data[name] for name in (*wanted, "fault")}, notes)


def _probes(kernel: Kernel) -> tuple[Structs, list[str]]:
    """All probes, by file and offset."""
    try:
        root = kernel.pointer("uprobes_tree")
        uprobe = kernel.struct("uprobe")
    except (NoSymbol, NoMember) as error:
        raise Unsupported("uprobes: this kernel has none (CONFIG_UPROBES)") from error
    found = rbtree.nodes(
        kernel.space, np.array([root], dtype=np.uint64), kernel.struct("rb_node"), what="uprobes"
    )  # fmt: skip
    rows = kernel.structs(uprobe, found.address - np.uint64(uprobe.member("rb_node").offset))
    return rows, list(found.faults)


def _consumers(kernel: Kernel, probes: Structs) -> tuple[I64, Structs, tuple[str, ...]]:
    """Users (m,) of probes (n rows): of which each is, and its struct; one of address 0 where a probe has none."""
    consumer = kernel.struct("uprobe_consumer")
    if consumer.has("cons_node"):  # list_head since 6.12
        head = probes.at("consumers")
        first, link = probes.pointer("consumers.next"), consumer.member("cons_node").offset
        found = walk.chains(kernel.space, first, end=head, what="users of a uprobe")
    else:
        link = 0
        first, following = probes.pointer("consumers"), consumer.member("next").offset
        found = walk.chains(kernel.space, first, following, what="users of a uprobe")
    alone = np.setdiff1d(np.arange(len(probes)), found.owner)
    owner = np.concatenate((found.owner, alone))
    address = np.concatenate((found.address - np.uint64(link), np.zeros(len(alone), dtype=np.uint64)))
    order = np.argsort(owner, kind="stable")
    return owner[order], kernel.structs(consumer, address[order]), found.faults


def _names(kernel: Kernel, consumers: Structs, before: U64, behind: U64) -> tuple[Text, Text, Mask]:
    """Paths and events (n,) of users that keep one; and (n,) bool: of which that could be read."""
    path, event = (np.full(len(consumers), "", dtype=object) for _ in range(2))
    ok = np.ones(len(consumers), dtype=np.bool_)

    def uses(names: tuple[str, ...]) -> Mask:
        known = [each for name in names if (each := kernel.profile.find_symbol(name))]
        there = np.array(known, dtype=np.uint64)
        return np.isin(before, there) | np.isin(behind, there)

    mine = np.flatnonzero(uses(_TRACED))
    if len(mine):
        try:
            path[mine], event[mine], ok[mine] = uprobe_events(kernel, consumers.select(mine))
        except (ProfileError, MemoryFault):
            ok[mine] = False
    mine = np.flatnonzero(uses(_MULTI))
    if len(mine):
        try:
            path[mine], ok[mine] = _linked(kernel, consumers.select(mine))
        except (ProfileError, MemoryFault):
            ok[mine] = False
    return path, event, ok


def _linked(kernel: Kernel, consumers: Structs) -> tuple[Text, Mask]:
    """Paths (n,) of the files that eBPF's links to uprobes are about."""
    held = consumers.holder(kernel.struct("bpf_uprobe"), "consumer")
    links = held.follow("link").fetch("path.dentry", "path.mnt")
    found, ok = paths(kernel, links.pointer("path.dentry"), links.pointer("path.mnt"))
    return text(found), ok & ~held.fault & ~links.fault
