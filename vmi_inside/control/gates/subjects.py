"""Which tasks a rule is for at this moment: what `judge` asks of one task, asked of all of them from outside.

Knows the same members as `judge`, and must give the same answer. What a rule refuses is left to others.
"""

from __future__ import annotations

import numpy as np

from vmi_inside.control.gates.layout import Rule, Scope
from vmi_inside.control.gates.offsets import Offsets
from vmi_inside.kernel import Kernel
from vmi_inside.linux.processes.cgroups import DEPTH_LIMIT
from vmi_inside.linux.tasks import PF_KTHREAD
from vmi_inside.structs import Structs
from vmi_inside.types import Mask


def subjects(kernel: Kernel, offsets: Offsets, mark: int, rule: Rule, tasks: Structs) -> Mask:
    """Which (n,) of these tasks a rule is for; `mark` is the offset of the spare word in task_struct."""
    tasks.fetch("tgid", "flags")
    if rule.scope == Scope.PROCESS:
        leaders = tasks.follow("group_leader", kernel.struct("task_struct"))
        born = leaders.unsigned("start_boottime") == np.uint64(rule.first)
        process: Mask = born & (tasks.number("tgid") == rule.number) & ~tasks.fault
        return process
    if rule.scope == Scope.MARKED:
        raw, ok = kernel.space.gather(tasks.address + np.uint64(mark), 4)
        marked: Mask = (raw.view("<u4")[:, 0] & np.uint32(rule.number) != 0) & ok
        return marked
    user: Mask = (tasks.unsigned("flags") & np.uint64(PF_KTHREAD) == 0) & ~tasks.fault
    if rule.scope == Scope.USER:
        creds = tasks.follow("cred", kernel.struct("cred")).fetch("uid.val", "euid.val")
        mine: Mask = (creds.unsigned("uid.val") == rule.number) | (creds.unsigned("euid.val") == rule.number)
        return mine & user & ~creds.fault
    if not 0 <= rule.number <= DEPTH_LIMIT:
        return np.zeros(len(tasks), dtype=np.bool_)
    sets = tasks.follow("cgroups", kernel.struct("css_set"))
    groups = sets.follow("dfl_cgrp", kernel.struct("cgroup")).fetch("level")
    raw, ok = kernel.space.gather(groups.address + np.uint64(offsets.ancestors + 8 * rule.number), 8)
    above: Mask = raw.view("<u8")[:, 0] == np.uint64(rule.first)
    if offsets.ancestor_pointers and above.any():
        (serial,) = kernel.structs("cgroup", [rule.first]).unsigned("self.serial_nr").tolist()
        above &= serial == rule.second
    return above & ok & (groups.number("level") >= rule.number) & user & ~groups.fault
