"""What an attached guest can be told about gates: the methods that `Guest` has for them.

Knows which part does what, and loads it when it is asked for. Nothing is done here itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from vmi_inside.control.controls import Controls

if TYPE_CHECKING:
    from vmi_inside.control.gates.placing import Outcome, Placing
    from vmi_inside.control.journal import Entry


class GateControls(Controls):
    """Operations denied to processes of the guest, and allowed again. Needs `attach(..., writable=True)`.

    Raises what `Controls` does; `ControlError` for what is not there or not known, `Conflict` for what stands already,
    `Unsafe` when a function of the kernel is traced or hooked by others, `Unsupported` for a kernel without room.
    """

    def deny(
        self,
        operation: str,
        *,
        pid: int | None = None,
        children: bool = False,
        cgroup: str | None = None,
        uid: int | None = None,
        allow: Iterable[str] = (),
        allow_loopback: bool = False,
        unix: bool = False,
        abort: bool = False,
        paths: Iterable[str] = (),
        errno: str = "EACCES",
        force: bool = False,
        reason: str = "",
        dry_run: bool = False,
    ) -> Outcome:
        """Deny an operation (`network`, `exec`, `open`, `module`, `ptrace`, `kill`) to a process, a cgroup or a user.

        The process lives on; what it asks for is refused with `errno` (EACCES or EPERM). `children` holds for its
        descendants too, those that are born later among them. `allow` are networks that `network` lets through
        ("10.0.0.0/8"), `unix` denies unix sockets as well; `abort` ends open connections that are refused now, as soon
        as the gate stands (the far end sees a reset), but for those that somebody else holds, too. `paths` are what
        `open` is limited to: files, and directories with all that is below, by whatever name they are opened; they are
        looked up as the process names them, for a cgroup or a user as process 1 does. `reason` is kept in the journal.
        `force` is needed for process 1, kernel threads, uid 0 and the cgroup "/". A dry run writes nothing, and pauses
        nothing.
        """
        from vmi_inside.control.gates.placing import Denial, networks
        from vmi_inside.control.gates.rules import Subject

        subject = Subject(pid, children, cgroup, uid)
        asked = Denial(
            operation,
            subject,
            networks(allow, loopback=allow_loopback),
            unix,
            errno,
            force,
            reason,
            abort,
            tuple(paths),
        )
        return self._placing.deny(asked, dry=dry_run)

    def allow(
        self,
        operation: str | None = None,
        *,
        pid: int | None = None,
        cgroup: str | None = None,
        uid: int | None = None,
        reason: str = "",
        dry_run: bool = False,
    ) -> Outcome:
        """Take out the gates that deny an operation to a process, a cgroup or a user.

        Without an operation: all of them; with none of pid, cgroup, uid: whomever they are for.
        """
        from vmi_inside.control.gates.rules import Subject

        nobody = pid is None and cgroup is None and uid is None
        return self._placing.allow(operation, None if nobody else Subject(pid, False, cgroup, uid), reason, dry=dry_run)

    def undo(self, number: int) -> Entry:
        """Take one change back; see `Controls.undo`. Of gates, the marks of who was born meanwhile go, or come, too."""
        from vmi_inside.control.gates.changes import KIND

        made = super().undo(number)
        undone = self._journal.find(number)
        if undone is not None and undone.kind == KIND:
            self._placing.settle(undone)
        return made

    @cached_property
    def _placing(self) -> Placing:
        from vmi_inside.control.gates.placing import Placing

        return Placing(self)
