"""Lies of the kernel's code, pointers and pages, planted in real guests: each must be found, and nothing else."""

from __future__ import annotations

import pytest

import vmi_inside
from tests.lab.guest import LabGuest
from tests.lies import FUNCTION, IDLE, code_of, module_of, module_space_hole, one, padding, vmlinuz
from tests.tamper import Tamper, lying

pytest_plugins = ("tests.liars",)


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


def test_a_file_with_functions_of_nobodys(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    """One open file whose table of operations leads to code that the kernel made, and that no book of it has."""
    code = next(row.address for row in seen.check(only=["modules"]) if row.subject == "code that nobody owns")
    file = next(row for row in seen.process_open_files() if row.type == "reg" and row.fd >= 0)
    with lying(liar, seen) as lie:
        table = padding(seen)
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


def test_a_jump_into_the_padding_between_functions(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    """Where the kernel has room for somebody's code."""
    function = seen.kernel.symbol(FUNCTION)
    free = padding(seen)
    with lying(liar, seen) as lie:
        place = function if lie.space.read(function, 5) in IDLE else function + 4
        lie.write(place, b"\xe9" + (free - place - 5).to_bytes(4, "little", signed=True))
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
        free = padding(seen)
        # An array of one hook, in the room behind the kernel's entry code.
        lie.word(free, 1)
        entries = lie.member("nf_hook_entries", free, "hooks")
        lie.word(entries, module_space_hole(seen))
        lie.word(lie.member("net", net, "nf.hooks_ipv4"), free)
        row = one(seen.check(), "hooks")
    assert (row["subject"], row["address"]) == ("netfilter ipv4 hook 0", entries)


def test_kernel_code_that_can_be_written(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    """A page of the kernel's text whose entry in the page tables says that it may be written."""
    text = seen.kernel.symbol("_stext")
    with lying(liar, seen) as lie:
        at, entry = page_entry(lie, text)
        lie.physical(at, (entry | 2).to_bytes(8, "little"))
        found = seen.check(only=["rights"]).alarms
    assert {"kernel memory", "code"} == {row.subject for row in found}
    assert all(text - (2 << 20) < row.address <= text for row in found)


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
