"""Signals of processes, and who traces whom: what /proc/PID/status and `ptrace` know.

Knows `sigpending`, `sighand_struct` (include/linux/sched/signal.h), `task_struct.jobctl` (include/linux/sched/jobctl.h)
and the flags of ptrace (include/linux/ptrace.h).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.bits import words
from vmi_inside.linux.names import task_names
from vmi_inside.linux.processes import states
from vmi_inside.linux.processes.view import TaskColumn, View, process_table
from vmi_inside.linux.tasks import PIDTYPE_PID
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Table, Text, text
from vmi_inside.types import I64, U64

#: Signals by number (arch/x86/include/uapi/asm/signal.h), from 1.
SIGNALS: Final = (
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
)  # fmt: skip
#: From here on they are those of real time, as `kill -l` counts them: glibc keeps the first two for itself.
_REALTIME: Final = 34
_LAST: Final = 64
_SIG_IGN: Final = 1
#: Tables of handlers that are read at once.
_TABLES: Final = 1 << 13
_STOP_SIGNAL: Final = 0xFFFF  # JOBCTL_STOP_SIGMASK
_TRACED: Final = 1  # PT_PTRACED
#: Bits of `task_struct.ptrace` (PT_OPT_FLAG_SHIFT, include/uapi/linux/ptrace.h).
_FLAGS: Final = {
    3: "tracesysgood", 4: "tracefork", 5: "tracevfork", 6: "traceclone", 7: "traceexec", 8: "tracevforkdone",
    9: "traceexit", 10: "traceseccomp", 16: "seized", 23: "exitkill", 24: "suspend_seccomp",
}  # fmt: skip
_SETS: Final = ("pending", "shared", "blocked", "ignored", "caught")


class ProcessSignals(Table):
    """One row for each process; sets of signals as words, and beside them as the numbers of /proc/PID/status."""

    pid: I64
    name: Text
    pending: Text  # for its first thread alone: INT,TERM,34 ...
    shared: Text  # pending for the process
    blocked: Text  # by its first thread
    ignored: Text
    caught: Text
    pending_mask: U64
    shared_mask: U64
    blocked_mask: U64
    ignored_mask: U64
    caught_mask: U64
    stop_signal: Text  # what stopped it, where it is stopped or traced
    tracer: I64  # thread that traces it; 0 for none
    ptrace: Text  # how: seized, tracefork, exitkill ...
    tracees: Text  # threads that it traces, joined by commas


def signal_name(number: int) -> str:
    """What a signal is called: `TERM`, `RTMIN+2` (as glibc's programs count); its number where it has no name."""
    if 0 < number <= len(SIGNALS):
        return SIGNALS[number - 1]
    if number < _REALTIME or number > _LAST:
        return str(number)
    return f"RTMIN+{number - _REALTIME}" if number > _REALTIME else "RTMIN"


class _View(View):
    """Processes and their signals."""

    @cached_property
    def _handlers(self) -> tuple[U64, U64]:
        """Which signals are ignored and caught (n,), read once for each table of handlers."""
        unique, back = np.unique(self.tasks.pointer("sighand"), return_inverse=True)
        ignored, caught = np.zeros(len(unique), dtype=np.uint64), np.zeros(len(unique), dtype=np.uint64)
        fault = np.zeros(len(unique), dtype=np.bool_)
        for start in range(0, len(unique), _TABLES):  # each is 2 KiB
            part = slice(start, start + _TABLES)
            tables = self.kernel.structs("sighand_struct", unique[part]).fetch("action")
            handler = _first_words(tables, "action", "sa.sa_handler")
            bits = np.uint64(1) << np.arange(handler.shape[1], dtype=np.uint64)
            ignored[part] = np.where(handler == _SIG_IGN, bits, np.uint64(0)).sum(axis=1, dtype=np.uint64)
            caught[part] = np.where(handler > _SIG_IGN, bits, np.uint64(0)).sum(axis=1, dtype=np.uint64)
            fault[part] = tables.fault
        self.faults.mark(fault[back], "signal handlers unreadable")
        return ignored[back], caught[back]

    def mask(self, name: str) -> U64:
        """A set of signals (n,) as a number: bit 0 is signal 1."""
        if name in ("ignored", "caught"):
            return self._handlers[name == "caught"]
        if name == "shared":
            shared = self.noted(self.tasks.follow("signal").fetch("shared_pending.signal"), "signal struct")
            return _number(shared, "shared_pending.signal")
        return _number(self.tasks, "pending.signal" if name == "pending" else "blocked")

    def stop_signal(self) -> Text:
        """What stopped it: of a traced one the signal that its tracer is told of, else what stopped the group."""
        letter = states.letters(self.tasks.number(states.STATE), self.tasks.number("exit_state"))
        traced, stopped = letter == "t", letter == "T"
        told = self.tasks.type.member("last_siginfo").type.target
        infos = self.kernel.structs(told, np.where(traced, self.tasks.pointer("last_siginfo"), np.uint64(0)))
        code = infos.number("si_signo")
        self.noted(infos, "stop signal")
        # Without one it is the group's stop that its tracer sees.
        code = np.where((traced | stopped) & (code == 0), self.tasks.number("jobctl") & _STOP_SIGNAL, code)
        return text(signal_name(each) if each else "" for each in code.tolist())

    @cached_property
    def _traced(self) -> tuple[I64, I64, U64]:
        """Of every traced thread: its number, its tracer's, and the tracer's process as `signal_struct`."""
        number, _, threads = self.every.tasks(self.kernel, PIDTYPE_PID)
        threads.fetch("ptrace", "parent")
        rows = np.flatnonzero(threads.number("ptrace"))
        tracers = threads.select(rows).follow("parent").fetch("pid", "signal")
        return number[rows], tracers.number("pid"), tracers.pointer("signal")

    def tracer(self) -> I64:
        """The thread that traces each process's first, as the initial namespace numbers it."""
        traced = self.tasks.number("ptrace") != 0
        parents = self.kernel.structs(self.tasks.type, np.where(traced, self.tasks.pointer("parent"), np.uint64(0)))
        found = parents.number("pid")
        self.noted(parents, "tracer")
        return found

    def tracees(self) -> Text:
        """The threads that any thread of each process traces."""
        number, _, holder = self._traced
        mine: dict[int, list[str]] = {}
        for signal, thread in zip(holder.tolist(), number.tolist(), strict=True):
            mine.setdefault(signal, []).append(str(thread))
        mine.pop(0, None)
        return text(",".join(mine.get(each, ())) for each in self.tasks.pointer("signal").tolist())


def _first_words(rows: Structs, array: str, member: str) -> U64:
    """Of an array of structs that was fetched, that word of each: (n, as many as there are signals)."""
    found = rows.type.member(array).type
    at = found.target.member(member).offset
    each = np.ascontiguousarray(rows[array]).reshape(len(rows), found.count, found.target.size)
    return np.ascontiguousarray(each[:, :_LAST, at : at + 8]).view("<u8")[:, :, 0]


def _number(rows: Structs, member: str) -> U64:
    """A `sigset_t` as one number."""
    rows.fetch(member)
    return np.ascontiguousarray(rows[member]).view("<u8")[:, 0]


def _flag(bit: int) -> str:
    return _FLAGS.get(bit, f"bit_{bit}")


def _ptrace(view: _View) -> Column:
    return words(view.tasks.unsigned("ptrace") & ~np.uint64(_TRACED), _flag)


def _names(name: str) -> Callable[[_View], Column]:
    return lambda view: words(view.mask(name), lambda bit: signal_name(bit + 1))


def _masks(name: str) -> Callable[[_View], Column]:
    return lambda view: view.mask(name)


_MEMBERS: Final = {"pending": ("pending.signal",), "shared": ("signal",), "blocked": ("blocked",),
                   "ignored": ("sighand",), "caught": ("sighand",)}  # fmt: skip
_COLUMNS: Final[dict[str, TaskColumn[_View]]] = {
    "pid": TaskColumn(lambda view: view.number),
    "name": TaskColumn(lambda view: text(task_names(view.kernel, view.tasks)), ("comm", "flags")),
    **{name: TaskColumn(_names(name), _MEMBERS[name]) for name in _SETS},
    **{f"{name}_mask": TaskColumn(_masks(name), _MEMBERS[name]) for name in _SETS},
    "stop_signal": TaskColumn(_View.stop_signal, (states.STATE, "exit_state", "last_siginfo", "jobctl")),
    "tracer": TaskColumn(_View.tracer, ("ptrace", "parent")),
    "ptrace": TaskColumn(_ptrace, ("ptrace",)),
    "tracees": TaskColumn(_View.tracees, ("signal",)),
}


def process_signals(
    kernel: Kernel, columns: Iterable[str] | None = None, *, pids: frozenset[int] | None = None
) -> ProcessSignals:
    """The signals of all processes, or of those in `pids`; `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have.
    """
    return process_table(kernel, ProcessSignals, _COLUMNS, columns, pids, _View)
