"""The checks on real kernels: honest guests are told to be honest, and every lie that is planted is found.

Lies are written into guests of their own shape, which no other test looks at.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import vmi_inside
from tests.lab.guest import LabGuest
from tests.lab.kernels import kernel
from tests.tamper import Tamper, going_on, lying
from vmi_inside.errors import NoSuchDomain, Unsupported
from vmi_inside.linux.integrity import DETECTORS, Findings
from vmi_inside.linux.integrity.reading import Reading
from vmi_inside.linux.tasks import PIDTYPE_TGID, pids

LIARS = {"append": "lab_only_for=lies", "workload": "tree=4,threads=4,owners,mappings,tcp,udp,unix"}
COMMAND = [sys.executable, "-W", "error", "-m", "vmi_inside.cli", "check"]


@pytest.mark.parametrize("name", ["6.1-cloud", "new-cloud", "6.12-cloud", "5.10-cloud"])
def test_an_honest_guest_is_found_to_be_so(lab_boot: Callable[..., LabGuest], name: str) -> None:
    with (lab_boot() if name == "6.1-cloud" else lab_boot(kernel=name)).attach() as seen:
        found = seen.check()
        assert found.alarms.to_dicts() == []
        assert [row.subject for row in found if row.fault] == []
        # What is harmless is told all the same.
        assert {"memfd-exe", "deleted-exe"} <= {row.subject.partition("(")[2].strip(")") for row in found}
        assert {row.check for row in found} <= set(DETECTORS)
        (row,) = seen.check(only=["image"])
        assert (row.severity, "no image" in row.detail) == ("info", True)
        assert seen.check(only=["image"], image=str(kernel(name).vmlinuz)).to_dicts() == []


def test_every_view_shows_every_task(lab_boot: Callable[..., LabGuest]) -> None:
    """What the check compares is there: views that are empty would agree, too."""
    from vmi_inside.linux.integrity import module_views, task_views

    guest = lab_boot()
    with guest.attach() as seen, seen.kernel.operation():
        _, _, tasks = pids(seen.kernel).tasks(seen.kernel, 0)
        views = [
            task_views.threads(tasks.fetch("signal")),
            task_views.control_groups(seen.kernel),
            task_views.slab(seen.kernel),
        ]
        told = len(guest.ask("ls -d /proc/[0-9]*/task/*").split())
        for view in views:
            assert len(np.intersect1d(view.seen, tasks.address)) > told - 20, view.name
        listed = task_views.task_list(seen.kernel)
        assert len(listed.seen) > len(guest.ask("ls -d /proc/[0-9]*").split()) - 20
        assert len(task_views.run_queues(seen.kernel).seen) >= 1
        modules = set(guest.ask("cut -d' ' -f1 /proc/modules").split())
        areas = module_views.areas(seen.kernel)
        for view in (
            module_views.kobjects(seen.kernel),
            module_views.address_tree(seen.kernel),
            module_views.btf(seen.kernel),
            module_views.in_memory(seen.kernel, areas),
        ):
            rows = seen.kernel.structs("module", np.unique(view.seen))
            assert set(rows.text("name")) == modules, view.name


def test_all_checks_take_a_moment(lab_boot: Callable[..., LabGuest]) -> None:
    with lab_boot().attach() as seen:
        seen.check()
        took = []
        for _ in range(3):
            start = time.perf_counter()
            seen.check()
            took.append(time.perf_counter() - start)
    assert min(took) < 1.5


# -- lies -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["6.1-cloud", "new-cloud"])
def liar(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> LabGuest:
    return lab_boot(kernel=request.param, **LIARS)


@pytest.fixture
def seen(liar: LabGuest) -> Iterator[vmi_inside.Guest]:
    with liar.attach() as attached:
        assert attached.check().alarms.to_dicts() == []
        yield attached
        assert attached.check().alarms.to_dicts() == []


def one(found: Findings, check: str) -> dict[str, object]:
    rows = found.alarms.to_dicts()
    assert {row["check"] for row in rows} == {check}, rows
    assert len(rows) == 1, rows
    return rows[0]


def task_of(seen: vmi_inside.Guest, pid: int) -> int:
    number, _, tasks = pids(seen.kernel).tasks(seen.kernel, PIDTYPE_TGID)
    return int(tasks.address[number == pid][0])


@pytest.fixture
def victim(liar: LabGuest) -> Iterator[int]:
    pid = int(liar.ask("sleep 100000 >/dev/null 2>&1 & echo $!").split()[-1])
    time.sleep(0.5)
    yield pid
    liar.ask(f"kill -9 {pid}")


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


def module_of(seen: vmi_inside.Guest, name: str) -> int:
    return next(row.address for row in seen.kernel_modules() if row.name == name)


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


def test_a_system_call_that_leads_elsewhere(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    symbol = seen.kernel.symbol
    with lying(liar, seen) as lie:
        lie.word(symbol("sys_call_table") + 8 * 217, symbol("vfs_read"))  # getdents64
        row = one(seen.check(), "syscalls")
        assert (row["subject"], row["symbol"]) == ("sys_call_table[217]", "vfs_read")
        lie.word(symbol("sys_call_table") + 8 * 217, code_of(seen, "dummy"))
        row = next(row for row in seen.check() if row.subject == "sys_call_table[217]")
        assert (row.severity, "dummy's" in row.seen) == ("critical", True)
        lie.word(symbol("sys_call_table") + 8 * 217, lie.space.read_u64(symbol("sys_call_table")))
        row = one(seen.check(), "syscalls")
        assert row["seen"] == "the same as sys_call_table[0]"


def code_of(seen: vmi_inside.Guest, module: str) -> int:
    """Where a module's code begins."""
    return next(row.base for row in seen.kernel_modules() if row.name == module)


def test_an_interrupt_gate_that_leads_elsewhere(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    target = code_of(seen, "dummy") + 16
    with lying(liar, seen) as lie:
        gate = lie.kernel.symbol("idt_table") + 16 * 0x80
        low = lie.space.read_u64(gate) & 0x0000_FFFF_FFFF_0000
        lie.word(gate, low | target & 0xFFFF | (target >> 16 & 0xFFFF) << 48)
        lie.word(gate + 8, target >> 32)
        row = one(seen.check(), "interrupts")
    assert row["subject"] == "idt_table[128]"
    assert "dummy's" in str(row["seen"])


def test_a_table_of_the_kernel_with_a_modules_function(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    """What hides a port from /proc/net/tcp: another function in the table of operations."""
    with lying(liar, seen) as lie:
        table = lie.kernel.symbol("tcp4_seq_ops")
        lie.word(lie.member("seq_operations", table, "show"), code_of(seen, "dummy") + 16)
        row = one(seen.check(), "pointers")
    assert str(row["subject"]).startswith("tcp4_seq_ops")
    assert str(row["symbol"]).endswith("[dummy]")


def test_a_function_of_a_hidden_module(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    module, code = module_of(seen, "dummy"), code_of(seen, "dummy")
    with lying(liar, seen) as lie:
        lie.unlink(lie.member("module", module, "list"))
        lie.word(lie.member("seq_operations", lie.kernel.symbol("tcp4_seq_ops"), "show"), code + 16)
        found = seen.check().alarms
    pointers = [row for row in found if row.check == "pointers"]
    assert [row.severity for row in pointers if row.subject.startswith("tcp4_seq_ops")] == ["critical"]
    assert "nobody's" in pointers[0].seen
    assert {"modules", "pointers"} <= set(found.check.tolist())


def test_a_table_of_operations_on_a_strange_place(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    """/proc/net/tcp with operations of its own, in memory where a module once was."""
    from vmi_inside.linux.integrity.proc_entries import ProcEntries

    with seen.kernel.operation():
        entries = ProcEntries(seen.kernel)
        paths = {entries.path(row): row for row in range(len(entries.rows))}
    assert "/proc/modules" in paths
    assert "/proc/net/tcp" in {path.replace("/proc/self/net", "/proc/net") for path in paths} or any(
        path.endswith("/tcp") for path in paths
    )
    entry = int(entries.rows.address[paths["/proc/modules"]])
    with lying(liar, seen) as lie:
        free = module_space_hole(seen)
        lie.word(lie.member("proc_dir_entry", entry, "proc_ops"), free)
        row = one(seen.check(), "operations")
    assert (row["subject"], row["address"]) == ("/proc/modules", free)


def module_space_hole(seen: vmi_inside.Guest) -> int:
    """An address among the modules that nobody has."""
    known = Reading(seen.kernel).code.modules
    assert known is not None
    return int((known.base + known.size.astype(np.uint64)).max()) + (64 << 20)


def test_a_file_with_functions_of_nobodys(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    """One open file whose table of operations leads to code that the kernel made, and that no book of it has."""
    code = next(row.address for row in seen.check(only=["modules"]) if row.subject == "code that nobody owns")
    file = next(row for row in seen.process_open_files() if row.type == "reg" and row.fd >= 0)
    with lying(liar, seen) as lie:
        table = seen.kernel.symbol("__entry_text_end") + 4096 & ~63
        operations = lie.member("file", file.address, "f_op")
        lie.write(table, lie.space.read(lie.space.read_u64(operations), lie.kernel.struct("file_operations").size))
        lie.word(lie.member("file_operations", table, "write_iter"), code + 64)
        lie.word(operations, table)
        rows = seen.check().alarms.to_dicts()
    # Its functions are nobody's, and it lies in code.
    assert [(row["check"], row["severity"], row["address"]) for row in rows] == [
        ("operations", "critical", table),
        ("operations", "high", table),
    ]
    assert all(f"pid {file.pid} " in str(row["subject"]) for row in rows)


#: A function that nothing calls while the guest is paused; its entry is traceable.
FUNCTION = "vfs_read"


@pytest.mark.parametrize("at", ["entry", "place of ftrace"])
def test_a_function_that_begins_with_a_jump(liar: LabGuest, seen: vmi_inside.Guest, at: str) -> None:
    function = seen.kernel.symbol(FUNCTION)
    target = code_of(seen, "dummy") + 16
    with lying(liar, seen) as lie:
        if at == "entry":
            lie.write(function, b"\x48\xb8" + target.to_bytes(8, "little") + b"\xff\xe0")
        else:
            place = function if lie.space.read(function, 5) in IDLE else function + 4
            lie.write(place, b"\xe9" + (target - place - 5).to_bytes(4, "little", signed=True))
        found = seen.check(only=["functions"]).alarms
    assert {row.subject.partition("+")[0] for row in found} == {FUNCTION}
    assert any(row.symbol.endswith("[dummy]") for row in found)


IDLE = (bytes.fromhex("0f1f440000"), bytes.fromhex("6666666690"))


def test_a_jump_into_the_padding_between_functions(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    """Where the kernel has room for somebody's code."""
    function = seen.kernel.symbol(FUNCTION)
    padding = seen.kernel.symbol("__entry_text_end") + 4096 & ~63
    assert seen.kernel.space.read(padding - 64, 128) == b"\xcc" * 128
    with lying(liar, seen) as lie:
        place = function if lie.space.read(function, 5) in IDLE else function + 4
        lie.write(place, b"\xe9" + (padding - place - 5).to_bytes(4, "little", signed=True))
        found = seen.check(only=["functions"]).alarms
    assert {row.subject.partition("+")[0] for row in found} == {FUNCTION}
    assert any("between its functions" in row.seen for row in found)


def test_a_breakpoint_of_nobodys(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    with lying(liar, seen) as lie:
        lie.write(seen.kernel.symbol(FUNCTION), b"\xcc")
        found = seen.check(only=["functions"]).alarms
    assert any(row.subject == FUNCTION and "breakpoint" in row.seen for row in found)


def test_a_netfilter_hook_of_nobodys(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    """A hook whose function is where no code is: found by the kernel's own list of hooks."""
    with lying(liar, seen) as lie:
        net = lie.kernel.symbol("init_net")
        padding = seen.kernel.symbol("__entry_text_end") + 4096 & ~63
        # An array of one hook, in the room behind the kernel's entry code.
        lie.word(padding, 1)
        entries = lie.member("nf_hook_entries", padding, "hooks")
        lie.word(entries, module_space_hole(seen))
        lie.word(lie.member("net", net, "nf.hooks_ipv4"), padding)
        row = one(seen.check(), "hooks")
    assert (row["subject"], row["address"]) == ("netfilter ipv4 hook 0", entries)


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


def test_kernel_code_that_can_be_written(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    """A page of the kernel's text whose entry in the page tables says that it may be written."""
    text = seen.kernel.symbol("_stext")
    with lying(liar, seen) as lie:
        at, entry = page_entry(lie, text)
        lie.physical(at, (entry | 2).to_bytes(8, "little"))
        found = seen.check(only=["rights"]).alarms
    assert {"kernel memory", "code"} == {row.subject for row in found}
    assert all(text - (2 << 20) < row.address <= text for row in found)


def page_entry(lie: Tamper, va: int) -> tuple[int, int]:
    """The physical address and the value of the entry that maps `va`."""
    paging, table = lie.space.paging, lie.space.root
    for level in range(paging.levels, 0, -1):
        at = table + (va >> paging.shift(level) & 511) * 8
        raw = lie.space.memory.read(at, 8)
        assert raw is not None
        entry = int.from_bytes(raw, "little")
        if level == 1 or (level in paging.large and entry & paging.large_bit):
            return at, entry
        table = entry & paging.address
    raise AssertionError(va)


def test_the_command(liar: LabGuest, seen: vmi_inside.Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRSH_DEFAULT_CONNECT_URI", liar.uri or "")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)

    clean = run(liar.name)
    assert (clean.returncode, len(clean.stdout.splitlines())) == (0, 1), clean.stdout
    assert "nothing found" in clean.stderr
    with lying(liar, seen) as lie:
        lie.word(lie.kernel.symbol("sys_call_table") + 8 * 217, lie.kernel.symbol("vfs_read"))
        bad = run(liar.name, "--format", "json")
        assert bad.returncode == 11, bad.stderr
        assert [row["subject"] for row in json.loads(bad.stdout)] == ["sys_call_table[217]"]
        assert run(liar.name, "--skip", "syscalls").returncode == 0
        assert run(liar.name, "--only", "syscalls", "--severity", "critical").returncode == 11
        assert "vfs_read" in run(liar.name, "--only", "syscalls").stdout
    assert "sys_call" not in run("--list").stdout
    assert run(liar.name, "--only", "nonsense").returncode == 2


# -- the image ------------------------------------------------------------------------------------------------------


def vmlinuz(guest: LabGuest) -> str:
    return str(kernel(guest.shape.kernel).vmlinuz)


def test_a_byte_within_a_function(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    """What no look at entries shows: one byte of code, one pointer of a table to another function of the kernel's."""
    place = seen.kernel.symbol(FUNCTION) + 200
    table = seen.kernel.symbol("tcp4_seq_ops")
    image = vmlinuz(liar)
    with lying(liar, seen) as lie:
        old = lie.space.read(place, 1)
        lie.write(place, bytes([old[0] ^ 0xFF]))
        row = one(seen.check(image=image), "image")
        assert row["address"] == place
        assert (row["expected"], row["seen"]) == (old.hex(), f"{old[0] ^ 0xFF:02x}")
        lie.write(place, old)
        lie.word(lie.member("seq_operations", table, "show"), lie.kernel.symbol("vfs_read"))
        row = one(seen.check(image=image), "image")
        assert str(row["symbol"]).startswith("tcp4_seq_ops")


def test_a_call_of_the_kernels_that_leads_away(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    """Where static calls are, the kernel may write another call; it must lead to somebody's code."""
    start, end = (seen.kernel.symbol(f"__{word}_static_call_sites") for word in ("start", "stop"))
    image = vmlinuz(liar)
    with lying(liar, seen) as lie:
        for entry in range(start, end, 8):
            site = entry + int.from_bytes(lie.space.read(entry, 4), "little", signed=True)
            if lie.space.read(site, 1) == b"\xe8":
                break
        away = module_space_hole(seen) - site - 5
        lie.write(site + 1, away.to_bytes(4, "little", signed=True))
        row = one(seen.check(image=image), "image")
    assert row["address"] == site


def test_images_of_others(lab_boot: Callable[..., LabGuest], tmp_path: Path) -> None:
    with lab_boot().attach() as seen:
        with pytest.raises(Unsupported, match="is not the image of the kernel that runs: Linux version 6"):
            seen.check(image=str(kernel("new-cloud").vmlinuz))
        with pytest.raises(NoSuchDomain, match="there is no such file"):
            seen.check(image=str(tmp_path / "nothing"))
        (tmp_path / "text").write_text("no kernel")
        with pytest.raises(Unsupported, match="neither vmlinuz nor vmlinux"):
            seen.check(image=str(tmp_path / "text"))


TRACING = "/sys/kernel/tracing"


def test_a_guest_that_traces_itself_tells_no_lie(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    """Functions traced, a probe set, and one within a function: told as information, also where code is compared."""
    liar.ask(f"mkdir -p {TRACING}; mount -t tracefs t {TRACING} 2>/dev/null; true")
    begin = f"""cd {TRACING} && echo 'vfs_*' >set_ftrace_filter && echo function >current_tracer &&
        echo 'p:one do_sys_openat2' >kprobe_events && echo 'r:two vfs_read' >>kprobe_events &&
        for at in 30 31 32 33 34 35 36 37 38 39 40; do
            echo "p:three vfs_write+$at" >>kprobe_events 2>/dev/null && break # where an instruction begins
        done && echo 1 >events/kprobes/enable"""
    end = f"""cd {TRACING} && echo 0 >events/kprobes/enable; echo >kprobe_events; echo nop >current_tracer;
        echo >set_ftrace_filter; umount {TRACING}"""
    try:
        liar.ask(begin)
        found = seen.check(image=vmlinuz(liar))
    finally:
        liar.ask(end, check=False)
    assert found.alarms.to_dicts() == []
    told = {row.subject for row in found if row.check == "hooks"}
    assert any(subject.startswith("ftrace ") for subject in told), told
    assert any("do_sys_openat2" in subject for subject in told), told
    assert any("vfs_write+" in subject for subject in told), told
