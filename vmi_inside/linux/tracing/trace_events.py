"""What trace events watch: a tracepoint, a function of the kernel, an instruction of a program.

Knows `struct trace_event_call` (include/linux/trace_events.h) and what stands behind one: `trace_kprobe` and
`trace_uprobe` (kernel/trace/trace_kprobe.c, trace_uprobe.c). Who listens to an event is left to tables.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vmi_inside.errors import ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux.symbols.code import Code
from vmi_inside.structs import Structs
from vmi_inside.table import Text, text
from vmi_inside.types import U64, Mask

_PATH_LIMIT: Final = 4096


def event_targets(kernel: Kernel, call: U64) -> tuple[Text, Mask]:
    """In words, what the events (n addresses of trace_event_call, 0 for none) watch; and (n,) bool: which were read.

    `sched_process_fork` for a tracepoint; `kprobe vfs_read+0x5`, `uprobe /bin/sh:0x4f20`.
    """
    out = np.full(len(call), "", dtype=object)
    calls = kernel.structs("trace_event_call", call).fetch("flags", "name")
    ok = ~calls.fault
    flags = calls.number("flags")
    kinds = {}
    for kind in ("TRACEPOINT", "KPROBE", "UPROBE"):
        bit = kernel.profile.enumerator(f"TRACE_EVENT_FL_{kind}")
        kinds[kind] = (flags & (bit or 0) != 0) & ok & (call != 0)
    probes = kinds["KPROBE"] | kinds["UPROBE"]
    # A tracepoint's event has the tracepoint where others have a name.
    mine = np.flatnonzero(kinds["TRACEPOINT"] & ~probes)
    points = calls.select(mine).follow("name", kernel.struct("tracepoint"))
    names = points.pointer("name")
    out[mine], ok[mine] = _strings(kernel, names, points.fault)
    mine = np.flatnonzero(~kinds["TRACEPOINT"] & ~probes & (call != 0))
    out[mine], ok[mine] = _strings(kernel, calls.pointer("name")[mine], calls.fault[mine])
    for kind, show in (("KPROBE", _kprobes), ("UPROBE", _uprobes)):
        mine = np.flatnonzero(kinds[kind])
        if not len(mine):
            continue
        try:
            out[mine], ok[mine] = show(kernel, calls.select(mine))
        except ProfileError:
            ok[mine] = False
    return out, ok


def kprobe_events(kernel: Kernel, probes: Structs) -> tuple[Text, Mask]:
    """Names of the events (n,), `group:event`, that these kprobes are probes of; and (n,) bool: which were read."""
    return _events(kernel, probes.holder(kernel.struct("trace_kprobe"), "rp.kp"))


def uprobe_events(kernel: Kernel, consumers: Structs) -> tuple[Text, Text, Mask]:
    """Paths (n,) as they were given, and names of the events, of which these users of uprobes are probes.

    And (n,) bool: which were read. Their handler is `uprobe_dispatcher`.
    """
    rows = consumers.holder(kernel.struct("trace_uprobe"), "consumer")
    names, named = kernel.strings(rows.pointer("filename"), _PATH_LIMIT)
    events, ok = _events(kernel, rows)
    return text(names), events, ok & named


def _events(kernel: Kernel, probes: Structs) -> tuple[Text, Mask]:
    """Names of the events (n,) that trace_kprobes or trace_uprobes are probes of."""
    events = kernel.structs("trace_probe_event", probes.pointer("tp.event")).fetch("call.name", "call.class")
    classes = events.follow("call.class", kernel.struct("trace_event_class"))
    names, named = kernel.strings(events.pointer("call.name"))
    groups, grouped = kernel.strings(classes.pointer("system"))
    ok = named & grouped & ~(probes.fault | events.fault | classes.fault)
    return text(f"{group}:{name}" if name else "" for group, name in zip(groups, names, strict=True)), ok


def _strings(kernel: Kernel, address: U64, fault: Mask) -> tuple[Text, Mask]:
    found, fine = kernel.strings(address, _PATH_LIMIT)
    return text(found), fine & ~fault


def _probes(kernel: Kernel, calls: Structs, holder: str) -> Structs:
    """The first probe of each event: several may share one."""
    events = calls.holder(kernel.struct("trace_probe_event"), "call")
    probe = kernel.struct("trace_probe")
    first = events.pointer("probes.next") - np.uint64(probe.member("list").offset)
    return kernel.structs(probe, first).holder(kernel.struct(holder), "tp")


def _kprobes(kernel: Kernel, calls: Structs) -> tuple[Text, Mask]:
    rows = _probes(kernel, calls, "trace_kprobe").fetch("rp.kp.addr", "rp.handler")
    where = Code(kernel).symbols(rows.pointer("rp.kp.addr"))
    back = rows.pointer("rp.handler") != 0
    words = [f"{'kretprobe' if each else 'kprobe'} {name}" for each, name in zip(back, where, strict=True)]
    return text(words), ~rows.fault & (rows.pointer("rp.kp.addr") != 0)


def _uprobes(kernel: Kernel, calls: Structs) -> tuple[Text, Mask]:
    rows = _probes(kernel, calls, "trace_uprobe").fetch("filename", "offset")
    names, fine = kernel.strings(rows.pointer("filename"), _PATH_LIMIT)
    words = [f"uprobe {name}:{at:#x}" for name, at in zip(names, rows.unsigned("offset").tolist(), strict=True)]
    return text(words), fine & ~rows.fault
