"""What an attached guest can be told to do to its processes and settings, with its own code or by changing its data.

Knows which part does what, and how it is told in the journal. Nothing is done here itself.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vmi_inside.control.controls import Controls
from vmi_inside.errors import ControlError

if TYPE_CHECKING:
    from vmi_inside.control import rlimits
    from vmi_inside.control.journal import Entry
    from vmi_inside.control.signals import Target


class ProcessControls(Controls):
    """The hands on a guest's processes. All of it needs `attach(..., writable=True)`, but for reading a setting."""

    def call(
        self, function: str | int, *arguments: int, reason: str = "", clean: bool = True, timeout: float | None = None
    ) -> int:
        """Call a function of the guest's kernel, by its symbol or address, on a borrowed vCPU; gives RAX, unsigned.

        It runs in an interrupt: it must not sleep, nor turn interrupts on. With `clean` the vCPU was interrupted where
        no lock is held. Raises `Unsafe` when there is no such moment, or the function does not return in `timeout`
        seconds (`borrow.TIMEOUT`): the vCPU is put back then, but not what the function had begun; `NoSymbol`.
        """
        from vmi_inside.control.borrow import TIMEOUT, borrow, check

        self._transactions.check()
        check(self.kernel, self.machine)
        words = ", ".join(f"{one:#x}" for one in arguments)
        shown = function if isinstance(function, str) else f"{function:#x}"
        detail = {"function": shown, "arguments": [f"{one:#x}" for one in arguments]}
        with (
            self.transaction(reason or f"{shown}({words})", kind="call", detail=detail, code=True) as change,
            borrow(change, clean=clean) as vcpu,
        ):
            value = vcpu.call(function, *arguments, timeout=TIMEOUT if timeout is None else timeout)
            change.detail["returned"] = f"{value:#x}"
        return value

    def call_deferred(self, function: str | int, *arguments: int, timeout: float = 10.0, reason: str = "") -> int:
        """Call a function of the guest's kernel that may sleep: one of the kernel's workers does; gives RAX, unsigned.

        Raises `Unsafe` when it has not returned in `timeout` seconds: it goes on, and what stands in the guest for it
        is taken out by the next such call. Raises `NoSymbol`, and `Unsupported` for kernels in which it cannot be done.
        """
        from vmi_inside.control import deferred, work

        if len(arguments) > work.ARGUMENTS:
            raise ControlError(f"{len(arguments)} arguments; a kernel function is called with six at the most")
        address = self.kernel.symbol(function) if isinstance(function, str) else function
        words = ", ".join(f"{one:#x}" for one in arguments)
        shown = function if isinstance(function, str) else f"{function:#x}"
        calls = work.Calls(address, (arguments,))
        detail = {"function": shown, "arguments": [f"{one:#x}" for one in arguments]}
        return deferred.Deferring(self).run(lambda: calls, reason or f"{shown}({words})", detail, timeout)[0]

    def signal(self, pid: int | Iterable[int], number: int | str = signal.SIGTERM, *, force: bool = False) -> None:
        """Send a signal ("TERM", "SIGTERM", "RTMIN+1", 15) to a process, or to several.

        The guest's kernel sends it, with all its effects. Raises `ControlError` for what is no signal, and for a
        process that is not there or has ended; `Unsafe` for kernel threads and process 1 unless `force`, and when no
        vCPU can be borrowed for it.
        """
        from vmi_inside.control import signals
        from vmi_inside.control.borrow import check

        which = signals.number(number)
        self._transactions.check()
        check(self.kernel, self.machine)
        to = self._targets(pid, force)
        words = ", ".join(f"{one.pid} ({one.name})" for one in to)
        name = signals.name(which)
        detail = {"signal": name, "pids": [one.pid for one in to]}
        with self.transaction(f"{name} to {words}", kind="signal", detail=detail, code=True) as change:
            gone = signals.send(change, to, which)
            change.detail["gone"] = [one.pid for one in gone]
        if gone:
            raise ControlError(f"{', '.join(str(one.pid) for one in gone)} had ended before the signal came")

    def nice(self, pid: int | Iterable[int], value: int, *, force: bool = False) -> None:
        """Set the nice value of all threads of a process, or of several. Raises as `signal` does."""
        from vmi_inside.control.borrow import check
        from vmi_inside.control.signals import set_nice

        self._transactions.check()
        check(self.kernel, self.machine)
        to = self._targets(pid, force)
        words = ", ".join(f"{one.pid} ({one.name})" for one in to)
        detail = {"nice": value, "pids": [one.pid for one in to]}
        with self.transaction(f"nice {value} for {words}", kind="nice", detail=detail, code=True) as change:
            set_nice(change, to, value)

    def set_ids(self, pid: int, uid: int | None = None, gid: int | None = None, *, force: bool = False) -> Entry:
        """Make a process another user's, or another group's; see `credentials.set_ids`. `undo` takes it back."""
        from vmi_inside.control import credentials

        [to] = self._targets(pid, force)
        words = ", ".join(f"{name} {value}" for name, value in (("uid", uid), ("gid", gid)) if value is not None)
        return self._transactions.rehearsed(
            f"{words} for {pid} ({to.name})", "ids", {"pid": pid},
            lambda change: credentials.set_ids(change, to, uid, gid),
        )  # fmt: skip

    def drop_capabilities(self, pid: int, drop: Iterable[str] | None = None, *, force: bool = False) -> Entry:
        """Take capabilities away from a process, all when None. `undo` gives them back."""
        from vmi_inside.control import credentials

        [to] = self._targets(pid, force)
        names = None if drop is None else sorted(drop)
        words = "all capabilities" if names is None else ", ".join(names)
        return self._transactions.rehearsed(
            f"{words} taken from {pid} ({to.name})", "capabilities", {"pid": pid},
            lambda change: credentials.drop_capabilities(change, to, names),
        )  # fmt: skip

    def set_limit(
        self, pid: int, name: str, soft: int | None = None, hard: int | None = None, *, force: bool = False
    ) -> Entry:
        """Set a limit of a process (`nofile`, `as`, ...; see `rlimits.LIMITS`). `undo` takes it back."""
        return self.set_limits(pid, {name: (soft, hard)}, force=force)

    def set_limits(self, pid: int, limits: Mapping[str, rlimits.Limit], *, force: bool = False) -> Entry:
        """Set several limits of a process, (soft, hard) by their names, as one change: all of them or none.

        None leaves one of the two as it is. Raises `ControlError`, `Unsupported`; `undo` takes all back.
        """
        from vmi_inside.control import rlimits

        [to] = self._targets(pid, force)
        return self._transactions.rehearsed(
            f"limit {rlimits.words(limits)} for {pid} ({to.name})", "limit", {"pid": pid},
            lambda change: rlimits.set_limits(change, to, limits),
        )  # fmt: skip

    def sysctl(self, name: str) -> str:
        """What a setting of the guest's kernel is set to (`kernel.panic`). Needs no control.

        Raises `ControlError` when there is none, `Unsupported` for one that is more than a stored value.
        """
        from vmi_inside.control import sysctl

        return sysctl.value(self.kernel, sysctl.find_setting(self.kernel, name))

    def set_sysctl(self, name: str, value: str) -> Entry:
        """Set it, within the kernel's own bounds. `undo` takes it back. Raises as `sysctl` does."""
        from vmi_inside.control import sysctl

        setting = sysctl.find_setting(self.kernel, name)
        return self._transactions.rehearsed(
            f"{name} = {value}", "sysctl", {"name": name, "value": value},
            lambda change: sysctl.set_value(change, setting, value),
        )  # fmt: skip

    def _targets(self, pid: int | Iterable[int], force: bool) -> list[Target]:
        from vmi_inside.control.signals import targets

        self._transactions.check()
        return targets(self.kernel, [pid] if isinstance(pid, int) else pid, force=force)
