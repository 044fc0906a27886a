"""Kernel stacks of tasks that do not run: the return addresses on them, all tasks side by side.

Knows how a task that was switched away from is left (`inactive_task_frame`, arch/x86/include/asm/switch_to.h) and what
the kernel's own unwinder does (`unwind_next_frame`, arch/x86/kernel/unwind_orc.c). A kernel without ORC has its stacks
scanned for what looks like return addresses, and that is said. Stacks' bytes are `sleeping`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside import ragged
from vmi_inside.errors import NoSymbol, ProfileError, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.processes.sleeping import MEMBERS, RUNS, Stacks
from vmi_inside.linux.processes.view import View
from vmi_inside.linux.symbols import orc
from vmi_inside.linux.symbols.code import Code
from vmi_inside.structs import Structs
from vmi_inside.table import Text
from vmi_inside.types import I64, U64, Mask

#: Frames of one stack, the scheduler's among them: twice as many as /proc/PID/stack shows (MAX_STACK_TRACE_DEPTH).
FRAME_LIMIT: Final = 128
#: Tasks whose stacks are read at once: all of them fit into one reading.
_TASKS: Final = ragged.TOTAL_LIMIT >> 15
#: What is no fault of a stack, as `RUNS`: its task was not asleep all the time.
RAN: Final = "ran while it was read"
_CUT: Final = "stack cut: too many frames"
_WILD: Final = "stack cut: a return address is no code's"
_EIGHT: Final = np.uint64(8)


@dataclass(slots=True)
class Frames:
    """Return addresses `address` (m,), innermost first, of the tasks `owner` (m,); sorted by task.

    `faults` are words and the tasks (n,) they apply to. `how` says where the addresses come from: orc or scan.
    """

    address: U64
    owner: I64
    how: str
    faults: list[tuple[Mask, str]] = field(default_factory=list)


def frames(kernel: Kernel, tasks: Structs, code: Code, *, only_first: bool = False) -> Frames:
    """The stacks of these tasks, as /proc/PID/stack has them: without what is the scheduler's own.

    Tasks whose stack is gone (dead ones) have none. `only_first` gives the innermost frame alone. Call it in an
    `operation()`. Raises `NoMember` where the kernel keeps stacks otherwise.
    """
    tasks.fetch(*MEMBERS)
    tables = _tables(kernel, code) if tasks.pointer("stack").any() else None
    parts, faults = [], []
    for start in range(0, len(tasks), _TASKS):
        rows = np.arange(start, min(start + _TASKS, len(tasks)))
        part = _part(kernel, tasks.select(rows), code, tables, only_first)
        parts.append((part.address, part.owner + start))
        for which, word in part.faults:
            whole = np.zeros(len(tasks), dtype=np.bool_)
            whole[rows] = which
            faults.append((whole, word))
    address, owner = (np.concatenate([part[side] for part in parts] or [np.zeros(0, np.int64)]) for side in (0, 1))
    how = "orc" if tables is not None or not len(address) else "scan"
    return Frames(address.astype(np.uint64), owner, how, faults)


def _tables(kernel: Kernel, code: Code) -> orc.Orc | None:
    try:
        return orc.Orc(kernel, code)
    except (ProfileError, Unsupported):
        return None


def _part(kernel: Kernel, tasks: Structs, code: Code, tables: orc.Orc | None, only_first: bool) -> Frames:
    """The stacks of not too many tasks."""
    stacks = Stacks(kernel, tasks)
    if tables is None:
        found = _scan(kernel, stacks, code, only_first)
    else:
        found = _Unwinder(kernel, stacks, tables, code).run(only_first)
    later = kernel.structs(tasks.type, tasks.address).fetch(*MEMBERS)
    moved = (later.pointer("thread.sp") != stacks.low) | (later.number("on_cpu") != 0)
    found.faults += [*stacks.faults, (moved & stacks.usable, RAN)]
    return found


def wait_channel(view: View) -> Text:
    """The function (n,) that each task waits in, beneath the scheduler (`get_wchan`); empty for what runs or is dead.

    A task that ran meanwhile counts as running: what was read is no stack of one moment. Raises `NoSymbol` where the
    kernel cannot be unwound.
    """
    code = Code(view.kernel)
    found = frames(view.kernel, view.tasks, code, only_first=True)
    if found.how != "orc":
        raise NoSymbol("__start_orc_unwind")
    ran = np.zeros(len(view.tasks), dtype=np.bool_)
    for which, word in found.faults:
        if word in (RUNS, RAN):
            ran |= which
    wild = np.zeros(len(view.tasks), dtype=np.bool_)
    wild[found.owner] = code.owners(found.address) == ""
    for which, word in (*found.faults, (wild, _WILD)):
        if word not in (RUNS, RAN):
            view.faults.mark(which & ~ran, word)
    out = np.full(len(view.tasks), "", dtype=object)
    out[found.owner] = [name.partition("+")[0] for name in code.symbols(found.address, returns=True).tolist()]
    out[ran | wild] = ""
    return out


class _Unwinder:
    """All stacks at once, one frame of each a round."""

    def __init__(self, kernel: Kernel, stacks: Stacks, tables: orc.Orc, code: Code) -> None:
        self.stacks = stacks
        self.tables = tables
        self.code = code
        frame = kernel.struct("inactive_task_frame")
        self._regs = {name: kernel.struct("pt_regs").member(name).offset for name in ("ip", "cs", "sp", "bp")}
        self._schedules = _scheduler(kernel)
        count = len(stacks.low)
        row = np.flatnonzero(stacks.usable)
        self.ip, self.bp, self.sp = (np.zeros(count, dtype=np.uint64) for _ in range(3))
        ok = np.zeros(count, dtype=np.bool_)
        ok[row] = True
        for target, member in ((self.ip, "ret_addr"), (self.bp, "bp")):
            target[row], good = stacks.word(row, stacks.low[row] + np.uint64(frame.member(member).offset))
            ok[row] &= good
        self.sp[row] = stacks.low[row] + np.uint64(frame.size)
        #: A task that never ran begins where it will go on, not behind a call.
        fork = [at for at in map(kernel.profile.find_symbol, ("ret_from_fork_asm", "ret_from_fork")) if at is not None]
        self.exact = np.isin(self.ip, np.array(fork, dtype=np.uint64))
        self.live = np.flatnonzero(ok)
        self.torn: list[tuple[NDArray[np.intp], str]] = [(row[~ok[row]], "stack cut: no frame at its beginning")]

    def run(self, only_first: bool) -> Frames:
        addresses: list[U64] = []
        owners: list[NDArray[np.intp]] = []
        for _ in range(FRAME_LIMIT):
            if not len(self.live):
                break
            hidden = _within(self.ip[self.live], self._schedules)
            seen = self.live[~hidden]
            addresses.append(self.ip[seen])
            owners.append(seen)
            if only_first:
                self.live = self.live[hidden]
            self._step()
        self._cut(self.live, _CUT)
        address, owner = np.concatenate([*addresses, self.ip[:0]]), np.concatenate([*owners, self.live[:0]])
        order = np.argsort(owner, kind="stable")
        faults = []
        for rows, word in self.torn:
            which = np.zeros(len(self.ip), dtype=np.bool_)
            which[rows] = True
            faults.append((which, word))
        return Frames(address[order], owner[order], "orc", faults)

    def _cut(self, rows: NDArray[np.intp], word: str) -> None:
        self.torn.append((rows, word))

    def _step(self) -> None:
        """One frame up; what comes to its end, or to what cannot be, lives no longer."""
        row = self.live
        at = self.ip[row] - np.where(self.exact[row], np.uint64(0), np.uint64(1))
        entries = self.tables.find(at)
        blank = ~orc.found(entries)
        if blank.any():
            # Code without tables (eBPF's, trampolines) has frame pointers; what is no code ends it here.
            named = np.zeros(len(row), dtype=np.bool_)
            named[blank] = self.code.owners(at[blank]) != ""
            kernels = _within(at, self.code.kernel_ranges[0][1:]) if self.code.kernel_ranges else named
            self._cut(row[blank & ~named], _WILD)
            self._cut(row[blank & named & kernels], "stack cut: no unwind information")
            pointed = blank & named & ~kernels
            entries = orc.Entries(
                np.where(pointed, orc.CALL, entries.type), np.where(pointed, orc.BP, entries.sp_reg),
                np.where(pointed, orc.PREV_SP, entries.bp_reg), np.where(pointed, 16, entries.sp_offset),
                np.where(pointed, -16, entries.bp_offset),
            )  # fmt: skip
        onward = np.flatnonzero((entries.type >= orc.CALL) & (entries.type <= orc.REGS_PARTIAL))
        row, entries = row[onward], entries.take(onward)
        cfa, ok = self._frame(row, entries)
        ip, sp, bp, user, good = self._caller(row, entries, cfa)
        ok &= good & (user | (sp > self.sp[row]))
        self._cut(row[~ok], "stack cut: a frame makes no sense")
        ok &= ~user  # beneath is the user's program: the end
        row = row[ok]
        self.ip[row], self.sp[row], self.bp[row] = ip[ok], sp[ok], bp[ok]
        self.exact[row] = entries.type[ok] != orc.CALL
        self.live = row

    def _frame(self, row: NDArray[np.intp], entries: orc.Entries) -> tuple[U64, Mask]:
        """Where each frame ends (k,): the stack pointer before the call, or where the registers were pushed."""
        base = np.where(entries.sp_reg == orc.SP, self.sp[row], self.bp[row])
        cfa = base + entries.sp_offset.view(np.uint64)
        ok: Mask = np.isin(entries.sp_reg, (orc.SP, orc.BP, orc.BP_INDIRECT))
        through = np.flatnonzero(entries.sp_reg == orc.BP_INDIRECT)
        if len(through):
            cfa[through], good = self.stacks.word(row[through], cfa[through])
            ok[through] &= good
        return cfa, ok

    def _caller(self, row: NDArray[np.intp], entries: orc.Entries, cfa: U64) -> tuple[U64, U64, U64, Mask, Mask]:
        """The caller's ip, sp and bp (k,), whether it is the user's program, and which could be told."""
        call, regs = entries.type == orc.CALL, entries.type == orc.REGS
        # Of the short ones only what the processor pushed is there: from ip on.
        frame = cfa - np.where(entries.type == orc.REGS_PARTIAL, np.uint64(self._regs["ip"]), np.uint64(0))
        ip, ok = self.stacks.word(row, np.where(call, cfa - _EIGHT, frame + np.uint64(self._regs["ip"])))
        sp, bp = cfa.copy(), self.bp[row].copy()
        user = np.zeros(len(row), dtype=np.bool_)
        pushed = np.flatnonzero(~call)
        if len(pushed):
            mine, at = row[pushed], frame[pushed]
            code, good = self.stacks.word(mine, at + np.uint64(self._regs["cs"]))
            user[pushed] = (code & np.uint64(3) == np.uint64(3)) & good
            sp[pushed], whole = self.stacks.word(mine, at + np.uint64(self._regs["sp"]))
            ok[pushed] &= good & whole
        where = np.where(entries.bp_reg == orc.PREV_SP, cfa, bp) + entries.bp_offset.view(np.uint64)
        where = np.where(regs & (entries.bp_reg == orc.UNDEFINED), frame + np.uint64(self._regs["bp"]), where)
        saved = np.flatnonzero(np.isin(entries.bp_reg, (orc.PREV_SP, orc.BP)) | regs)
        bp[saved], good = self.stacks.word(row[saved], where[saved])
        ok[saved] &= good
        return ip, sp, bp, user, ok


def _scan(kernel: Kernel, stacks: Stacks, code: Code, only_first: bool) -> Frames:
    """Every word on the stacks that points into known code: what was called in its order, and what lies between."""
    word, owner = stacks.all_words()
    text = (code.owners(word) != "") & ~_within(word, _scheduler(kernel))
    word, owner = word[text], owner[text]
    first = np.flatnonzero(np.diff(owner, prepend=-1)) if len(owner) else owner
    within = np.arange(len(owner)) - np.repeat(first, np.diff(first, append=len(owner)))
    kept = within < (1 if only_first else FRAME_LIMIT)
    cut = np.zeros(len(stacks.low), dtype=np.bool_)
    cut[owner[within == FRAME_LIMIT]] = True
    return Frames(word[kept], owner[kept], "scan", [(cut, _CUT)])


def _scheduler(kernel: Kernel) -> tuple[int, int]:
    """The code that every sleeping task is in, and that no stack trace shows (`in_sched_functions`)."""
    start, end = (kernel.profile.find_symbol(f"__sched_text_{side}") for side in ("start", "end"))
    return (start, end) if start is not None and end is not None and start < end else (0, 0)


def _within(address: U64, bounds: tuple[int, int]) -> Mask:
    inside: Mask = address - np.uint64(bounds[0]) < np.uint64(bounds[1] - bounds[0])
    return inside
