"""The ways to the tasks of a kernel that do not go through the PID table.

Knows `init_task.tasks`, `signal_struct.thread_head`, `task_struct.children` (include/linux/sched.h), the run queues
(kernel/sched/sched.h), the css_sets (kernel/cgroup/cgroup.c) and the cache of task_structs (kernel/fork.c). Which of
them should show which task is `hidden_tasks`' knowledge.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.errors import ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux.integrity.lists import followed
from vmi_inside.linux.integrity.slabs import slab_objects
from vmi_inside.linux.integrity.trees import tree_nodes
from vmi_inside.linux.integrity.views import View
from vmi_inside.profile.ctypes import CType
from vmi_inside.structs import Structs
from vmi_inside.types import U64, distinct

_CSS_SET_BUCKETS: Final = 128  # 1 << CSS_SET_HASH_BITS
#: Control groups that queue on each other are not nested deeper.
_NESTING: Final = 64


def task_list(kernel: Kernel, known: U64) -> View:
    """The list of all processes, which begins in `init_task`. `known` are tasks, here and below: any but it helps."""
    init = kernel.object("task_struct", "init_task")
    return _listed(init, "tasks", init.type, "tasks", "task list", known)


def threads(tasks: Structs) -> View:
    """The threads of the processes that these tasks belong to."""
    signal = tasks.type.member("signal").type.target
    holders = Structs(tasks.space, signal, distinct(tasks.pointer("signal")))
    return _listed(holders, "thread_head", tasks.type, "thread_node", "threads' lists", tasks.address)


def children(tasks: Structs) -> View:
    """The children of these tasks."""
    return _listed(tasks, "children", tasks.type, "sibling", "children's lists", tasks.address)


def _listed(holders: Structs, head: str, ctype: CType, link: str, name: str, known: U64) -> View:
    """The structs on the lists that begin in a member of each holder."""
    offset = np.uint64(ctype.member(link).offset)
    at = holders.at(head)
    found = followed(holders.space, at[at != 0], known + offset, name)
    return View(name, found.address - offset, found.faults)


def control_groups(kernel: Kernel, known: U64) -> View:
    """The tasks of all css_sets: those that live, move or died lately. Raises `NoSymbol`, `NoMember`."""
    ctype, task = kernel.struct("css_set"), kernel.struct("task_struct")
    table = np.uint64(kernel.symbol("css_set_table")) + 8 * np.arange(_CSS_SET_BUCKETS, dtype=np.uint64)
    raw, _ = kernel.space.gather(table, 8)
    name = "control groups"
    hashed = walk.chains(kernel.space, raw.view("<u8")[:, 0], what=name)
    sets = kernel.structs(ctype, hashed.address - np.uint64(ctype.member("hlist").offset))
    views = [
        _listed(sets, member, task, "cg_list", name, known)
        for member in ("tasks", "mg_tasks", "dying_tasks")
        if ctype.has(member)
    ]
    faults = dict.fromkeys((*hashed.faults, *(fault for view in views for fault in view.faults)))
    return View(name, np.concatenate([view.seen for view in views]), tuple(faults))


def idle_tasks(kernel: Kernel) -> U64:
    """The tasks that no list has: one for each CPU."""
    init = np.array([kernel.profile.find_symbol("init_task") or 0], dtype=np.uint64)
    try:
        idle = _queues(kernel).pointer("idle")
    except ProfileError:
        return init
    every: U64 = distinct(np.concatenate((init, idle)))
    return every


def _queues(kernel: Kernel) -> Structs:
    return kernel.structs("rq", np.uint64(kernel.symbol("runqueues")) + kernel.percpu_offset)


def run_queues(kernel: Kernel) -> View:
    """What runs, or waits to run, on each CPU, the idle tasks left out. Raises `NoSymbol`, `NoMember`."""
    queues = _queues(kernel).fetch("curr", "stop")
    task = kernel.struct("task_struct")
    found = [queues.pointer(name) for name in ("curr", "stop")]
    faults = ["run queues: one could not be read"] if queues.fault.any() else []
    fair, more = _fair(kernel, queues, task)
    deadline, and_more = _deadline(kernel, queues, task)
    realtime = queues.inside("rt").at("active.queue")
    lists = queues.inside("rt").type.member("active.queue").type.count
    heads = (realtime[:, None] + 16 * np.arange(lists, dtype=np.uint64)[None, :]).ravel()
    raw, ok = kernel.space.gather(heads, 8)
    waiting = walk.chains(kernel.space, raw.view("<u8")[ok, 0], end=heads[ok], what="real-time run queue")
    found += [fair, deadline, waiting.address - np.uint64(task.member("rt.run_list").offset)]
    every = np.setdiff1d(np.concatenate(found), idle_tasks(kernel))
    return View("run queues", every[every != 0], (*faults, *more, *and_more, *waiting.faults))


def _fair(kernel: Kernel, queues: Structs, task: CType) -> tuple[U64, tuple[str, ...]]:
    """The tasks in the trees of the fair class, those of groups within groups too."""
    entity = kernel.struct("sched_entity")
    here = queues.inside("cfs")
    found: list[U64] = [np.empty(0, dtype=np.uint64)]
    faults: dict[str, None] = {}
    seen = np.empty(0, dtype=np.uint64)
    for _ in range(_NESTING):
        here.fetch("tasks_timeline.rb_root.rb_node", "curr")
        seen = np.union1d(seen, here.address)
        nodes = tree_nodes(kernel, here.pointer("tasks_timeline.rb_root.rb_node"), "fair run queue")
        faults.update(dict.fromkeys(nodes.faults))
        address = np.concatenate((nodes.address - np.uint64(entity.member("run_node").offset), here.pointer("curr")))
        entities = kernel.structs(entity, distinct(address[address != 0]))
        group = entities.pointer("my_q") if entity.has("my_q") else np.zeros(len(entities), dtype=np.uint64)
        found.append(entities.address[(group == 0) & ~entities.fault])
        within = np.setdiff1d(group, np.append(seen, np.uint64(0)))
        if not len(within):
            break
        here = Structs(kernel.space, here.type, within)
    return np.concatenate(found) - np.uint64(task.member("se").offset), tuple(faults)


def _deadline(kernel: Kernel, queues: Structs, task: CType) -> tuple[U64, tuple[str, ...]]:
    """The tasks in the trees of the deadline class; servers that stand for another class are none."""
    entity = kernel.struct("sched_dl_entity")
    roots = queues.inside("dl").pointer("root.rb_root.rb_node")
    nodes = tree_nodes(kernel, roots, "deadline run queue")
    entities = kernel.structs(entity, nodes.address - np.uint64(entity.member("rb_node").offset))
    server = entities.number("dl_server") != 0 if entity.has("dl_server") else np.zeros(len(entities), dtype=np.bool_)
    return entities.address[~server] - np.uint64(task.member("dl").offset), nodes.faults


def slab(kernel: Kernel) -> View:
    """All places for a task_struct that there are in memory, free ones too. Raises `NoSymbol`, `NoMember`."""
    found, faults = slab_objects(kernel, kernel.pointer("task_struct_cachep"))
    return View("slab", found, faults)
