from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.synthetic import LinuxGuest
from tests.synthetic.guest import BOOTED, HOLE, NOWHERE
from tests.synthetic.linux import PF_KTHREAD, PF_WQ_WORKER, STACK, Task
from vmi_inside.linux.processes.processes import Processes, processes

KINDS = [
    pytest.param(
        {"levels": levels, "older": older, "scattered": scattered}, id=f"{levels}{'-old' * older}{'-4K' * scattered}"
    )
    for levels, older, scattered in (
        (4, False, False),
        (4, False, True),
        (4, True, True),
        (5, False, True),
        (5, True, False),
    )
]


def row(table: Processes, pid: int) -> dict[str, Any]:
    found = [row for row in table.to_dicts() if row["pid"] == pid]
    assert len(found) == 1, f"pid {pid}: {found}"
    return found[0]


def test_no_process_at_all_is_told() -> None:
    """The root of the tree is torn or overwritten: what looks like an empty guest is none."""
    guest = LinuxGuest()
    guest.task(1, "init")
    guest.finish()
    for lie in (0, 0x0D0A_000D):
        guest.poke("pid_namespace", guest.init_pid_ns, "idr.idr_rt.xa_head", lie)
        table = processes(guest.kernel)
        assert (len(table), len(table.notes)) == (0, 1)
        assert "empty" in table.notes[0]


def populate(guest: LinuxGuest) -> LinuxGuest:
    """init, kthreadd and a worker, a daemon with a thread in a container, a zombie, an idle kernel thread."""
    init = guest.task(1, "init", start_boottime=2_500_000_000, utime=30_000_000, stime=10_000_000)
    exe = guest.file("sbin", "init")
    guest.memory_of(init, b"/sbin/init\0--quiet\0", exe=exe)
    nsproxy = guest.new("nsproxy", net_ns=guest.init_net)
    root = guest.css_set(guest.root_cgroup)
    guest.give(init, cgroups=root, nsproxy=nsproxy, rt_priority=40, policy=1, cpu=1, thread_info__cpu=1)
    vfsmount = guest.root_mount + guest.offset("mount", "mnt")
    here = {"root__mnt": vfsmount, "root__dentry": guest.root_dentry, "pwd__mnt": vfsmount}
    guest.give(init, fs=guest.new("fs_struct", **here, pwd__dentry=guest.dentry(guest.root_dentry, "home")))
    guest.put("signal_struct", init.signal, tty=guest.new("tty_struct", name=b"pts7"), oom_score_adj=-1000)
    for kind in (2, 3):
        guest.poke("signal_struct", init.signal, f"pids[{kind}]", init.pid)
    guest.put("signal_struct", init.signal, utime=1_000_000_000, stime=0, sum_sched_runtime=2_000_000_000)
    guest.poke("task_struct", init.task, "se.sum_exec_runtime", 60_000_000)

    guest.give(guest.task(2, "kthreadd", flags=PF_KTHREAD), mm=guest.new("mm_struct", total_vm=9))
    worker = guest.task(3, "kworker/0:1", 2, flags=PF_KTHREAD | PF_WQ_WORKER, state=0x402)
    desc = guest.new("worker", pool=guest.alloc(8), desc=b"events", current_work=guest.alloc(8))
    long_name = guest.string("kworker/with_a_name_longer_than_comm")
    kthread = guest.new("kthread", data=desc)
    guest.put("kthread", kthread, full_name=long_name)
    guest.give(worker, worker_private=kthread, set_child_tid=kthread)

    inner = guest.new("pid_namespace", ns__inum=0xF0001234)
    net = guest.net(0xF0005678)
    mount, at = guest.mount(guest.root_mount, guest.dentry(guest.root_dentry, "srv"))
    daemon = guest.task(
        70000, "nginx: worker", 1, uid=33, state=0, numbers=((7, inner),), static_prio=115, start_boottime=9_900_000_000
    )
    guest.put("cred", daemon.cred, uid__val=33, euid__val=1, gid__val=34, egid__val=2, suid__val=3, sgid__val=4)
    guest.memory_of(
        daemon,
        "nginx: größe\0".encode() + b"\xff\0",
        exe=guest.file("bin", "nginx", mount=mount, root=at, deleted=True),
    )
    slice_ = guest.cgroup(guest.root_cgroup, "system.slice")
    guest.give(daemon, cgroups=guest.css_set(guest.cgroup(slice_, "nginx.service")))
    guest.give(daemon, nsproxy=guest.new("nsproxy", net_ns=net))
    guest.put("signal_struct", daemon.signal, nr_threads=2)
    guest.task(70001, "nginx: thread", leader=70000, utime=7_000_000)
    guest.poke("task_struct", guest.tasks[70001].task, "se.sum_exec_runtime", 7_000_000)

    guest.task(100, "dead", 70000, state=0, exit_state=0x20, uid=4_000_000_000)
    return guest.finish()


@pytest.mark.parametrize("kind", KINDS)
def test_every_column(kind: dict[str, Any]) -> None:
    guest = populate(LinuxGuest(**kind))
    table = processes(guest.kernel)
    assert table.notes == ()
    assert table.pid.tolist() == [1, 2, 3, 100, 70000], "threads have no row of their own"
    assert set(table.fault) == {""}
    task = guest.tasks
    assert row(table, 1) == {
        "pid": 1, "parent": 1, "name": "init", "path": "/sbin/init", "cmdline": "/sbin/init --quiet", "state": "S",
        "uid": 0, "gid": 0, "euid": 0, "egid": 0, "suid": 0, "sgid": 0, "threads": 1, "nice": 0,
        "start_time": BOOTED + 2, "user_time": 2060 * 1030 // 1040, "system_time": 2060 * 10 // 1040,
        "resident_size": 4096 * (300 if kind["older"] else 303), "total_size": 300 * 4096, "cgroup_path": "/",
        "pid_namespace": 0xEFFFFFFC, "net_namespace": 0xF0000001,
        "cwd": "/home", "root": "/", "on_disk": 1, "tty": "pts/7", "pgroup": 1,
        "session": 1, "container": "", "unit": "", "oom_score_adj": -1000,
        "policy": "fifo", "rt_priority": 40, "processor": 1, "wchan": "",
        "kernel_thread": False, "address": task[1].task,
        "fault": "",
    }  # fmt: skip
    assert row(table, 70000) == {
        "pid": 70000, "parent": 1, "name": "nginx: worker", "path": "/srv/bin/nginx (deleted)",
        "cmdline": "nginx: größe \\xff", "state": "R", "uid": 33, "gid": 34, "euid": 1, "egid": 2, "suid": 3, "sgid": 4,
        "threads": 2, "nice": -5, "start_time": BOOTED + 9, "user_time": 7, "system_time": 0,
        "resident_size": 4096 * (300 if kind["older"] else 303), "total_size": 300 * 4096,
        "cgroup_path": "/system.slice/nginx.service", "pid_namespace": 0xF0001234, "net_namespace": 0xF0005678,
        "cwd": "", "root": "", "on_disk": 0, "tty": "", "pgroup": 0, "session": 0, "container": "",
        "unit": "nginx.service", "oom_score_adj": 0,
        "policy": "other", "rt_priority": 0, "processor": 0, "wchan": "", "kernel_thread": False,
        "address": task[70000].task, "fault": "",
    }  # fmt: skip
    worker = row(table, 3)
    name = "kworker/0:1" if kind["older"] else "kworker/with_a_name_longer_than_comm"
    assert worker["name"] == f"{name}+events"
    assert (worker["state"], worker["parent"], worker["kernel_thread"], worker["path"], worker["cmdline"]) == (
        "I",
        2,
        True,
        "",
        "",
    )
    assert row(table, 2)["on_disk"] == -1
    assert row(table, 2)["total_size"] == 0, "a kernel thread's borrowed mm is not its own"
    dead = row(table, 100)
    assert (dead["state"], dead["uid"], dead["parent"], dead["net_namespace"]) == ("Z", 4_000_000_000, 70000, 0)


def test_only_what_was_asked_for_is_read() -> None:
    guest = populate(LinuxGuest())
    table = processes(guest.kernel, ["name", "pid"])
    assert table.columns == ("pid", "name", "fault")
    few = guest.memory.rows
    guest.memory.reset()
    processes(guest.kernel)
    assert guest.memory.rows > 3 * few
    with pytest.raises(AttributeError, match="no column 'colour'; it has pid, parent"):
        processes(guest.kernel, ["colour"])


@pytest.mark.parametrize("scattered", [False, True])
def test_rounds_do_not_grow_with_processes(scattered: bool) -> None:
    def gathers(count: int) -> int:
        guest = LinuxGuest(scattered=scattered)
        guest.task(1, "init")
        for pid in range(2, count + 1):
            guest.task(pid, f"sleep{pid}", 1 if pid < 20 else pid // 2, uid=pid % 5)
        guest.finish()
        table = processes(guest.kernel, ("pid", "parent", "name", "uid", "state"))
        assert table.pid.tolist() == list(range(1, count + 1))
        assert table.parent[1:].tolist() == [1 if pid < 20 else pid // 2 for pid in range(2, count + 1)]
        assert table.uid[1:].tolist() == [pid % 5 for pid in range(2, count + 1)]
        assert table.name[-1] == f"sleep{count}"
        assert set(table.fault) == {""}
        return guest.memory.gathers

    assert gathers(1000) <= gathers(200) + 6
    assert gathers(1000) <= (34 if scattered else 20)


# -- lies --------------------------------------------------------------------------------------------------------------


def crowd(**kind: Any) -> tuple[LinuxGuest, Task]:
    """Twenty honest processes, and one at 10 that is about to lie; each has an own page for its arguments."""
    guest = LinuxGuest(**kind)
    for pid in range(1, 21):
        task = guest.task(pid, f"task{pid}", 1 if pid > 1 else 0, uid=pid)
        guest.memory_of(task, f"task{pid}\0-x\0".encode(), exe=guest.file("bin", f"task{pid}"))
        guest.give(task, cgroups=guest.css_set(guest.cgroup(guest.root_cgroup, f"group{pid}")))
        guest.give(task, nsproxy=guest.new("nsproxy", net_ns=guest.init_net))
    guest.finish()
    return guest, guest.tasks[10]


def lied(guest: LinuxGuest, *words: str) -> dict[str, Any]:
    """The liar's row, after a look at the others: all there and right, without a fault."""
    table = processes(guest.kernel)
    honest = table.where(table.pid != 10)
    assert honest.pid.tolist() == [pid for pid in range(1, 21) if pid != 10]
    assert honest.name.tolist() == [f"task{pid}" for pid in honest.pid]
    assert honest.uid.tolist() == honest.pid.tolist()
    assert honest.cmdline.tolist() == [f"task{pid} -x" for pid in honest.pid]
    assert honest.path.tolist() == [f"/bin/task{pid}" for pid in honest.pid]
    assert honest.cgroup_path.tolist() == [f"/group{pid}" for pid in honest.pid]
    assert set(honest.fault) == {""}
    found = row(table, 10)
    for word in words:
        assert word in found["fault"]
    return found


@pytest.mark.parametrize("nowhere", [NOWHERE, HOLE, 0x0123_4567_89AB_CDEF, (1 << 64) - 8])
@pytest.mark.parametrize(
    ("member", "word"),
    [
        ("real_cred", "credentials unreadable"), ("signal", "signal struct unreadable"),
        ("mm", "memory descriptor unreadable"),
        ("real_parent", "parent unreadable"), ("nsproxy", "namespaces unreadable"),
        ("cgroups", "cgroup_path incomplete"),
    ],
)  # fmt: skip
def test_a_pointer_to_nowhere(member: str, word: str, nowhere: int) -> None:
    guest, liar = crowd(scattered=True)
    guest.give(liar, **{member: nowhere})
    assert lied(guest, word)["name"] == "task10"


@pytest.mark.parametrize("nowhere", [NOWHERE, HOLE, 0x0123_4567_89AB_CDEF, (1 << 64) - 8])
@pytest.mark.parametrize(
    ("member", "word"),
    [("tty", "terminal unreadable"), ("pids[2]", "process group unreadable"), ("pids[3]", "session unreadable")],
)
def test_a_pointer_of_the_group_to_nowhere(member: str, word: str, nowhere: int) -> None:
    guest, liar = crowd(scattered=True)
    guest.poke("signal_struct", liar.signal, member, nowhere)
    assert lied(guest, word)["name"] == "task10"


def test_directories_and_policies_that_cannot_be() -> None:
    guest, liar = crowd(scattered=True)
    guest.give(liar, fs=NOWHERE, policy=99)
    found = lied(guest, "cwd unreadable", "no such scheduling policy")
    assert (found["cwd"], found["root"], found["policy"]) == ("", "", "")
    guest.give(liar, fs=guest.new("fs_struct", pwd__dentry=NOWHERE, pwd__mnt=NOWHERE))
    lied(guest, "cwd incomplete")


def test_a_task_on_an_unmapped_page() -> None:
    guest, _ = crowd(scattered=True)
    guest.word(guest.tasks[10].pid + guest.offset("pid", "tasks[1]"), NOWHERE)
    lied(guest, "task unreadable")


def test_a_pid_on_an_unmapped_page_keeps_its_row() -> None:
    guest, _ = crowd(scattered=True)
    head = guest.space.read_u64(guest.init_pid_ns + guest.offset("pid_namespace", "idr.idr_rt.xa_head"))
    guest.word((head & ~3) + guest.offset("xa_node", "slots") + 8 * 10, NOWHERE + 0xC)
    lied(guest, "pid unreadable")


def test_a_task_that_says_it_is_another() -> None:
    guest, liar = crowd()
    guest.give(liar, tgid=11)
    lied(guest, "task has another pid")


def test_a_name_without_an_end() -> None:
    guest, liar = crowd()
    guest.write(liar.task + guest.offset("task_struct", "comm"), b"\xfe" + b"A" * 400)
    found = processes(guest.kernel, ["pid", "name"])
    assert row(found, 10)["name"] == "\\xfe" + "A" * 15
    assert row(found, 11)["name"] == "task11"


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (STACK + 50, STACK),
        (STACK, STACK + (1 << 63)),
        (STACK, (1 << 64) - 1),
        (0, 1 << 47),
        (NOWHERE, NOWHERE + 9),
        (1 << 63, 0),
    ],
)
def test_arguments_that_cannot_be(start: int, end: int) -> None:
    guest, liar = crowd()
    guest.put("mm_struct", liar.mm, arg_start=start, arg_end=end)
    found = lied(guest)
    assert found["cmdline"] == "" if end < start else found["fault"]


def test_many_lies_about_arguments_do_not_starve_the_others() -> None:
    guest = LinuxGuest()
    for pid in range(1, 700):
        task = guest.task(pid, "task")
        if pid % 100 == 0:
            guest.memory_of(task, b"good\0")
        else:
            guest.give(task, mm=guest.new("mm_struct", pgd=guest.space.root, arg_start=0, arg_end=1 << 62))
    guest.finish()
    table = processes(guest.kernel, ["pid", "cmdline"])
    assert table.cmdline[table.pid % 100 == 0].tolist() == ["good"] * 6


def test_a_page_table_root_to_nowhere() -> None:
    guest, liar = crowd()
    guest.put("mm_struct", liar.mm, pgd=NOWHERE)
    assert lied(guest, "cmdline not in memory")["cmdline"] == ""


def test_a_command_line_written_over_by_its_process() -> None:
    guest, liar = crowd()
    guest.memory_of(liar, b"sshd: root@pts/0", environment=b" [priv]\0HOME=/\0")
    assert lied(guest)["cmdline"] == "sshd: root@pts/0 [priv]"


@pytest.mark.parametrize("length", [(1 << 32) - 1, 1 << 31, 256])
def test_a_file_name_too_long_to_be(length: int) -> None:
    guest, liar = crowd()
    exe = guest.file("bin", "evil")
    guest.put("mm_struct", liar.mm, exe_file=exe)
    dentry = guest.space.read_u64(exe + guest.offset("file", "f_path.dentry"))
    guest.put("dentry", dentry, d_name__len=length)
    assert len(lied(guest, "path incomplete")["path"]) <= 4096


def test_dentries_in_a_circle() -> None:
    guest, liar = crowd()
    one, two = guest.dentry(guest.root_dentry, "one"), guest.dentry(guest.root_dentry, "two")
    guest.put("dentry", one, d_parent=two)
    guest.put("dentry", two, d_parent=one)
    exe = guest.file("evil")
    guest.put("file", exe, f_path__dentry=one)
    guest.put("mm_struct", liar.mm, exe_file=exe)
    found = lied(guest, "path incomplete")
    assert len(found["path"]) <= 4096


def test_mounts_in_a_circle() -> None:
    guest, liar = crowd()
    mount, root = guest.mount(guest.root_mount, guest.root_dentry)
    other, other_root = guest.mount(mount, root)
    guest.put("mount", mount, mnt_parent=other, mnt_mountpoint=other_root)
    guest.put("mm_struct", liar.mm, exe_file=guest.file("evil", mount=mount, root=root))
    lied(guest, "path incomplete")


def test_cgroups_in_a_circle() -> None:
    guest, liar = crowd()
    one, two = guest.cgroup(0, "one"), guest.cgroup(0, "two")
    guest.put("kernfs_node", one, __parent=two)
    guest.put("kernfs_node", two, __parent=one)
    guest.give(liar, cgroups=guest.css_set(one))
    lied(guest, "cgroup_path incomplete")


@pytest.mark.parametrize("level", [1 << 31, (1 << 32) - 1, 33])
def test_a_pid_level_too_deep_to_be(level: int) -> None:
    guest, liar = crowd()
    guest.put("pid", liar.pid, level=level)
    lied(guest)


def test_no_parent() -> None:
    guest, liar = crowd()
    guest.give(liar, real_parent=0)
    assert lied(guest)["parent"] == 0


def test_an_idr_that_is_garbage() -> None:
    guest, _ = crowd()
    itself = guest.alloc(576)
    for slot in range(64):
        guest.word(itself + guest.offset("xa_node", "slots") + 8 * slot, itself | 2)
    for head in (NOWHERE | 2, itself | 2, guest.tasks[10].task | 2, 0, 5, 1 << 63 | 2):
        guest.poke("pid_namespace", guest.init_pid_ns, "idr.idr_rt.xa_head", head)
        table = processes(guest.kernel)
        assert table.columns == Processes.schema
        assert all(table.fault), "what is made up is not given as true"
        assert table.notes or head & 3 != 2 or len(table)


def test_no_processes_at_all() -> None:
    table = processes(LinuxGuest().finish().kernel)
    assert len(table) == 0
    assert table.to_dicts() == []
    assert table.pid.dtype == np.int64


def test_clocks_that_lie() -> None:
    guest = LinuxGuest()
    guest.task(1, "init")
    guest.finish()
    keeper = guest.profile.symbols["timekeeper_data"] + 8
    guest.put("timekeeper", keeper, offs_real=-(1 << 63), offs_boot=(1 << 63) - 1)
    assert processes(guest.kernel).pid.tolist() == [1]
