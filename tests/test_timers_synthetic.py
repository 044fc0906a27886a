"""Timers of made-up guests: trees and wheels of two CPUs, and guests that lie about theirs."""

from __future__ import annotations

import pytest

from tests.synthetic import LinuxGuest
from tests.synthetic.guest import CPUS, HOLE, NOWHERE
from vmi_inside.linux.timers import timers

STRUCTS = """
rb_root 8
    rb_node 0 *rb_node
rb_node 24
    __rb_parent_color 0 u64
    rb_right 8 *rb_node
    rb_left 16 *rb_node
rb_root_cached 16
    rb_root 0 rb_root
timerqueue_head 16
    rb_root 0 rb_root_cached
timerqueue_node 32
    node 0 rb_node
    expires 24 i64
hrtimer_clock_base 64
    clockid 12 i32
    active 32 timerqueue_head
    offset 56 i64
hrtimer_cpu_base 576
    clock_base 64 hrtimer_clock_base[8]
hrtimer 64
    node 0 timerqueue_node
    function 40 *void
hrtimer_sleeper 72
    timer 0 hrtimer
    task 64 *task_struct
timer_list 40
    entry 0 hlist_node
    expires 16 u64
    function 24 *void
process_timer 48
    timer 0 timer_list
    task 40 *task_struct
work_struct 32
    func 24 *void
delayed_work 88
    work 0 work_struct
    timer 32 timer_list
timer_base 200
    vectors 40 hlist_head[20]
clocksource 64
    mult 16 u32
    shift 20 u32
tkr 56
    shift 12 u32
    xtime_nsec 16 u64
    base 24 i64
timekeeper 280
    tkr_mono 0 tkr
tk_data 320
    timekeeper 8 timekeeper
"""
NOW, JIFFIES, OFFSET = 5_000_000_000, (1 << 32) - 7, 1_700_000_000 * 10**9
FUNCTIONS = ("tick_nohz_handler", "hrtimer_wakeup", "process_timeout", "delayed_work_timer_fn", "work_of_ours")


class TimersGuest(LinuxGuest):
    """Two CPUs, each with eight trees and two wheels, in per-CPU memory."""

    def __init__(self) -> None:
        super().__init__()
        self.profile.extend(STRUCTS)
        self.profile.rooms = {"timer_bases": 430}
        self.put("timekeeper", self.profile.symbols["timekeeper_data"] + 8, tkr_mono__base=NOW - 300,
                 tkr_mono__xtime_nsec=300 << 8, tkr_mono__shift=8)  # fmt: skip
        self.word(self.global_("jiffies_64", 8), JIFFIES)
        self.put("clocksource", self.global_("clocksource_jiffies", 64), mult=4_000_000 << 8, shift=8)
        start = self.global_("_stext", 8)
        self.code = {name: self.global_(name, 16) for name in FUNCTIONS}
        self.global_("_etext", 8)
        self.profile.names = {at: name for name, at in self.code.items()} | {start: "_stext"}
        self.profile.symbols |= {"hrtimer_bases": 0x2000, "timer_bases": 0x3000}
        for cpu in range(CPUS):
            for tree, clock in enumerate((1, 0, 7, 11) * 2):
                self.put("hrtimer_clock_base", self.tree(cpu, tree), clockid=clock, offset=OFFSET if clock == 0 else 0)

    def tree(self, cpu: int, tree: int) -> int:
        return self.percpu[cpu] + 0x1000 + 64 + 64 * tree

    def fine(self, cpu: int, tree: int, *planted: tuple[str, int], task: int = 0) -> list[int]:
        """High-resolution timers that hang in one tree, to the right of one another."""
        link, above, made = self.tree(cpu, tree) + 32, 0, []
        for function, expires in planted:
            at = self.new("hrtimer_sleeper", task=task)
            called = self.code[function] if function in self.code else int(function, 0)
            self.put("hrtimer", at, node__expires=expires, function=called)
            self.word(at, above)
            self.word(link, at)
            link, above = at + 8, at
            made.append(at)
        return made

    def coarse(
        self, cpu: int, wheel: int, slot: int, kind: str, offset: int, function: str, expires: int, **members: int
    ) -> int:
        """A timer in a slot of a wheel, in front of those that are there; a part of a struct of that kind."""
        at = self.new(kind, **members) + offset
        head = self.percpu[cpu] + 0x2000 + 200 * wheel + 40 + 8 * slot
        self.put("timer_list", at, entry__next=self.space.read_u64(head), expires=expires, function=self.code[function])
        self.word(head, at)
        return at


def populate() -> TimersGuest:
    guest = TimersGuest()
    task = guest.task(77, "sleep").task
    guest.fine(0, 0, ("tick_nohz_handler", NOW + 4_000_000), ("hrtimer_wakeup", NOW + 10**9), task=task)
    guest.fine(1, 5, ("hrtimer_wakeup", OFFSET + NOW - 10**9))
    guest.coarse(0, 0, 3, "process_timer", 0, "process_timeout", JIFFIES + 250, task=task)
    guest.coarse(0, 0, 3, "timer_list", 0, "tick_nohz_handler", JIFFIES - 25)
    work = guest.code["work_of_ours"]
    guest.coarse(1, 1, 19, "delayed_work", 32, "delayed_work_timer_fn", JIFFIES + 25, work__func=work)
    return guest.finish()  # type: ignore[return-value]


def test_every_column() -> None:
    table = timers(populate().kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert [row[:9] for row in table] == [
        (0, "hrtimer", "monotonic", NOW + 4_000_000, 0.004, "tick_nohz_handler", "kernel", "", -1),
        (0, "hrtimer", "monotonic", NOW + 10**9, 1, "hrtimer_wakeup", "kernel", "", 77),
        (1, "hrtimer", "realtime soft", OFFSET + NOW - 10**9, -1, "hrtimer_wakeup", "kernel", "", -1),
        (0, "timer", "standard", JIFFIES - 25, -0.1, "tick_nohz_handler", "kernel", "", -1),
        (0, "timer", "standard", JIFFIES + 250, 1, "process_timeout", "kernel", "", 77),
        (1, "timer", "deferrable", JIFFIES + 25, 0.1, "delayed_work_timer_fn", "kernel", "work_of_ours", -1),
    ]
    assert timers(populate().kernel, ["cpu", "owner"]).columns == ("cpu", "owner", "fault")


def test_code_that_is_nobodys() -> None:
    guest = populate()
    guest.fine(1, 2, ("0xffff888000100000", 5))
    table = timers(guest.kernel)
    row = table[int((table.base == "boottime").argmax())]
    assert (row.function, row.owner, row.fault) == ("0xffff888000100000", "", "function in nobody's code")


@pytest.mark.parametrize("wild", [NOWHERE, HOLE, (1 << 64) - 8])
def test_wild_pointers_mark_their_rows_only(wild: int) -> None:
    guest = populate()
    first, _ = guest.fine(0, 1, ("hrtimer_wakeup", 1), ("tick_nohz_handler", 2), task=wild)
    guest.word(first + 16, wild)
    guest.word(guest.percpu[1] + 0x2000 + 40, wild)
    table = timers(guest.kernel)
    assert len(table) == 8
    assert [row.fault for row in table if row.fault] == ["task unreadable"]
    assert table.notes == ("high-resolution timers: a node could not be read", "timers: a node could not be read")


def test_circles_end() -> None:
    guest = populate()
    first, second = guest.fine(0, 2, ("hrtimer_wakeup", 1), ("hrtimer_wakeup", 2))
    guest.word(second + 8, first)
    last = guest.coarse(0, 1, 0, "timer_list", 0, "process_timeout", 5)
    guest.word(last, last)
    table = timers(guest.kernel)
    assert len(table) == 9
    assert len(table.notes) == 2
    guest.word(second, second)  # another parent
    assert "not where the tree has it" in set(timers(guest.kernel).fault)


def test_clocks_that_are_not_known() -> None:
    guest = populate()
    guest.put("clocksource", guest.profile.symbols["clocksource_jiffies"], mult=0, shift=(1 << 32) - 1)
    del guest.profile.symbols["timekeeper_data"]
    table = timers(guest.kernel)
    assert table.notes == ("remaining: the length of a tick is not known", "remaining: the clock cannot be read")
    assert not table.remaining.any()
    del guest.profile.symbols["clocksource_jiffies"]
    assert "clocksource_jiffies" in timers(guest.kernel).notes[0]
