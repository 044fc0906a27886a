"""Hidden tasks in made-up guests: each view alone lies, and lists that run in circles or nowhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.synthetic.guest import DIRECT, HOLE, NOWHERE
from tests.synthetic.linux import PF_KTHREAD, Task
from tests.synthetic.lists import TasksGuest
from vmi_inside.linux.integrity import Findings, check


def populate() -> tuple[TasksGuest, dict[int, Task]]:
    guest = TasksGuest()
    tasks = {1: guest.task(1, "init"), 2: guest.task(2, "kthreadd", flags=PF_KTHREAD)}
    tasks[10] = guest.task(10, "server", 1)
    tasks[11] = guest.task(11, "server", 1, leader=10)
    tasks[20] = guest.task(20, "child", 10)
    tasks[70] = guest.task(70, "kworker", 2, flags=PF_KTHREAD)
    guest.link()
    return guest, tasks


def found(guest: TasksGuest) -> Findings:
    return check(guest.kernel, ["processes"], live=False)


def test_an_honest_guest() -> None:
    guest, _ = populate()
    assert found(guest).to_dicts() == []


@pytest.mark.parametrize(
    ("link", "view", "severity"),
    [
        ("tasks", "task list", "critical"),
        ("thread_node", "threads' lists", "critical"),
        ("sibling", "children's lists", "high"),
        ("cg_list", "control groups", "high"),
    ],
)
def test_each_view_alone_may_lie(link: str, view: str, severity: str) -> None:
    guest, tasks = populate()
    guest.unlink(guest.at(tasks[20].task, link))
    (row,) = found(guest)
    assert (row.check, row.severity, row.subject, row.seen) == (
        "processes",
        severity,
        "pid 20 (child)",
        f"not in {view}",
    )
    assert row.address == tasks[20].task


def test_a_thread_is_hidden() -> None:
    guest, tasks = populate()
    guest.unlink(guest.at(tasks[11].task, "thread_node"))
    (row,) = found(guest)
    assert row.subject == "pid 11 (server) thread of pid 10"


def test_what_only_the_run_queue_shows() -> None:
    """It runs: that it must be seen by."""
    guest, _ = populate()
    ghost = guest.new("task_struct", pid=666, tgid=666, comm=b"ghost", exit_state=16)
    guest.run(ghost, cpu=1)
    (row,) = found(guest)
    assert (row.subject, row.severity, row.detail) == ("pid 666 (ghost)", "critical", "seen in run queues")


def test_what_only_the_slab_shows() -> None:
    guest, tasks = populate()
    members = {"usage__refs": 1, "stack": DIRECT, "signal": tasks[20].signal, "thread_pid": tasks[20].pid}
    places = {}
    for name, values in {
        "hidden": members,
        "freed": {**members, "usage__refs": 0},
        "failed fork": {**members, "stack": 0},
        "reaped": {**members, "thread_pid": 0, "exit_state": 16},
    }.items():
        places[name] = guest.new("task_struct", pid=500, tgid=500, comm=name.encode(), **values)
        guest.slab((places[name] - DIRECT) & ~0x7FFF, 3)
    rows = found(guest)
    assert [row.subject for row in rows] == ["pid 500 (hidden)"]
    assert rows[0].detail == "seen in slab"


Lie = Callable[[TasksGuest, dict[int, Task]], None]


def circle(link: str) -> Lie:
    """A list whose node leads to itself."""

    def plant(guest: TasksGuest, tasks: dict[int, Task]) -> None:
        node = guest.at(tasks[10].task, link)
        guest.word(node, node)

    return plant


def group_circle(guest: TasksGuest, tasks: dict[int, Task]) -> None:
    node = guest.all_css + guest.offset("css_set", "hlist")
    guest.word(node, node)


def tree_circle(guest: TasksGuest, tasks: dict[int, Task]) -> None:
    guest.run(tasks[10].task)
    node = guest.at(tasks[10].task, "se") + guest.offset("sched_entity", "run_node")
    guest.word(node + 8, node)


def real_time_circle(guest: TasksGuest, tasks: dict[int, Task]) -> None:
    head = guest.queues[0] + guest.offset("rq", "rt") + guest.offset("rt_rq", "active.queue") + 16 * 7
    node = guest.at(tasks[10].task, "rt.run_list")
    guest.word(head, node)
    guest.word(node, node)


@pytest.mark.parametrize(
    ("lie", "view"),
    [
        (circle("tasks"), "task list"),
        (circle("thread_node"), "threads' lists"),
        (circle("sibling"), "children's lists"),
        (circle("cg_list"), "control groups"),
        (group_circle, "control groups"),
        (tree_circle, "run queues"),
        (real_time_circle, "run queues"),
    ],
    ids=["task list", "threads", "children", "cgroup", "css_set table", "fair queue", "real-time queue"],
)
def test_lists_in_circles_end_and_are_told(lie: Lie, view: str) -> None:
    guest, tasks = populate()
    lie(guest, tasks)
    damaged = [row for row in found(guest).alarms if row.subject == view]
    assert damaged, found(guest).to_dicts()
    assert all(row.severity == "medium" and row.seen for row in damaged)


@pytest.mark.parametrize("wild", [NOWHERE, HOLE, (1 << 64) - 8, 8, 0x1234_5678_9ABC_DEF0, 1])
def test_wild_pointers_are_told_and_end(wild: int) -> None:
    guest, tasks = populate()
    for link in ("tasks", "thread_node", "sibling", "cg_list"):
        guest.word(guest.at(tasks[20].task, link), wild)
    guest.give(tasks[70], signal=wild, group_leader=wild, real_parent=wild, thread_pid=wild)
    guest.run(wild)
    rows = found(guest)
    assert len(rows.alarms) > 0
    assert len(rows) < 100


def test_caches_that_lie() -> None:
    guest, tasks = populate()
    slab = guest.slab((tasks[20].task - DIRECT) & ~0x7FFF, (1 << 15) - 1)
    assert slab
    assert found(guest).to_dicts() == []
    for members in ({"size": 1, "oo__x": (1 << 32) - 1, "min__x": (1 << 32) - 1}, {"size": 0}):
        guest.put("kmem_cache", guest.cache, **members)
        (row,) = found(guest)
        assert (row.subject, row.severity) == ("slab", "medium")
        assert row.seen == "slabs: the cache could not be read or makes no sense"
    guest.word(guest.profile.symbols["vmemmap_base"], (1 << 64) - 4096)
    guest.word(guest.profile.symbols["page_offset_base"], NOWHERE)
    guest.put("kmem_cache", guest.cache, size=9600, oo__x=3 << 16 | 3, min__x=3 << 16 | 3)
    assert found(guest).to_dicts() == []


def test_what_passes_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that comes or goes while the lists are read is no lie: it is looked for again."""
    guest, tasks = populate()
    node = guest.at(tasks[20].task, "tasks")
    after, before = guest.space.read_u64(node), guest.space.read_u64(node + 8)
    guest.unlink(node)
    guest.unlink(guest.at(tasks[70].task, "cg_list"))

    def heal(_: float) -> None:
        guest.word(before, node)
        guest.word(after + 8, node)

    monkeypatch.setattr("vmi_inside.linux.integrity.checks.time.sleep", heal)
    assert {row.subject for row in found(guest)} == {"pid 20 (child)", "pid 70 (kworker)"}
    assert [row.subject for row in check(guest.kernel, ["processes"])] == ["pid 70 (kworker)"]


def test_without_a_view_the_others_go_on() -> None:
    guest, tasks = populate()
    for symbol in ("css_set_table", "task_struct_cachep", "runqueues"):
        del guest.profile.symbols[symbol]
    rows = found(guest)
    assert {(row.subject, row.severity) for row in rows} == {
        ("control groups", "info"), ("slab", "info"), ("run queues", "info"),
    }  # fmt: skip
    guest.unlink(guest.at(tasks[20].task, "tasks"))
    assert [row.subject for row in found(guest).alarms] == ["pid 20 (child)"]
