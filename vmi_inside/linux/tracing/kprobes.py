"""Kprobes: instructions of the kernel at which somebody else's code runs.

Knows `kprobe_table` and `struct kprobe` (kernel/kprobes.c, include/linux/kprobes.h) as debugfs's kprobes/list shows
them. What events tracefs makes of probes is `trace_events`' knowledge.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.errors import NoSymbol, ProfileError, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.symbols.code import Code
from vmi_inside.linux.tracing.trace_events import kprobe_events
from vmi_inside.structs import Structs
from vmi_inside.table import Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask

#: KPROBE_TABLE_SIZE: 1 << KPROBE_HASH_BITS.
_BUCKETS: Final = 64
#: KPROBE_FLAG_* (include/linux/kprobes.h).
_GONE, _DISABLED, _OPTIMIZED, _FTRACE = 1, 2, 4, 8


class Kprobes(Table):
    """One row for each probe; several may be at one place."""

    symbol: Text  # where: function+offset, and its module
    type: Text  # kprobe, kretprobe
    enabled: Mask
    optimized: Mask  # a jump stands there, instead of a breakpoint
    ftrace: Mask  # it hangs on the function's entry, by ftrace
    gone: Mask  # its code was unloaded
    handler: Text  # what runs before the instruction; of a kretprobe at the function's end
    post_handler: Text  # what runs behind it
    owner: Text  # whose code the handler is: kernel, a module's name, bpf; empty where nobody's
    event: Text  # `group:event` in tracefs, where the probe is one's
    missed: I64  # times that it was hit and did not run
    probed: U64  # address of the instruction
    address: U64  # of struct kprobe


def kprobes(kernel: Kernel, columns: Iterable[str] | None = None) -> Kprobes:
    """All kprobes; `columns` asks for some columns only. Raises `Unsupported` where the kernel has none."""
    wanted = list(Kprobes.schema if columns is None else columns)
    Kprobes.check(wanted)
    with kernel.operation():
        rows, shared, notes = _probes(kernel)
        flags = rows.number("flags")
        before, behind = rows.pointer("pre_handler"), rows.pointer("post_handler")
        back, handler = _returns(kernel, rows, before)
        faults = Faults(len(rows))
        faults.mark(rows.fault, "probe unreadable")
        code = Code(kernel)
        disabled = flags & _DISABLED != 0
        data = {
            "type": text(np.where(back, "kretprobe", "kprobe").tolist()),
            "enabled": ~disabled & (flags & _GONE == 0),
            "optimized": shared & _OPTIMIZED != 0,
            "ftrace": shared & _FTRACE != 0,
            "gone": flags & _GONE != 0,
            "missed": rows.number("nmissed"),
            "probed": rows.pointer("addr"),
            "address": rows.address,
        }
        for name, address in (("symbol", data["probed"]), ("handler", handler), ("post_handler", behind)):
            if name in wanted:
                data[name] = np.where(address == 0, "", code.symbols(address))
        if "owner" in wanted:
            data["owner"] = code.owners(handler)
            faults.mark((handler != 0) & (data["owner"] == ""), "its handler is nobody's code")
        if "event" in wanted:
            data["event"], read = _events(kernel, rows, handler)
            faults.mark(~read, "event unreadable")
        data["fault"] = faults.column()
        return Kprobes({name: data[name] for name in (*wanted, "fault")}, notes)


def _probes(kernel: Kernel) -> tuple[Structs, I64, tuple[str, ...]]:
    """All probes (n,), the flags (n,) of what stands at the place of each, and where a walk was cut.

    At a place of several probes, or of one that can be a jump, stands one in the table that has them on a list.
    """
    try:
        table = kernel.symbol("kprobe_table")
    except NoSymbol as error:
        raise Unsupported("kprobes: this kernel has none (CONFIG_KPROBES)") from error
    heads = table + np.uint64(8) * np.arange(_BUCKETS, dtype=np.uint64)
    raw, ok = kernel.space.gather(heads, 8)
    kprobe = kernel.struct("kprobe")
    found = walk.chains(kernel.space, raw.view("<u8")[:, 0], what="kprobes")
    notes = list(found.faults) if ok.all() else ["kprobe_table could not be read", *found.faults]
    order = np.argsort(found.owner, kind="stable")
    placed = kernel.structs(kprobe, found.address[order] - np.uint64(kprobe.member("hlist").offset)).fetch(*_MEMBERS)
    gathered = placed.pointer("pre_handler") == np.uint64(kernel.profile.find_symbol("aggr_pre_handler") or 1)
    holders = placed.select(gathered & ~placed.fault)
    head = holders.at("list")
    inner = walk.chains(kernel.space, holders.pointer("list.next"), end=head, what="kprobes at one place")
    order = np.argsort(inner.owner, kind="stable")
    members = kernel.structs(kprobe, inner.address[order] - np.uint64(kprobe.member("list").offset)).fetch(*_MEMBERS)
    alone = placed.select(~gathered | placed.fault)
    rows = kernel.structs(kprobe, np.concatenate((members.address, alone.address))).fetch(*_MEMBERS)
    shared = np.concatenate((holders.number("flags")[inner.owner[order]], alone.number("flags")))
    return rows, shared, tuple(notes) + inner.faults


_MEMBERS: Final = ("addr", "pre_handler", "post_handler", "flags", "nmissed", "list.next")


def _returns(kernel: Kernel, rows: Structs, before: U64) -> tuple[Mask, U64]:
    """Which (n,) are kretprobes, and the handlers (n,) that users gave."""
    entry = kernel.profile.find_symbol("pre_handler_kretprobe")
    back: Mask = before == np.uint64(entry or 1)
    handler = before.copy()
    holder = kernel.find_struct("kretprobe")
    if holder is not None and back.any():
        mine = rows.select(back).holder(holder, "kp")
        handler[back] = mine.pointer("handler")
        rows.fault[back] |= mine.fault
    return back, handler


def _events(kernel: Kernel, rows: Structs, handler: U64) -> tuple[Text, Mask]:
    """Names of the trace events (n,) whose probes these are, by their handler; and (n,) bool: which were read."""
    out = np.full(len(rows), "", dtype=object)
    ok = np.ones(len(rows), dtype=np.bool_)
    known = [kernel.profile.find_symbol(name) for name in ("kprobe_dispatcher", "kretprobe_dispatcher")]
    mine = np.flatnonzero(np.isin(handler, np.array([each for each in known if each], dtype=np.uint64)))
    if len(mine):
        try:
            out[mine], ok[mine] = kprobe_events(kernel, rows.select(mine))
        except ProfileError:
            ok[mine] = False
    return out, ok
