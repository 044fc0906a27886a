"""Kernel stacks of made-up guests: every kind of frame, and stacks and tables that lie."""

from __future__ import annotations

from typing import Any

import pytest

from tests.synthetic.guest import HOLE, NOWHERE
from tests.synthetic.stacks import FRAMES, STACK_SIZE, StackGuest
from vmi_inside.linux.processes.processes import processes
from vmi_inside.linux.processes.stacks import ProcessStack, process_stack
from vmi_inside.linux.processes.threads import threads
from vmi_inside.linux.processes.unwind import FRAME_LIMIT

KINDS = pytest.mark.parametrize(
    "kind", [{}, {"older": True}, {"renumbered": True}, {"scattered": True}],
    ids=["6.4", "before 6.4", "registers renumbered", "scattered"],
)  # fmt: skip
WILD = pytest.mark.parametrize("wild", [NOWHERE, HOLE, (1 << 64) - 8, 8, 0x1234_5678_9ABC_DEF0])


def names(table: ProcessStack, tid: int) -> list[str]:
    return [row.symbol.partition("+")[0] for row in table if row.tid == tid]


def fault(table: ProcessStack, tid: int) -> str:
    found = {row.fault for row in table if row.tid == tid}
    assert len(found) == 1
    return found.pop()


def crowd(**kind: Any) -> StackGuest:
    """Two honest sleepers, and one at 10 that is about to lie."""
    guest = StackGuest(**kind)
    for pid in (1, 10, 11):
        guest.asleep(guest.task(pid, f"task{pid}"), "plain", "framed", "plain")
    return guest


def honest(guest: StackGuest) -> ProcessStack:
    """The table, after a look at those that do not lie."""
    table = process_stack(guest.finish().kernel)
    for tid in (1, 11):
        assert names(table, tid) == ["plain", "framed", "plain", "entry"]
        assert fault(table, tid) == ""
    return table


@KINDS
def test_every_kind_of_frame(kind: dict[str, Any]) -> None:
    guest = StackGuest(**kind)
    chains = {
        1: ("plain", "small", "plain"),
        2: ("framed", "framed", "plain", "framed"),
        3: ("saves_bp", "framed", "saves_bp", "plain", "framed"),
        4: ("plain", "interrupted", "plain", "framed"),
        5: ("short", "plain"),
        6: ("saves_bp", "realigned", "plain"),
        7: ("schedule", "plain", "schedule", "plain"),
        8: (),
    }
    for pid, chain in chains.items():
        guest.asleep(guest.task(pid, f"task{pid}"), *chain, user=pid % 2 == 1)
    guest.finish()
    table = process_stack(guest.kernel)
    assert (table.notes, set(table.fault), set(table.how)) == ((), {""}, {"orc"})
    for pid, chain in chains.items():
        end = ["entry" if pid % 2 else "forked"]
        assert names(table, pid) == [name for name in chain if name != "schedule"] + end, pid
    first = table.where(table.tid == 1)
    assert first.frame.tolist() == [0, 1, 2, 3]
    assert first.symbol.tolist()[0] == "plain+0x20"
    assert first.address.tolist()[0] == guest.code["plain"] + 32
    waits = {row.pid: row.wchan for row in processes(guest.kernel, ["pid", "wchan"])}
    assert (waits[1], waits[2], waits[7], waits[8]) == ("plain", "framed", "plain", "forked")


def test_threads_and_processes_chosen() -> None:
    guest = crowd()
    guest.asleep(guest.task(12, "thread", leader=11), "small")
    guest.finish()
    table = process_stack(guest.kernel, ["tid", "symbol"], pids=frozenset((11,)))
    assert table.columns == ("tid", "symbol", "fault")
    assert set(table.tid.tolist()) == {11, 12}
    assert {row.tid: row.wchan for row in threads(guest.kernel, ["tid", "wchan"])}[12] == "small"
    with pytest.raises(AttributeError, match="no column 'colour'"):
        process_stack(guest.kernel, ["colour"])


def test_rounds_do_not_grow_with_tasks() -> None:
    def gathers(count: int) -> int:
        guest = StackGuest()
        for pid in range(1, count + 1):
            guest.asleep(guest.task(pid, "task"), *("plain", "framed", "small") * (1 + pid % 3))
        guest.finish()
        assert len({row.tid for row in process_stack(guest.kernel, ["tid"])}) == count
        return guest.memory.gathers

    assert gathers(120) <= gathers(12) + 8


def test_what_runs_and_what_is_dead() -> None:
    guest = crowd()
    guest.give(guest.tasks[10], on_cpu=1)
    guest.task(20, "dead", exit_state=0x20)
    table = honest(guest)
    assert fault(table, 10).startswith("runs")
    assert [(row.address, row.symbol, row.how) for row in table if row.tid == 10] == [(0, "", "")]
    assert 20 not in table.tid
    rows = {row.pid: row for row in processes(guest.kernel, ["pid", "wchan"])}
    assert (rows[10].wchan, rows[10].fault, rows[20].wchan) == ("", "", "")


@WILD
def test_stack_pointers_that_are_none(wild: int) -> None:
    guest = crowd(scattered=True)
    guest.give(guest.tasks[10], thread__sp=wild)
    assert "outside of its stack" in fault(honest(guest), 10)
    guest.give(guest.tasks[10], stack=wild & ~7, thread__sp=(wild & ~7) + 4096)
    assert fault(honest(guest), 10)


def test_a_stack_pointer_at_the_very_end() -> None:
    guest = crowd()
    stack = guest.space.read_u64(guest.tasks[10].task + guest.offset("task_struct", "stack"))
    for room in (8, 48, 56, 64):
        guest.give(guest.tasks[10], thread__sp=stack + STACK_SIZE - room)
        assert fault(honest(guest), 10).startswith("stack cut")
    guest.give(guest.tasks[10], thread__sp=stack + 4097)
    assert "outside of its stack" in fault(honest(guest), 10)


@WILD
def test_return_addresses_that_are_none(wild: int) -> None:
    guest = crowd()
    sp = guest.asleep(guest.tasks[10], "plain", "plain", "plain")
    guest.word(sp + 56 + 24 - 8 + 40, wild)
    table = honest(guest)
    assert "no code" in fault(table, 10)
    assert names(table, 10)[:1] == ["plain"]


@WILD
def test_a_first_return_address_that_is_none(wild: int) -> None:
    guest = crowd()
    sp = guest.asleep(guest.tasks[10], "plain")
    guest.word(sp + guest.offset("inactive_task_frame", "ret_addr"), wild)
    rows = {row.pid: row for row in processes(guest.finish().kernel, ["pid", "wchan"])}
    assert (rows[10].wchan, rows[10].fault) == ("", "stack cut: a return address is no code's")
    assert (rows[1].wchan, rows[1].fault) == ("plain", "")


@WILD
def test_frame_pointers_that_lead_nowhere(wild: int) -> None:
    guest = crowd()
    sp = guest.asleep(guest.tasks[10], "framed", "plain")
    for value in (wild, sp, sp - 4096, sp + 5):
        guest.word(sp + guest.offset("inactive_task_frame", "bp"), value)
        table = honest(guest)
        assert "makes no sense" in fault(table, 10)
        assert names(table, 10) == ["framed"]


def test_frames_without_end() -> None:
    guest = crowd()
    sp = guest.asleep(guest.tasks[10], "small")
    for at in range(sp + 56, sp + 4096, 8):
        guest.word(at, guest.back("small"))
    table = honest(guest)
    assert fault(table, 10) == "stack cut: too many frames"
    assert 0 < len(names(table, 10)) <= FRAME_LIMIT


@pytest.mark.parametrize("function", ["untold", "strange"])
def test_code_of_which_the_tables_say_nothing(function: str) -> None:
    guest = crowd()
    guest.asleep(guest.tasks[10], function, "plain")
    table = honest(guest)
    assert fault(table, 10).startswith("stack cut")
    assert names(table, 10) == [function]


@pytest.mark.parametrize("index", [0xFFFFFFFF, 1 << 20, 0])
def test_an_index_that_lies(index: int) -> None:
    guest = crowd()
    block = len(FRAMES) + 5
    guest.asleep(guest.tasks[10], "filler_5", "plain")
    guest.write(guest.index + 4 * block, index.to_bytes(4, "little"))
    if index:
        assert fault(honest(guest), 10).startswith("stack cut")
    else:  # the search is longer, and finds the same
        assert names(honest(guest), 10) == ["filler_5", "plain", "entry"]


@pytest.mark.parametrize("symbol", ["__start_orc_unwind", "orc_lookup", "__start_orc_unwind_ip"])
def test_tables_that_are_nowhere(symbol: str) -> None:
    guest = crowd()
    guest.finish()
    guest.profile.symbols[symbol] = NOWHERE
    table = process_stack(guest.kernel)
    assert set(table.tid.tolist()) == {1, 10, 11}
    assert table.notes or all(table.fault)


def test_a_kernel_without_tables_is_scanned_and_says_so() -> None:
    guest = crowd()
    guest.finish()
    del guest.profile.symbols["orc_lookup"]
    table = process_stack(guest.kernel)
    assert any("scanned" in note for note in table.notes)
    assert set(table.how) == {"scan"}
    assert names(table, 1) == ["plain", "framed", "plain", "entry"]
    rows = processes(guest.kernel, ["pid", "wchan"])
    assert rows.wchan.tolist() == ["", "", ""]
    assert any("wchan" in note for note in rows.notes)
