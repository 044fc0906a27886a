"""Limits on what a process may use, changed from outside, as prlimit(1) does from inside.

Knows `signal_struct.rlim` (include/linux/sched/signal.h) and the limits' numbers (include/uapi/asm-generic/resource.h).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vmi_inside.control.rehearsal import Changing
from vmi_inside.control.signals import Target, same
from vmi_inside.errors import ControlError, Unsupported

LIMITS: Final = (
    "cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as", "locks", "sigpending",
    "msgqueue", "nice", "rtprio", "rttime",
)  # fmt: skip
UNLIMITED: Final = (1 << 64) - 1


#: A soft and a hard limit; None leaves one as it is.
Limit = tuple[int | None, int | None]


def set_limits(change: Changing, of: Target, limits: Mapping[str, Limit]) -> None:
    """Set limits of a process, by their names.

    Raises `ControlError` for a limit that there is not, or a soft one above the hard one, `Unsupported`.
    """
    numbers = {name: number(name) for name in limits}
    if "cpu" in limits:
        raise Unsupported("the limit cpu is kept by a timer that only the kernel can set; signal the process instead")
    kernel = change.kernel
    if not same(kernel, of):
        raise ControlError(f"process {of.pid} ({of.name}) has ended")
    signal = int(kernel.structs("task_struct", [of.task]).fetch("signal").pointer("signal")[0])
    writes = []
    for name, wanted in limits.items():
        at = signal + kernel.struct("signal_struct").member(f"rlim[{numbers[name]}]").offset
        old = change.read(at, 16)
        writes.append((at, _changed(name, old, wanted), old))
    change.apply(writes, space=of.space)


def number(name: str) -> int:
    """A limit's number (RLIMIT_...). Raises `ControlError` where there is no such limit."""
    if name not in LIMITS:
        raise ControlError(f"there is no limit {name!r}; there are {', '.join(LIMITS)}")
    return LIMITS.index(name)


def words(limits: Mapping[str, Limit]) -> str:
    """Limits as people write them: nofile=64:128, as=unlimited:."""
    return ", ".join(
        f"{name}={':'.join('' if one is None else _shown(one) for one in limit)}" for name, limit in limits.items()
    )


def _changed(name: str, old: bytes, wanted: Limit) -> bytes:
    now = [int.from_bytes(old[:8], "little"), int.from_bytes(old[8:], "little")]
    new = [was if given is None else given for was, given in zip(now, wanted, strict=True)]
    if not 0 <= new[0] <= new[1] <= UNLIMITED:
        raise ControlError(f"{name}: a soft limit of {_shown(new[0])} does not go with a hard one of {_shown(new[1])}")
    return b"".join(one.to_bytes(8, "little") for one in new)


def _shown(value: int) -> str:
    return "unlimited" if value == UNLIMITED else str(value)
