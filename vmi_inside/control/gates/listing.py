"""Gates that stand in a guest: what is denied to whom, and how often it was.

Told from the guest's memory alone, by the records that gates leave there; who placed them, and why, is the journal's.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside.control.gates.layout import Rule, Scope
from vmi_inside.control.gates.operations import NETWORK, OPERATIONS, UNIX
from vmi_inside.control.gates.rules import group_path
from vmi_inside.control.gates.standing import Site
from vmi_inside.errors import Conflict, MemoryFault, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.tasks import PIDTYPE_TGID, pids
from vmi_inside.table import Faults, Table, Text, text
from vmi_inside.types import I64, MASK64, U64, Mask

_SCOPES: Final = {Scope.PROCESS: "process", Scope.MARKED: "children", Scope.CGROUP: "cgroup", Scope.USER: "uid"}


class Gates(Table):
    """One row for each rule."""

    operation: Text  # network exec open module ptrace kill
    scope: Text  # process children cgroup uid
    pid: I64  # -1 where the rule is for no process
    name: Text  # of the process, when the rule was placed
    cgroup: Text
    uid: I64  # -1 where the rule is for no user
    alive: Mask  # whether there still is the process or the cgroup
    allow: Text  # networks that are let through
    paths: Text  # directories and files that `open` is limited to
    unix: Mask  # whether unix sockets are refused, too
    errno: Text  # what a refused call ends in
    refused: I64  # how often; -1 where nothing counts
    time: I64  # seconds since the epoch
    entry: Text  # of the journal
    address: U64  # of the rule in the guest


def gates(kernel: Kernel, columns: Iterable[str] | None = None) -> Gates:
    """All gates, in the order in which the guest asks them. `columns` asks for some columns only."""
    wanted = list(Gates.schema if columns is None else columns)
    Gates.check(wanted)
    notes: list[str] = []
    rules: dict[int, Rule] = {}
    with kernel.operation():
        try:
            site = Site(kernel)
            state, _ = site.read()
        except (Unsupported, Conflict) as error:
            site, state = None, None
            notes.append(str(error))
        if site is not None and state is not None:
            rules = state.rules
            notes += site.broken(state)
            if not site.ours(state):
                notes.append("the code of these gates is not what this version of vmi-inside would write")
        listed = list(rules.values())
        faults = Faults(len(listed))
        alive = _processes(kernel) if any(rule.pid for rule in listed) else set()
        groups = [
            group_path(kernel, rule, site.offsets) if site and rule.scope == Scope.CGROUP else "" for rule in listed
        ]  # fmt: skip
        counts = [_count(kernel, rule) for rule in listed]
    known = {operation.bit: operation.name for operation in OPERATIONS.values()}
    faults.mark(_mask(rule.operations not in known for rule in listed), "unknown operation")
    faults.mark(_mask(count is None for count in counts), "count unreadable")
    data = {
        "operation": text(known.get(rule.operations, f"{rule.operations:#x}") for rule in listed),
        "scope": text(_SCOPES[rule.scope] for rule in listed),
        "pid": _numbers(rule.pid or -1 for rule in listed),
        "name": text(rule.name for rule in listed),
        "cgroup": text(groups),
        "uid": _numbers(rule.number if rule.scope == Scope.USER else -1 for rule in listed),
        "alive": _mask(
            (rule.pid, rule.first) in alive if rule.pid else rule.scope != Scope.CGROUP or bool(group)
            for rule, group in zip(listed, groups, strict=True)
        ),
        "allow": text(",".join(map(str, rule.networks)) for rule in listed),
        "paths": text(",".join(one.path for one in rule.folders) for rule in listed),
        "unix": _mask(
            known.get(rule.operations) == NETWORK and bool(rule.families >> UNIX & 1) for rule in listed
        ),
        "errno": text(errno.errorcode.get(rule.errno, str(rule.errno)) for rule in listed),
        "refused": _numbers(-1 if count is None else count for count in counts),
        "time": _numbers(min(rule.time, (1 << 63) - 1) for rule in listed),
        "entry": text(rule.entry for rule in listed),
        "address": np.array([site.rule_address(slot) for slot in rules] if site else [], dtype=np.uint64),
        "fault": faults.column(),
    }  # fmt: skip
    return Gates({name: data[name] for name in dict.fromkeys((*wanted, "fault"))}, notes)


def _processes(kernel: Kernel) -> set[tuple[int, int]]:
    """Pids of all processes, and when each was started."""
    number, _, rows = pids(kernel).tasks(kernel, PIDTYPE_TGID)
    return set(zip(number.tolist(), rows.unsigned("start_boottime").tolist(), strict=True))


def _count(kernel: Kernel, rule: Rule) -> int | None:
    """How often it refused; -1 where nothing counts, None where the count cannot be read."""
    if not rule.counter:
        return -1
    try:
        return min((kernel.space.read_u64(rule.counter) - rule.base) & MASK64, (1 << 63) - 1)
    except MemoryFault:
        return None


def _mask(values: Iterable[bool]) -> Mask:
    return np.fromiter(values, dtype=np.bool_)


def _numbers(values: Iterable[int]) -> I64:
    return np.fromiter(values, dtype=np.int64)
