"""Environments, namespaces, credentials, limits and signals of made-up guests, and of guests that lie about theirs."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.synthetic.details import DetailsGuest
from tests.synthetic.guest import HOLE, NOWHERE
from tests.synthetic.linux import PF_KTHREAD
from vmi_inside.linux.processes.credentials import process_credentials
from vmi_inside.linux.processes.environments import process_envs
from vmi_inside.linux.processes.limits import process_limits
from vmi_inside.linux.processes.namespaces import process_namespaces
from vmi_inside.linux.processes.signals import process_signals
from vmi_inside.linux.processes.stacks import process_stack

KINDS = pytest.mark.parametrize(
    "kind", [{}, {"levels": 5, "scattered": True}, {"older": True}], ids=["newer", "scattered", "older"]
)
WILD = pytest.mark.parametrize("wild", [NOWHERE, HOLE, (1 << 64) - 8, 8, 0x1234_5678_9ABC_DEF0])
TABLES = (process_namespaces, process_credentials, process_limits, process_signals)


def one(table: Any, pid: int = 10) -> Any:
    rows = [row for row in table if row.pid == pid]
    assert len(rows) == 1
    return rows[0]


def crowd(**kind: Any) -> DetailsGuest:
    """Three honest processes and one at 10 that is about to lie."""
    guest = DetailsGuest(**kind)
    for pid in (1, 2, 10, 11):
        task = guest.detailed(pid, f"task{pid}")
        guest.put("cred", task.cred, uid__val=pid, fsuid__val=pid + 1)
        guest.memory_of(task, f"task{pid}\0".encode(), environment=f"PID={pid}\0A=b=c\0".encode())
    return guest


def others(table: Any) -> None:
    """The honest rows are there and not marked."""
    assert [row.pid for row in table if not row.fault and row.pid != 10]
    assert not any(row.fault for row in table if row.pid != 10)


@KINDS
def test_environments(kind: dict[str, Any]) -> None:
    guest = crowd(**kind)
    odd = guest.detailed(20, "odd")
    guest.memory_of(odd, b"odd\0", environment=b"PLAIN\0\0=empty\0\xff\xfe=\xff\0LAST=unended")
    borrower = guest.detailed(21, "kthread", flags=PF_KTHREAD)
    guest.give(borrower, mm=odd.mm)
    guest.finish()
    table = process_envs(guest.kernel)
    assert set(table.fault) == {""}
    assert [tuple(row)[:4] for row in table.where(table.pid == 20)] == [
        (20, "odd", "PLAIN", ""), (20, "odd", "", "empty"), (20, "odd", "\\xff\\xfe", "\\xff"),
        (20, "odd", "LAST", "unended"),
    ]  # fmt: skip
    assert [tuple(row)[:4] for row in table.where(table.pid == 1)] == [
        (1, "task1", "PID", "1"), (1, "task1", "A", "b=c"),
    ]  # fmt: skip
    assert 21 not in table.pid
    few = process_envs(guest.kernel, ["key"], pids=frozenset((20,)))
    assert (few.columns, len(few)) == (("key", "fault"), 4)
    with pytest.raises(AttributeError, match="no column 'colour'"):
        process_envs(guest.kernel, ["colour"])


@pytest.mark.parametrize("end", [(1 << 64) - 1, 1 << 47, HOLE, 0x7FFD_0000_0000 + (1 << 30)])
def test_an_environment_without_end_is_cut(end: int) -> None:
    guest = crowd()
    guest.put("mm_struct", guest.tasks[10].mm, env_end=end)
    guest.finish()
    table = process_envs(guest.kernel)
    others(table)
    mine = table.where(table.pid == 10)
    assert len(mine)
    assert all("not in memory" in fault for fault in mine.fault)
    assert all("cut" in fault for fault in mine.fault)


def test_very_many_variables() -> None:
    guest = crowd()
    guest.memory_of(guest.tasks[10], b"x\0", environment=b"a\0" * 10_000)
    guest.finish()
    table = process_envs(guest.kernel)
    others(table)
    mine = table.where(table.pid == 10)
    assert len(mine) == 8192
    assert set(mine.fault) == {"environment cut"}


@WILD
def test_memory_that_is_nowhere(wild: int) -> None:
    guest = crowd()
    guest.give(guest.tasks[10], mm=wild)
    guest.finish()
    table = process_envs(guest.kernel)
    others(table)
    row = one(table)
    assert (row.key, row.value) == ("", "")
    assert row.fault


@KINDS
def test_namespaces(kind: dict[str, Any]) -> None:
    guest = DetailsGuest(**kind)
    inner = guest.new("pid_namespace", ns__inum=0xF0001234)
    guest.detailed(1, "init")
    guest.detailed(70, "boxed", numbers=((7, inner),))
    gone = guest.detailed(80, "zombie")
    guest.give(gone, nsproxy=0)
    guest.finish()
    table = process_namespaces(guest.kernel)
    assert set(table.fault) == {""}
    row = one(table, 70)
    base = 0xF0000000 + 16 * 70
    assert (row.uts_namespace, row.ipc_namespace, row.mnt_namespace, row.time_namespace, row.cgroup_namespace) == (
        base, base + 1, base + 2, base + 3, base + 4,
    )  # fmt: skip
    assert (row.pid_namespace, row.pid_in_namespace) == (0xF0001234, 7)
    assert (row.user_namespace, row.net_namespace) == (0xF0000100, 0xF0000001)
    assert one(table, 1).pid_in_namespace == 1
    zombie = one(table, 80)
    assert (zombie.mnt_namespace, zombie.pid_namespace, zombie.user_namespace) == (0, 0xEFFFFFFC, 0xF0000100)


def test_a_kernel_without_time_namespaces_says_so() -> None:
    guest = DetailsGuest()
    guest.detailed(1, "init")
    del guest.profile.layout.structs["nsproxy"].members["time_ns"]  # type: ignore[attr-defined]
    guest.finish()
    table = process_namespaces(guest.kernel)
    assert table.time_namespace.tolist() == [0]
    assert any("time_namespace" in note for note in table.notes)


@KINDS
def test_credentials(kind: dict[str, Any]) -> None:
    guest = crowd(**kind)
    guest.word(guest.global_("apparmor_blob_sizes", 8), 8)
    guest.word(guest.global_("apparmor_initialized", 8), 1)
    labels = {1: ("unconfined",), 2: ("/usr/sbin/nginx",), 11: ("lxc", "unprivileged")}
    for pid, names in labels.items():
        blob = guest.profile_label(*names, mode=3 if pid == 1 else 0)
        guest.put("cred", guest.tasks[pid].cred, security=blob)
    liar = guest.tasks[10]
    guest.put("cred", liar.cred, securebits=0b100011, group_info=guest.group_list(5, 4_000_000_000))
    for name, value in (("cap_effective", 1 << 40 | 1), ("cap_bset", (1 << 64) - 1), ("cap_ambient", 1 << 63)):
        guest.poke("cred", liar.cred, name, value.to_bytes(8, "little"))
    guest.give(liar, atomic_flags=3, seccomp__mode=2, seccomp__filter_count__counter=3, loginuid__val=1000, sessionid=4)
    guest.finish()
    table = process_credentials(guest.kernel)
    assert set(table.fault) == {""}
    row = one(table)
    assert (row.uid, row.fsuid, row.groups) == (10, 11, "5,4000000000")
    assert (row.effective, row.effective_mask) == ("cap_chown,cap_checkpoint_restore", 1 << 40 | 1)
    assert row.bounding.startswith("cap_chown,cap_dac_override,")
    assert row.bounding.endswith(",cap_checkpoint_restore," + ",".join(map(str, range(41, 64))))
    assert (row.ambient, row.inheritable) == ("63", "")
    assert (row.securebits, row.no_new_privs) == ("noroot,noroot_locked,keep_caps_locked", True)
    assert (row.seccomp, row.seccomp_filters, row.loginuid, row.sessionid) == ("filter", 3, 1000, 4)
    assert table.label.tolist() == ["unconfined", "/usr/sbin/nginx (enforce)", "", "lxc//&unprivileged (enforce)"]
    assert (one(table, 1).loginuid, one(table, 1).sessionid, one(table, 1).seccomp) == (-1, -1, "disabled")


@KINDS
def test_limits(kind: dict[str, Any]) -> None:
    guest = crowd(**kind)
    pairs = struct.pack("<32Q", *range(31), (1 << 64) - 1)
    guest.poke("signal_struct", guest.tasks[10].signal, "rlim", pairs)
    guest.finish()
    table = process_limits(guest.kernel, pids=frozenset((10,)))
    assert len(table) == 16
    assert table.soft.tolist() == list(range(0, 32, 2))
    assert table.hard.tolist() == [*range(1, 31, 2), (1 << 64) - 1]
    row = table[7]
    assert tuple(row)[1:] == ("task10", "Max open files", 14, 15, "files", "")


@KINDS
def test_signals(kind: dict[str, Any]) -> None:
    guest = crowd(**kind)
    tracer, traced, stopped = guest.tasks[1], guest.tasks[10], guest.tasks[11]
    handlers = guest.new("sighand_struct")
    for number, handler in ((1, 1), (15, 1), (2, 0x40_0000), (64, 2)):
        guest.word(handlers + guest.offset("sighand_struct", "action") + 32 * (number - 1), handler)
    guest.give(traced, sighand=handlers, state=8, __state=8, ptrace=1 | 1 << 3 | 1 << 23 | 1 << 31, parent=tracer.task,
               last_siginfo=guest.new("kernel_siginfo", si_signo=19))  # fmt: skip
    guest.poke("task_struct", traced.task, "pending.signal", (1 << 9).to_bytes(8, "little"))
    guest.poke("task_struct", traced.task, "blocked", (1 << 33 | 1 << 31).to_bytes(8, "little"))
    guest.poke("signal_struct", traced.signal, "shared_pending.signal", (1 << 14).to_bytes(8, "little"))
    guest.give(stopped, state=4, __state=4, jobctl=1 << 17 | 20)
    thread = guest.task(12, "thread", leader=11)
    guest.give(thread, ptrace=1 | 1 << 16, parent=tracer.task)
    guest.finish()
    table = process_signals(guest.kernel)
    assert set(table.fault) == {""}
    row = one(table)
    assert (row.pending, row.shared, row.blocked) == ("USR1", "TERM", "32,RTMIN")
    assert (row.ignored, row.caught) == ("HUP,TERM", "INT,RTMIN+30")
    assert (row.ignored_mask, row.caught_mask) == (1 | 1 << 14, 2 | 1 << 63)
    assert (row.stop_signal, row.tracer, row.ptrace) == ("STOP", 1, "tracesysgood,exitkill,bit_31")
    assert one(table, 11).stop_signal == "TSTP"
    assert (one(table, 11).tracer, one(table, 1).tracees) == (0, "10,12")
    guest.give(stopped, jobctl=9999)
    assert one(process_signals(guest.kernel), 11).stop_signal == "9999"


@WILD
@pytest.mark.parametrize(
    ("member", "tables"),
    [
        ("real_cred", (process_namespaces, process_credentials)), ("nsproxy", (process_namespaces,)),
        ("signal", (process_limits, process_signals)), ("sighand", (process_signals,)),
        ("last_siginfo", (process_signals,)), ("parent", (process_signals,)),
    ],
)  # fmt: skip
def test_wild_pointers_mark_their_row_only(member: str, tables: tuple[Any, ...], wild: int) -> None:
    guest = crowd(scattered=True)
    guest.give(guest.tasks[10], ptrace=1, state=8, __state=8, parent=guest.tasks[1].task)
    guest.give(guest.tasks[10], **{member: wild})
    guest.finish()
    for read in TABLES:
        table = read(guest.kernel)
        others(table)
        assert any(row.fault for row in table if row.pid == 10) == (read in tables), read


@WILD
def test_pointers_behind_credentials(wild: int) -> None:
    guest = crowd(scattered=True)
    guest.word(guest.global_("apparmor_blob_sizes", 8), 8)
    blob = guest.alloc(16, "blob")
    guest.word(blob + 8, wild)
    for members in ({"group_info": wild}, {"user_ns": wild}, {"security": wild}, {"security": blob}):
        cred = guest.tasks[10].cred
        guest.put("cred", cred, group_info=guest.groups, user_ns=guest.user_ns, security=0)
        guest.put("cred", cred, **members)
        guest.finish()
        table = process_credentials(guest.kernel)
        others(table)
        assert one(table).fault, members
        assert one(table).uid == 10


@pytest.mark.parametrize("count", [-1, 1 << 17, (1 << 31) - 1])
def test_group_lists_too_long_to_be(count: int) -> None:
    guest = crowd()
    guest.put("group_info", groups := guest.group_list(1), ngroups=count)
    guest.put("cred", guest.tasks[10].cred, group_info=groups)
    guest.finish()
    table = process_credentials(guest.kernel)
    others(table)
    assert "groups" in one(table).fault


def test_a_label_of_very_many_profiles_and_a_mode_that_is_none() -> None:
    guest = crowd()
    guest.word(guest.global_("apparmor_blob_sizes", 8), 8)
    blob = guest.profile_label("one", mode=77)
    label = guest.space.read_u64(blob + 8)
    guest.put("aa_label", label, size=(1 << 31) - 1)
    guest.put("cred", guest.tasks[10].cred, security=blob)
    guest.give(guest.tasks[10], seccomp__mode=5)
    guest.finish()
    row = one(process_credentials(guest.kernel))
    assert "label" in row.fault
    assert "seccomp" in row.fault
    assert row.seccomp == ""


@pytest.mark.parametrize("read", [*TABLES, process_envs, process_stack])
def test_no_processes_at_all(read: Any) -> None:
    guest = crowd()
    guest.finish()
    assert len(read(guest.kernel, pids=frozenset((999,)))) == 0
    assert read(guest.kernel, pids=frozenset((999,))).columns == read(guest.kernel).columns
    bare = DetailsGuest().finish()
    assert read(bare.kernel).to_dicts() == []
