"""Exit codes: what each means, and which errors of the library end in it.

The one list of them: `vmi-inside --help` prints it, `app` goes by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmi_inside import errors
from vmi_inside.errors import VmiError


@dataclass(frozen=True, slots=True)
class Exit:
    """A code, what it means to people, and the errors that end in it (with their subclasses)."""

    code: int
    meaning: str
    errors: tuple[type[VmiError], ...] = ()


NOTHING: Final = 1
FOUND: Final = 11
UNREADABLE: Final = 8
PARTIAL: Final = 17
INTERRUPTED: Final = 130

EXITS: Final = (
    Exit(0, "done"),
    Exit(NOTHING, "nothing matched what was asked for, or another error", (VmiError,)),
    Exit(2, "wrong usage: an unknown option, column or value, a query that makes no sense", (errors.BadQuery,)),
    Exit(3, "no such guest, file or socket", (errors.NoSuchDomain,)),
    Exit(4, "the guest is not running", (errors.NotRunning,)),
    Exit(5, "permission denied", (errors.PermissionDenied,)),
    Exit(6, "no kernel found that can be read", (errors.UnknownKernel, errors.ProfileError)),
    Exit(7, "no memory dump or snapshot, or a damaged one", (errors.BadDump, errors.BadSnapshot)),
    Exit(UNREADABLE, "guest memory could not be read", (errors.MemoryFault,)),
    Exit(9, "not possible with this target, or a package is missing", (errors.Unsupported,)),
    Exit(10, "the guest ended or rebooted meanwhile", (errors.GuestGone,)),
    Exit(FOUND, "the check found something"),
    Exit(12, "the guest could not be paused, changed or called into", (errors.ControlError,)),
    Exit(13, "what is in the guest is not what the change expects", (errors.Conflict,)),
    Exit(14, "cannot be undone", (errors.NotUndoable,)),
    Exit(15, "another controller or debugger has the guest in hand", (errors.Busy,)),
    Exit(16, "refused as unsafe", (errors.Unsafe,)),
    Exit(PARTIAL, "done in part: some of it is not in the guest's memory, or time ran out"),
    Exit(18, "another tool that was run on the guest failed", (errors.ToolFailed,)),
    Exit(INTERRUPTED, "interrupted (Ctrl-C)"),
)

_BY_ERROR: Final = {error: each.code for each in EXITS for error in each.errors}


def code(error: VmiError) -> int:
    """The exit code for an error: that of the nearest class in its ancestry."""
    return next(_BY_ERROR[kind] for kind in type(error).__mro__ if kind in _BY_ERROR)


def listed() -> str:
    """The codes and their meanings, one a line."""
    return "\n".join(f"{each.code:>5}  {each.meaning}" for each in EXITS)
