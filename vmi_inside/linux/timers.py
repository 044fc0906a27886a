"""Timers that wait: the high-resolution ones of /proc/timer_list, and those of the timer wheels, which no file shows.

Where they wait is `timer_bases`' knowledge; here is what they are (`hrtimer`, `timer_list`), when they end, and which
function is then called. Timers that are being served at this moment wait nowhere, and are not among them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside.errors import ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux import clock
from vmi_inside.linux.symbols.code import Code
from vmi_inside.linux.timer_bases import high_resolution, wheels
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64


class Timers(Table):
    """One row for each timer."""

    cpu: I64
    kind: Text  # hrtimer; timer, of a wheel
    base: Text  # monotonic realtime boottime tai, with " soft" behind; standard local global deferrable
    expires: I64  # ns of that clock; of a wheel's, ticks (jiffies)
    remaining: NDArray[np.float64]  # seconds; below 0 it is overdue
    function: Text  # which is called then
    owner: Text  # whose code that is: kernel, a module's name, bpf ...; empty for nobody's
    work: Text  # of delayed work, the function that is queued then
    pid: I64  # of the thread that is woken then; -1 where none is
    address: U64  # of struct hrtimer or timer_list


_FUNCTION: Final = ("function", "__function")
#: Functions that wake a task: the struct that the timer is a part of, and what it calls the timer.
_SLEEPERS: Final = {"hrtimer_wakeup": ("hrtimer_sleeper", "timer"), "process_timeout": ("process_timer", "timer")}
_DELAYED: Final = "delayed_work_timer_fn"


def timers(kernel: Kernel, columns: Iterable[str] | None = None) -> Timers:
    """All timers that wait. `columns` asks for some columns only."""
    wanted = list(Timers.schema if columns is None else columns)
    Timers.check(wanted)
    with kernel.operation():
        tick, notes = _tick(kernel)
        now, jiffies = clock.monotonic(kernel), kernel.number(8, "jiffies_64")
        notes += () if now is not None else ("remaining: the clock cannot be read",)
        fine, coarse = high_resolution(kernel), wheels(kernel)
        fine.rows.fetch("node.expires", _FUNCTION)
        coarse.rows.fetch("expires", "function")
        faults = Faults(len(fine.rows) + len(coarse.rows))
        faults.mark(_both(fine.rows.fault, coarse.rows.fault), "timer unreadable")
        faults.mark(~_both(fine.sure, coarse.sure), "not where the tree has it")
        expires = _both(fine.rows.number("node.expires"), coarse.rows.number("expires"))
        left = (fine.rows.number("node.expires") - fine.offset - (now or 0)) / 1e9
        ticks = (coarse.rows.unsigned("expires") - np.uint64(jiffies)).astype(np.int64)
        address = _both(fine.rows.pointer(_FUNCTION), coarse.rows.pointer("function"))
        code = Code(kernel)
        owners = code.owners(address)
        faults.mark((owners == "") & (address != 0), "function in nobody's code")
        data: dict[str, Column] = {
            "cpu": _both(fine.cpu, coarse.cpu),
            "kind": np.repeat(text(("hrtimer", "timer")), (len(fine.rows), len(coarse.rows))),
            "base": _both(fine.base, coarse.base),
            "expires": expires,
            "remaining": _both(left if now is not None else np.zeros(len(left)), ticks * (tick / 1e9)),
            "owner": owners,
            "address": _both(fine.rows.address, coarse.rows.address),
        }
        if "function" in wanted:
            data["function"] = code.symbols(address)
        if "work" in wanted:
            data["work"] = _work(kernel, code, data["address"], address, faults)
        if "pid" in wanted:
            data["pid"] = _pids(kernel, data["address"], address, faults)
        data["fault"] = faults.column()
    table = Timers(
        {name: data[name] for name in dict.fromkeys((*wanted, "fault"))}, (*notes, *fine.faults, *coarse.faults)
    )
    # A wheel's slots stand in no order of time.
    return table.where(np.lexsort((data["remaining"], data["base"], data["cpu"], data["kind"])))


def _both(first: Column, second: Column) -> Column:
    return np.concatenate((first, second))


def _tick(kernel: Kernel) -> tuple[int, tuple[str, ...]]:
    """Nanoseconds between ticks, as the clock that counts them has it (kernel/time/jiffies.c)."""
    try:
        source = kernel.object("clocksource", "clocksource_jiffies").fetch("mult", "shift")
    except ProfileError as error:
        return 0, (f"remaining: {error}",)
    tick = int(source.unsigned("mult")[0]) >> min(int(source.unsigned("shift")[0]), 32)
    return tick, () if tick else ("remaining: the length of a tick is not known",)


def _parts(
    kernel: Kernel, timer: U64, function: U64, called: str, holder: str, member: str
) -> tuple[I64, Structs | None]:
    """The rows whose timers call that function, and the structs that those are a part of."""
    symbol, ctype = kernel.profile.find_symbol(called), kernel.find_struct(holder)
    rows = np.flatnonzero(function == np.uint64(symbol)) if symbol else np.empty(0, dtype=np.int64)
    if ctype is None or not len(rows):
        return rows, None
    return rows, kernel.structs(ctype, timer[rows] - np.uint64(ctype.member(member).offset))


def _work(kernel: Kernel, code: Code, timer: U64, function: U64, faults: Faults) -> Text:
    out = np.full(len(timer), "", dtype=object)
    rows, holders = _parts(kernel, timer, function, _DELAYED, "delayed_work", "timer")
    if holders is not None:
        queued = holders.pointer("work.func")
        names = code.symbols(queued)
        names[queued == 0] = ""
        out[rows] = names
        _mark(faults, rows[holders.fault], len(timer), "work unreadable")
    return out


def _pids(kernel: Kernel, timer: U64, function: U64, faults: Faults) -> I64:
    out = np.full(len(timer), -1, dtype=np.int64)
    for called, (holder, member) in _SLEEPERS.items():
        rows, holders = _parts(kernel, timer, function, called, holder, member)
        if holders is None:
            continue
        tasks = holders.follow("task")
        known = tasks.address != 0
        out[rows[known]] = tasks.number("pid")[known]
        bad = holders.fault | tasks.fault
        out[rows[bad]] = -1
        _mark(faults, rows[bad], len(timer), "task unreadable")
    return out


def _mark(faults: Faults, rows: I64, count: int, word: str) -> None:
    which = np.zeros(count, dtype=np.bool_)
    which[rows] = True
    faults.mark(which, word)
