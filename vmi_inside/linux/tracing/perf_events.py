"""Perf events that processes have opened: what they count or sample, and where.

Knows `task_struct.perf_event_list` and `struct perf_event` (include/linux/perf_event.h, kernel/events/core.c). What the
events of tracing are about is `trace_events`' knowledge. Events that the kernel made for itself are on no such list.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.errors import Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.names import task_names
from vmi_inside.linux.tasks import PIDTYPE_PID
from vmi_inside.linux.tasks import pids as all_pids
from vmi_inside.linux.tracing import bpf_objects
from vmi_inside.linux.tracing.trace_events import event_targets
from vmi_inside.structs import Structs
from vmi_inside.table import Faults, Table, Text, text
from vmi_inside.types import I64, U64

_MEMBERS: Final = ("pmu", "attr.config", "cpu", "state", "tp_event", "ctx", "owner")


class PerfEvents(Table):
    """One row for each event that a process opened."""

    pid: I64  # of the process that opened it
    tid: I64  # the thread
    name: Text  # of the thread
    type: Text  # the unit that counts: cpu, software, tracepoint, kprobe, uprobe, breakpoint ...
    config: U64  # what it counts, in that unit's terms
    target: Text  # of tracing's events: tracepoint, kprobe FUNCTION, uprobe FILE:OFFSET
    watched_pid: I64  # the thread that is watched; -1 for all
    cpu: I64  # that is watched; -1 for all
    state: Text  # active, inactive (its thread does not run), off, error, exit, dead
    program_id: I64  # the eBPF program that runs at it, 0 for none
    program: Text  # its name
    address: U64  # of struct perf_event


def perf_events(kernel: Kernel, columns: Iterable[str] | None = None) -> PerfEvents:
    """All events that processes have opened; `columns` asks for some columns only.

    Raises `Unsupported` where the kernel has no perf events.
    """
    wanted = list(PerfEvents.schema if columns is None else columns)
    PerfEvents.check(wanted)
    with kernel.operation():
        event = kernel.find_struct("perf_event")
        if event is None or not kernel.struct("task_struct").has("perf_event_list"):
            raise Unsupported("perf events: this kernel has none (CONFIG_PERF_EVENTS)")
        every = all_pids(kernel)
        number, _, tasks = every.tasks(kernel, PIDTYPE_PID)
        tasks.fetch("tgid", "comm", "flags", "perf_event_list.next")
        head = tasks.at("perf_event_list")
        found = walk.chains(
            kernel.space, tasks.pointer("perf_event_list.next"), end=head, what="perf events of a thread"
        )  # fmt: skip
        order = np.argsort(found.owner, kind="stable")
        owner = found.owner[order]
        rows = kernel.structs(event, found.address[order] - np.uint64(event.member("owner_entry").offset))
        rows.fetch(*_MEMBERS)
        units = rows.follow("pmu")
        names, named = kernel.strings(units.pointer("name"))
        faults = Faults(len(rows))
        faults.mark(rows.fault, "event unreadable")
        faults.mark(~rows.fault & (rows.pointer("owner") != tasks.address[owner]), "its owner is another")
        faults.mark(units.fault | ~named, "type unreadable")
        states = bpf_objects.words(kernel, "perf_event_state", "PERF_EVENT_STATE_")
        data = {
            "pid": tasks.number("tgid")[owner],
            "tid": number[owner],
            "type": text(names),
            "config": rows.unsigned("attr.config"),
            "cpu": rows.number("cpu"),
            "state": bpf_objects.shown(rows.number("state"), states),
            "address": rows.address,
        }
        if "name" in wanted:
            unique, back = np.unique(owner, return_inverse=True)
            data["name"] = text(task_names(kernel, tasks.select(unique)))[back]
        if "target" in wanted:
            data["target"], read = event_targets(kernel, rows.pointer("tp_event"))
            faults.mark(~read, "target unreadable")
        if "watched_pid" in wanted:
            contexts = rows.follow("ctx")
            watched = _watched(contexts)
            faults.mark(contexts.fault | watched.fault, "watched thread unreadable")
            data["watched_pid"] = np.where(watched.address == 0, -1, watched.number("pid"))
        if {"program", "program_id"} & set(wanted):
            programs = (
                rows.follow("prog") if rows.has("prog") else kernel.structs("bpf_prog", np.zeros_like(rows.address))
            )
            aux = programs.follow("aux").fetch("id", "name")
            faults.mark(programs.fault | aux.fault, "program unreadable")
            data["program_id"], data["program"] = aux.number("id"), text(aux.text("name"))
        data["fault"] = faults.column()
        return PerfEvents({name: data[name] for name in (*wanted, "fault")}, (*every.faults, *found.faults))


def _watched(contexts: Structs) -> Structs:
    """The threads that contexts (n rows) belong to; of address 0 where they are a CPU's."""
    tasks = contexts.follow("task")
    tasks.address[tasks.address == np.uint64((1 << 64) - 1)] = 0  # TASK_TOMBSTONE: it is gone
    return tasks.fetch("pid")
