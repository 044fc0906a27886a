"""Signals to processes of the guest, sent by its own kernel, and other things done to whole processes.

Knows which kernel functions do that and whom they must not be done to. How they are called is left to `borrow`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from vmi_inside.control.borrow import borrow
from vmi_inside.control.places import find_process, started
from vmi_inside.control.transaction import Change
from vmi_inside.errors import ControlError, Unsafe
from vmi_inside.kernel import Kernel
from vmi_inside.linux.tasks import PF_KTHREAD, PIDTYPE_TGID

#: SEND_SIG_PRIV (include/linux/sched/signal.h): the signal comes from the kernel, and nobody's leave is asked.
_FROM_KERNEL: Final = 1
_ESRCH: Final = 3
SIGNAL_LIMIT: Final = 64


@dataclass(frozen=True, slots=True)
class Target:
    """One process, named so that no later one with its pid is meant."""

    pid: int
    name: str
    task: int
    started: int

    @property
    def space(self) -> str:
        """The space of what the kernel keeps of it; see `places`."""
        return f"task {self.pid} {self.started}"


def targets(kernel: Kernel, pids: Iterable[int], *, force: bool = False) -> list[Target]:
    """These processes. Raises `ControlError` for one that is not there, `Unsafe` for kernel threads and process 1."""
    found = []
    for pid in dict.fromkeys(pids):
        task = find_process(kernel, pid).fetch("comm", "flags")
        name = task.text("comm")[0]
        if not force:
            if int(task.unsigned("flags")[0]) & PF_KTHREAD:
                raise Unsafe(f"{pid} ({name}) is a thread of the kernel; nothing was done (--force would do it)")
            if pid == 1:
                raise Unsafe(f"1 ({name}) is every process's ancestor; nothing was done (--force would do it)")
        found.append(Target(pid, name, int(task.address[0]), started(task)))
    return found


def send(change: Change, to: Sequence[Target], number: int) -> list[Target]:
    """Send a signal to each of these processes: those that had ended meanwhile are given back.

    Raises `Unsafe` when no vCPU can be borrowed, `ControlError` when the kernel refuses.
    """
    gone: list[Target] = []
    reached: list[int] = []
    with borrow(change, clean=False) as vcpu:  # the kernel sends signals from interrupts itself, as for timers
        for one in to:
            if not same(change.kernel, one):
                gone.append(one)
                continue
            reached.append(one.pid)
            change.note(reached=reached)  # a signal cannot be taken back: the journal tells who has it, or may have it
            code = _signed(vcpu.call("do_send_sig_info", number, _FROM_KERNEL, one.task, PIDTYPE_TGID))
            if code == -_ESRCH:
                gone.append(one)
            elif code:
                raise ControlError(
                    f"the kernel refuses to send {name(number)} to {one.pid} ({one.name}): error {-code}"
                )
    return gone


def set_nice(change: Change, to: Sequence[Target], value: int) -> None:
    """Set how nice all threads of these processes are: -20 for the most urgent to 19."""
    if not -20 <= value <= 19:
        raise ControlError(f"{value} is no nice value; they go from -20 to 19")
    with borrow(change) as vcpu:
        for one in to:
            if same(change.kernel, one):
                for task in _threads(change.kernel, one):
                    vcpu.call("set_user_nice", task, value)


def number(told: int | str) -> int:
    """A signal's number: of TERM, SIGTERM, RTMIN+1, 15. Raises `ControlError`."""
    name = str(int(told) if isinstance(told, int) else told).upper().removeprefix("SIG")
    head, _, more = name.partition("+")
    try:
        found = int(name) if name.isdigit() else signal.Signals[f"SIG{head}"].value + int(more or 0)
    except (KeyError, ValueError):
        found = 0
    if not 1 <= found <= SIGNAL_LIMIT:
        raise ControlError(f"{told!r} is no signal like TERM, KILL, USR1 or 15")
    return found


def name(number: int) -> str:
    """A signal's name, as people write it."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def same(kernel: Kernel, one: Target) -> bool:
    """Whether the process still is the one that was meant. It cannot go away while the vCPU is in its interrupt."""
    try:
        task = find_process(kernel, one.pid)
    except ControlError:
        return False
    return int(task.address[0]) == one.task and started(task) == one.started


def _threads(kernel: Kernel, one: Target) -> list[int]:
    from vmi_inside.linux.tasks import PIDTYPE_PID, pids

    _, _, tasks = pids(kernel).tasks(kernel, PIDTYPE_PID)
    which = tasks.number("tgid") == one.pid
    return [int(address) for address in tasks.address[which].tolist() if address]


def _signed(value: int) -> int:
    """What an `int` function gave."""
    return ((value & 0xFFFF_FFFF) ^ 0x8000_0000) - 0x8000_0000


__all__ = ["Target", "name", "send", "set_nice", "targets"]
