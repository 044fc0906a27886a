"""What `LinuxGuest` leaves out of tasks and modules: every list, tree, queue and cache that they hang in."""

from __future__ import annotations

from tests.synthetic.guest import DIRECT
from tests.synthetic.layout import Layout
from tests.synthetic.linux import LinuxGuest, Task
from tests.synthetic.structs import NEWER

VMEMMAP = 0xFFFF_EA00_0000_0000
_TASK = """
    usage 0x28 refcount
    stack 0x30 *void
    rt 0x1c0 sched_rt_entity
    dl 0x200 sched_dl_entity
    tasks 0x800 list_head
    children 0x990 list_head
    sibling 0x9a0 list_head
    group_leader 0x9b0 *task_struct
    thread_pid 0x9b8 *pid
    thread_node 0xa58 list_head
    cred 0xb10 *cred
    cg_list 0xc28 list_head
"""
_LISTS = """
signal_struct 1100
    nr_threads 8 i32
    thread_head 0x10 list_head
sched_entity 256
    run_node 0x10 rb_node
    my_q 0x80 *cfs_rq
    sum_exec_runtime 0x40 u64
sched_rt_entity 48
    run_list 0 list_head
sched_dl_entity 224
    rb_node 0 rb_node
rb_node 24
    rb_right 8 *rb_node
    rb_left 16 *rb_node
rb_root 8
    rb_node 0 *rb_node
rb_root_cached 16
    rb_root 0 rb_root
cfs_rq 64
    tasks_timeline 0 rb_root_cached
    curr 24 *sched_entity
prio_array 1616
    queue 16 list_head[100]
rt_rq 1640
    active 0 prio_array
dl_rq 64
    root 0 rb_root_cached
rq 3072
    curr 0 *task_struct
    idle 8 *task_struct
    stop 16 *task_struct
    cfs 0x80 cfs_rq
    rt 0x100 rt_rq
    dl 0x900 dl_rq
css_set 500
    tasks 0x20 list_head
    mg_tasks 0x30 list_head
    dying_tasks 0x40 list_head
    hlist 0x60 hlist_node
    dfl_cgrp 0x88 *cgroup
order_objects 4
    x 0 u32
kmem_cache 256
    size 24 u32
    oo 56 order_objects
    min 60 order_objects
slab 64
    slab_cache 8 *kmem_cache
    objects 0x20 u32:15+16
page 64
    flags 0 u64
"""
_PERCPU = 0x8000  # of runqueues


def _with_lists(source: str) -> str:
    task = source[source.index("task_struct 9600") :].split("\n")
    end = next(at for at, line in enumerate(task[1:], 1) if not line.startswith(" "))
    return "\n".join(task[:end]) + _TASK


class TasksGuest(LinuxGuest):
    """A guest whose tasks hang in everything that a kernel's do. Call `link` instead of `finish`."""

    def __init__(self, levels: int = 4, *, seed: int = 1) -> None:
        super().__init__(levels, seed=seed)
        more = (_with_lists(NEWER), _LISTS)
        names, whole = Layout(*more).structs, Layout(NEWER, *more)
        self.profile.layout.structs.update({name: whole.structs[name] for name in names})
        self.init_task = self.global_("init_task", self.size("task_struct"))
        self.css_table = self.global_("css_set_table", 8 * 128)
        self.all_css = self.new("css_set")
        self.profile.symbols["runqueues"] = _PERCPU
        self.queues = [base - 0x1000 + _PERCPU for base in self.percpu]
        self.cache = self.new("kmem_cache", size=9600, oo__x=3 << 16 | 3, min__x=3 << 16 | 3)
        self.word(self.global_("task_struct_cachep", 8), self.cache)
        self.word(self.global_("vmemmap_base", 8), VMEMMAP)
        self.word(self.global_("page_offset_base", 8), DIRECT)
        self._frames: dict[int, int] = {}

    def ring(self, head: int, nodes: list[int]) -> None:
        """A circular list."""
        for before, here in zip([head, *nodes], [*nodes, head], strict=True):
            self.word(before, here)
            self.word(here + 8, before)

    def at(self, task: int, member: str) -> int:
        return task + self.offset("task_struct", member)

    def link(self) -> TasksGuest:
        """Put every task where it belongs."""
        self.finish()
        leaders = {pid: each for pid, each in self.tasks.items() if self._tgid(each) == pid}
        self.put("task_struct", self.init_task, usage__refs=1, stack=HEAP_LIKE, group_leader=self.init_task)
        for pid, each in self.tasks.items():
            leader = leaders[self._tgid(each)].task
            self.put("task_struct", each.task, usage__refs=2, stack=HEAP_LIKE, group_leader=leader, thread_pid=each.pid)
            if pid in (1, 2):
                self.put("task_struct", each.task, real_parent=self.init_task)
        self.ring(self.at(self.init_task, "tasks"), [self.at(each.task, "tasks") for each in leaders.values()])
        for leader in leaders.values():
            mine = [each.task for each in self.tasks.values() if each.signal == leader.signal]
            head = leader.signal + self.offset("signal_struct", "thread_head")
            self.ring(head, [self.at(task, "thread_node") for task in mine])
        for parent in (self.init_task, *(each.task for each in self.tasks.values())):
            below = [each.task for each in leaders.values() if self._parent(each) == parent]
            self.ring(self.at(parent, "children"), [self.at(task, "sibling") for task in below])
        self.word(self.css_table + 8 * 5, self.all_css + self.offset("css_set", "hlist"))
        everyone = [self.at(each.task, "cg_list") for each in self.tasks.values()]
        for member, nodes in (("tasks", everyone), ("mg_tasks", []), ("dying_tasks", [])):
            self.ring(self.all_css + self.offset("css_set", member), nodes)
        for queue in self.queues:
            self.put("rq", queue, curr=self.init_task, idle=self.init_task)
            heads = queue + self.offset("rq", "rt") + self.offset("rt_rq", "active.queue")
            for priority in range(100):
                self.ring(heads + 16 * priority, [])
        for slab in {(each.task - DIRECT) & ~0x7FFF for each in self.tasks.values()}:
            self.slab(slab, 3)
        self.memory.reset()
        return self

    def slab(self, pa: int, objects: int) -> int:
        """Say that a slab of tasks lies at this physical address; the address of its `struct slab`."""
        at = VMEMMAP + (pa >> 12) * 64
        page = at & ~4095
        if page not in self._where:
            self._where[page] = self.ram.frames()
            self.tables.map(page, self._where[page])
        self.put("slab", at, slab_cache=self.cache)
        self.write(at + 0x20, (objects << 16).to_bytes(4, "little"))
        return at

    def run(self, task: int, cpu: int = 0) -> None:
        """Make a task the root of a CPU's fair run queue."""
        entity = task + self.offset("task_struct", "se")
        self.poke(
            "rq",
            self.queues[cpu],
            "cfs.tasks_timeline.rb_root.rb_node",
            entity + self.offset("sched_entity", "run_node"),
        )

    def unlink(self, node: int) -> None:
        after, before = self.space.read_u64(node), self.space.read_u64(node + 8)
        self.word(before, after)
        self.word(after + 8, before)

    def _tgid(self, each: Task) -> int:
        return self.space.read_u64(self.at(each.task, "pid")) >> 32

    def _parent(self, each: Task) -> int:
        return self.space.read_u64(self.at(each.task, "real_parent"))


HEAP_LIKE = 0xFFFF_C900_0000_4000
