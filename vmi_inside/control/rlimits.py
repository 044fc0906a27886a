"""Limits on what a process may use, changed from outside, as prlimit(1) does from inside.

Knows `signal_struct.rlim` (include/linux/sched/signal.h) and the limits' numbers (include/uapi/asm-generic/resource.h).
"""

from __future__ import annotations

from typing import Final

from vmi_inside.control.rehearsal import Changing
from vmi_inside.control.signals import Target, same
from vmi_inside.errors import ControlError, Unsupported

LIMITS: Final = (
    "cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as", "locks", "sigpending",
    "msgqueue", "nice", "rtprio", "rttime",
)  # fmt: skip
UNLIMITED: Final = (1 << 64) - 1


def set_limit(change: Changing, of: Target, name: str, soft: int | None, hard: int | None) -> None:
    """Set a process's soft limit, its hard limit, or both; None leaves one as it is.

    Raises `ControlError` for a limit that there is not, or a soft one above the hard one, `Unsupported`.
    """
    if name not in LIMITS:
        raise ControlError(f"there is no limit {name!r}; there are {', '.join(LIMITS)}")
    if name == "cpu":
        raise Unsupported("the limit cpu is kept by a timer that only the kernel can set; signal the process instead")
    kernel = change.kernel
    if not same(kernel, of):
        raise ControlError(f"process {of.pid} ({of.name}) has ended")
    member = kernel.struct("signal_struct").member(f"rlim[{LIMITS.index(name)}]")
    signal = int(kernel.structs("task_struct", [of.task]).fetch("signal").pointer("signal")[0])
    at = signal + member.offset
    old = change.read(at, 16)
    now = [int.from_bytes(old[:8], "little"), int.from_bytes(old[8:], "little")]
    new = [was if given is None else given for was, given in zip(now, (soft, hard), strict=True)]
    if not 0 <= new[0] <= new[1] <= UNLIMITED:
        raise ControlError(f"{name}: a soft limit of {shown(new[0])} does not go with a hard one of {shown(new[1])}")
    change.write(at, b"".join(one.to_bytes(8, "little") for one in new), expect=old, space=of.space)


def shown(value: int) -> str:
    """A limit as people write it."""
    return "unlimited" if value == UNLIMITED else str(value)
