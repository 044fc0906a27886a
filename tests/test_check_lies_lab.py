"""Lies of lists and of processes, planted in real guests: each must be found, and nothing else."""

from __future__ import annotations

import time

import vmi_inside
from tests.lab.guest import LabGuest
from tests.lies import module_of, one, task_of
from tests.tamper import Tamper, going_on, lying

pytest_plugins = ("tests.liars",)


def test_a_process_out_of_the_pid_table(liar: LabGuest, seen: vmi_inside.Guest, victim: int) -> None:
    """Such a process goes on, and no tool in the guest sees it."""
    task = task_of(seen, victim)
    with lying(liar, seen) as lie:
        slot = idr_slot(lie, victim)
        lie.word(slot, 0)
        with going_on(liar):
            assert str(victim) not in liar.ask("ls /proc; ps").split()
            row = one(seen.check(), "processes")
    assert row["subject"] == f"pid {victim} (sleep)"
    assert (row["seen"], row["severity"], row["address"]) == ("not in PID table", "critical", task)
    assert {"task list", "slab", "control groups"} <= set(str(row["detail"]).removeprefix("seen in ").split(", "))
    assert str(victim) in liar.ask("ls /proc").split()


def idr_slot(lie: Tamper, pid: int) -> int:
    """Where the PID table has this number's struct pid."""
    node = lie.kernel.struct("xa_node")
    head = lie.kernel.object("pid_namespace", "init_pid_ns").pointer("idr.idr_rt.xa_head")
    entry = int(head[0])
    while True:
        at = entry - 2
        shift = lie.space.read(at + node.member("shift").offset, 1)[0]
        slot = at + node.member("slots").offset + 8 * (pid >> shift & 63)
        if not shift:
            return slot
        entry = lie.space.read_u64(slot)


def test_a_process_out_of_the_task_list(liar: LabGuest, seen: vmi_inside.Guest, victim: int) -> None:
    task = task_of(seen, victim)
    with lying(liar, seen) as lie:
        lie.unlink(lie.member("task_struct", task, "tasks"))
        row = one(seen.check(only=["processes"]), "processes")
    assert (row["seen"], row["address"]) == ("not in task list", task)


def test_a_process_that_only_memory_shows(liar: LabGuest, seen: vmi_inside.Guest, victim: int) -> None:
    """Out of every list, with no number: only the cache of task_structs has it still."""
    task = task_of(seen, victim)
    with lying(liar, seen) as lie:
        lie.word(idr_slot(lie, victim), 0)
        for link in ("tasks", "sibling", "cg_list"):
            lie.unlink(lie.member("task_struct", task, link))
        row = one(seen.check(), "processes")
    assert row["address"] == task
    assert str(row["detail"]) == "seen in threads' lists, slab"


def test_a_task_list_in_a_circle(liar: LabGuest, seen: vmi_inside.Guest, victim: int) -> None:
    task = task_of(seen, victim)
    node = seen.kernel.struct("task_struct").member("tasks").offset
    with lying(liar, seen) as lie:
        lie.word(task + node, task + node)
        found = seen.check(only=["processes"]).alarms
    assert any("circle" in row.seen and row.subject == "task list" for row in found)


def test_a_thread_out_of_its_process(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    thread = next(row for row in seen.threads() if row.tid != row.pid)
    with lying(liar, seen) as lie:
        lie.unlink(lie.member("task_struct", thread.address, "thread_node"))
        row = one(seen.check(), "processes")
    assert str(row["subject"]).endswith(f"thread of pid {thread.pid}")
    assert (row["seen"], row["address"]) == ("not in threads' lists", thread.address)


def test_a_module_out_of_the_list(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    module = module_of(seen, "dummy")
    with lying(liar, seen) as lie:
        lie.unlink(lie.member("module", module, "list"))
        with going_on(liar):
            assert "dummy" not in liar.ask("cat /proc/modules")
            rows = seen.check(only=["modules"]).alarms.to_dicts()
    assert [(row["subject"], row["seen"], row["address"]) for row in rows] == [("dummy", "not in modules", module)]


def test_a_module_that_only_memory_shows(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    module = module_of(seen, "dummy")
    with lying(liar, seen) as lie:
        lie.unlink(lie.member("module", module, "list"))
        lie.unlink(lie.member("module", module, "mkobj.kobj.entry"))
        rows = seen.check(only=["modules"]).alarms.to_dicts()
        assert [(row["subject"], row["seen"]) for row in rows] == [("dummy", "not in modules, /sys/module")]
        assert "memory" in str(rows[0]["detail"])


def test_a_socket_out_of_the_hash(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    """A listener that ss does not show."""
    table = seen.process_open_sockets()
    sock = next(row for row in table if row.protocol == "tcp" and row.state == "LISTEN" and row.pid > 0)
    node = seen.kernel.struct("sock_common").member("skc_nulls_node").offset
    with lying(liar, seen) as lie:
        following, pprev = lie.space.read_u64(sock.address + node), lie.space.read_u64(sock.address + node + 8)
        lie.word(pprev, following)
        if not following & 1:
            lie.word(following + 8, pprev)
        row = one(seen.check(), "sockets")
    assert row["address"] == sock.address
    assert f":{sock.local_port} " in str(row["detail"])


def test_the_kernels_own_credentials(liar: LabGuest, seen: vmi_inside.Guest, victim: int) -> None:
    task = task_of(seen, victim)
    with lying(liar, seen) as lie:
        for name in ("cred", "real_cred"):
            lie.word(lie.member("task_struct", task, name), lie.kernel.symbol("init_cred"))
        row = one(seen.check(), "credentials")
    assert (row["severity"], row["subject"]) == ("critical", f"pid {victim} (sleep)")


def test_another_processs_credentials(liar: LabGuest, seen: vmi_inside.Guest, victim: int) -> None:
    mine, init = task_of(seen, victim), task_of(seen, 1)
    with lying(liar, seen) as lie:
        theirs = lie.space.read_u64(lie.member("task_struct", init, "real_cred"))
        for name in ("cred", "real_cred"):
            lie.word(lie.member("task_struct", mine, name), theirs)
        rows = seen.check().alarms.to_dicts()
    assert {row["subject"] for row in rows} == {f"pid {victim} (sleep)", "pid 1 (workload)"}
    assert {row["seen"] for row in rows} == {"those of pid 1", f"those of pid {victim}"}


def test_credentials_changed_where_they_lie(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    """A user who becomes root by a write to memory, as `id` in the guest agrees."""
    table = seen.processes()
    user = next(row for row in table if row.uid > 0 and row.euid == row.uid and row.threads == 1)
    with lying(liar, seen) as lie:
        cred = lie.space.read_u64(lie.member("task_struct", user.address, "real_cred"))
        for name in ("uid", "gid", "suid", "sgid", "euid", "egid", "fsuid", "fsgid"):
            lie.write(lie.member("cred", cred, name), bytes(4))
        with going_on(liar):
            assert "Uid:\t0\t0\t0\t0" in liar.ask(f"cat /proc/{user.pid}/status")
        row = one(seen.check(), "credentials")
    assert (row["expected"], row["seen"]) == (f"uid {user.uid}, for which it is counted", "uid 0")


def test_a_process_that_says_it_is_a_kernel_thread(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    padding = "x" * 40
    pid = int(liar.ask(f"workload title rootd '[kworker/7:1]' {padding} >/dev/null 2>&1 & echo $!").split()[-1])
    try:
        time.sleep(0.5)
        assert "[kworker/7:1]" in liar.ask(f"tr '\\0' ' ' </proc/{pid}/cmdline")
        row = one(seen.check(), "disguises")
        assert str(row["subject"]).startswith(f"pid {pid} ")
    finally:
        liar.ask(f"kill -9 {pid}")


def test_a_process_with_the_mark_of_a_kernel_thread(liar: LabGuest, seen: vmi_inside.Guest, victim: int) -> None:
    """What makes ps show brackets, and no command line."""
    task = task_of(seen, victim)
    with lying(liar, seen) as lie:
        at = lie.member("task_struct", task, "flags")
        lie.write(at + 2, bytes([lie.space.read(at + 2, 1)[0] | 0x20]))  # PF_KTHREAD
        row = one(seen.check(), "disguises")
    assert (row["subject"], row["address"]) == (f"pid {victim} (sleep)", task)


def test_a_program_in_memory_without_a_file(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    region = next(row for row in seen.check(only=["user-code"]) if "anonymous" in row.seen)
    task = task_of(seen, int(region.subject.split()[1]))
    with lying(liar, seen) as lie:
        memory = lie.space.read_u64(lie.member("task_struct", task, "mm"))
        root = lie.space.translate_one(lie.space.read_u64(lie.member("mm_struct", memory, "pgd")))
        lie.physical(lie.space.with_root(root).translate_one(region.address), b"\x7fELF")
        row = one(seen.check(), "user-code")
    assert (row["subject"], row["address"]) == (region.subject, region.address)
    assert "ELF header" in str(row["seen"])
