"""Whom a rule is for: a process, a process with its descendants, a control group, a user; found in the guest.

Knows what makes each of them the same one later on: a process by its pid and the nanosecond of its start, a group by
its serial number or its id. Which rules there are, and how they get into the guest, is left to `gates`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.control.gates.layout import Rule, Scope
from vmi_inside.control.gates.offsets import Offsets
from vmi_inside.control.places import find_process, started
from vmi_inside.errors import ControlError, NoMember, NoSymbol, Unsafe
from vmi_inside.kernel import Kernel
from vmi_inside.linux.processes.cgroups import DEPTH_LIMIT, node_paths
from vmi_inside.linux.tasks import PF_KTHREAD, PIDTYPE_PID, pids
from vmi_inside.structs import Structs
from vmi_inside.types import Mask

_CHILDREN_LIMIT: Final = 1 << 16
#: Processes from parent to child that are followed.
_GENERATIONS: Final = 1 << 12


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a rule is for, as it was asked: exactly one of `pid`, `cgroup`, `uid`."""

    pid: int | None = None
    children: bool = False
    cgroup: str | None = None
    uid: int | None = None

    def __post_init__(self) -> None:
        if sum(one is not None for one in (self.pid, self.cgroup, self.uid)) != 1:
            raise ControlError("say for whom: one of pid, cgroup, uid")
        if self.children and self.pid is None:
            raise ControlError("children are a process's: say its pid")
        if self.uid is not None and not 0 <= self.uid < (1 << 32) - 1:
            raise ControlError(f"{self.uid} is no uid")

    def __str__(self) -> str:
        if self.pid is not None:
            return f"pid {self.pid}{' and its children' if self.children else ''}"
        return f"cgroup {self.cgroup}" if self.cgroup is not None else f"uid {self.uid}"


@dataclass(frozen=True, slots=True)
class Found:
    """A subject as it is in the guest: what a rule says of it. A process's `task` is its struct; 0 for others."""

    scope: Scope
    number: int
    first: int = 0
    second: int = 0
    pid: int = 0
    name: str = ""
    task: int = 0


def find(kernel: Kernel, offsets: Offsets, subject: Subject, *, force: bool = False) -> Found:
    """Look the subject up. Raises `ControlError` when it is not there, `Unsafe` for what only `force` is to touch."""
    if subject.pid is not None:
        return _process(kernel, subject, force)
    if subject.cgroup is not None:
        return _group(kernel, offsets, subject.cgroup, force)
    if subject.uid == 0 and not force:
        raise Unsafe("uid 0 is root's, process 1 among them; use force (--force) when this is meant")
    assert subject.uid is not None
    return Found(Scope.USER, subject.uid)


def same(rule: Rule, subject: Subject, found: Found | None) -> bool:
    """Whether a rule is for that subject; of a process with or without its children.

    Without `found`, because the subject is no more, what the rule remembers of it decides.
    """
    if subject.pid is not None:
        if rule.scope not in (Scope.PROCESS, Scope.MARKED) or rule.pid != subject.pid:
            return False
        return found is None or rule.first == found.first
    if subject.uid is not None:
        return rule.scope == Scope.USER and rule.number == subject.uid
    return rule.scope == Scope.CGROUP and found is not None and rule.first == found.first


def _process(kernel: Kernel, subject: Subject, force: bool) -> Found:
    pid = subject.pid
    assert pid is not None
    with kernel.operation():
        try:
            task = find_process(kernel, pid)
        except ControlError:
            thread = find_process(kernel, pid, PIDTYPE_PID)
            leader = int(thread.number("tgid")[0])
            raise ControlError(f"{pid} is a thread of process {leader}; say --pid {leader}") from None
        task.fetch("flags", "comm", "tgid")
        if task.fault.any() or int(task.number("tgid")[0]) != pid:
            raise ControlError(f"process {pid} could not be read; try again")
        name = task.text("comm")[0]
        if not force and pid == 1:
            raise Unsafe(f"process 1 ({name}) is what the guest hangs on; use force (--force) when this is meant")
        if not force and int(task.number("flags")[0]) & PF_KTHREAD:
            raise Unsafe(f"process {pid} ({name}) is a kernel thread; use force (--force) when this is meant")
        born, address = started(task), int(task.address[0])
    scope = Scope.MARKED if subject.children else Scope.PROCESS
    return Found(scope, 0 if subject.children else pid, born, 0, pid, name, address)


def _group(kernel: Kernel, offsets: Offsets, path: str, force: bool) -> Found:
    parts = [part for part in path.split("/") if part]
    if not parts and not force:
        raise Unsafe("every process is in the cgroup /; use force (--force) when this is meant")
    with kernel.operation():
        group = _descend(kernel, parts, path)
        group.fetch("level", "self.serial_nr")
        level = int(group.number("level")[0])
        if group.fault.any() or not 0 <= level <= DEPTH_LIMIT:
            raise ControlError(f"cgroup {path} could not be read; try again")
        address = int(group.address[0])
        first = kernel.space.read_u64(address + offsets.ancestors + 8 * level)
        serial = int(group.unsigned("self.serial_nr")[0])
    # Where ancestors are known by their ids, the second word is free to say where the group is.
    return Found(
        Scope.CGROUP, level, first, serial if offsets.ancestor_pointers else address, name=parts[-1] if parts else "/"
    )


def _descend(kernel: Kernel, parts: list[str], path: str) -> Structs:
    """The `struct cgroup` of that path in the unified hierarchy, one row."""
    try:
        root = kernel.object("cgroup_root", "cgrp_dfl_root")
        group = root.inside("cgrp")
        ctype = group.type
        link = ctype.member("self.sibling").offset
        head, name = ctype.member("self.children").offset, ("kn",)
    except (NoMember, NoSymbol) as error:
        raise ControlError(f"this kernel has no unified hierarchy of cgroups: {error}") from None
    for depth, part in enumerate(parts):
        listed = walk.serial(kernel.space, int(group.address[0]) + head, what="cgroups", limit=_CHILDREN_LIMIT)
        # Children are on the list with their `self`, which a cgroup begins with or not.
        inside = kernel.structs(ctype, listed.address - np.uint64(link))
        names, _ = kernel.strings(inside.follow(name).pointer("name"))
        row = next((at for at, one in enumerate(names) if one == part), None)
        if row is None:
            raise ControlError(f"there is no cgroup /{'/'.join(parts[: depth + 1])} in the guest's unified hierarchy")
        group = inside.select(np.array([row]))
    return group


def group_path(kernel: Kernel, rule: Rule, offsets: Offsets) -> str:
    """The path of a rule's group; empty when it is no more."""
    address = rule.first if offsets.ancestor_pointers else rule.second
    group = kernel.structs("cgroup", [address]).fetch("level", "self.serial_nr", "self.flags")
    online = kernel.profile.enumerator("CSS_ONLINE")
    if group.fault.any() or int(group.number("level")[0]) != rule.number:
        return ""
    if online is not None and not int(group.unsigned("self.flags")[0]) & online:
        return ""  # removed; its memory is not used anew yet
    if offsets.ancestor_pointers:
        same_one = int(group.unsigned("self.serial_nr")[0]) == rule.second
    else:
        raw, ok = kernel.space.gather(group.address + np.uint64(offsets.ancestors + 8 * rule.number), 8)
        same_one = bool(ok[0]) and int(raw.view("<u8")[0, 0]) == rule.first
    return node_paths(kernel, group.follow("kn"))[0][0] if same_one else ""


def tasks(kernel: Kernel) -> Structs:
    """All threads of all processes, with what `descendants` needs."""
    with kernel.operation():
        _, _, rows = pids(kernel).tasks(kernel, PIDTYPE_PID)
        return rows.fetch("pid", "tgid", "real_parent", "start_boottime", "comm")


def descendants(rows: Structs, pid: int, born: int, marked: Mask) -> Mask:
    """Which tasks are a process's threads, its descendants, or their threads, by parents as they are now.

    `marked` are known to be; so their children are, too, wherever a parent ended and its children were given away.
    """
    if not len(rows):
        return marked
    tgid, parent = rows.number("tgid"), rows.pointer("real_parent")
    order = np.argsort(rows.address)
    above = order[np.minimum(np.searchsorted(rows.address[order], parent), len(order) - 1)]
    known = rows.address[above] == parent
    mine: Mask = marked | ((tgid == pid) & (rows.unsigned("start_boottime") == np.uint64(born)))
    for _ in range(_GENERATIONS):
        more = (known & mine[above]) | np.isin(tgid, tgid[mine])
        if not (more & ~mine).any():
            break
        mine = mine | more
    return mine
