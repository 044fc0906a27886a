"""The kernel's log: what `dmesg` shows, read from memory.

Where the records lie is `printk`'s knowledge; here they get their words.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside.errors import MemoryFault, ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux.printk import Records, records
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, Mask


class KernelLog(Table):
    """One row for each record, the oldest first."""

    sequence: I64  # goes up by one from record to record, never back
    time: NDArray[np.float64]  # seconds since boot
    level: Text  # emerg alert crit err warn notice info debug
    facility: Text  # kern, and what programs named that wrote to /dev/kmsg: user daemon ...
    caller: Text  # T and a thread's number; C and a CPU's, where no task ran
    text: Text  # may have several lines
    subsystem: Text  # of the device that it is about, such as pci; empty where it is about none
    device: Text  # as /dev/kmsg names it: +pci:0000:00:02.0, b8:0, n2
    finished: Mask  # or more may be put behind it


#: Levels and facilities by their numbers (include/linux/kern_levels.h, include/uapi/linux/syslog's and dmesg's words).
LEVELS: Final = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
FACILITIES: Final = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
)  # fmt: skip
_LOCAL: Final = 16
_CPU: Final = 1 << 31


def kernel_log(kernel: Kernel, columns: Iterable[str] | None = None, *, after: int | None = None) -> KernelLog:
    """All records in memory, or those with a sequence number above `after`. `columns` asks for some columns only."""
    wanted = list(KernelLog.schema if columns is None else columns)
    KernelLog.check(wanted)
    notes: tuple[str, ...] = ()
    with kernel.operation():
        try:
            found = records(kernel, after)
        except (ProfileError, MemoryFault) as error:
            found, notes = _NOTHING, (f"log: {error}",)
    faults = Faults(len(found.sequence))
    faults.mark(found.bad, "record unreadable")
    faults.mark(found.lost & ~found.bad, "text lost")
    data: dict[str, Column] = {
        "sequence": found.sequence.astype(np.int64),
        "time": found.nanoseconds / 1e9,
        "level": _LEVEL[np.clip(found.level, 0, len(LEVELS))],
        "facility": text(_facility(each) for each in found.facility.tolist()),
        "caller": text(f"C{each & ~_CPU}" if each & _CPU else f"T{each}" for each in found.caller.tolist()),
        "text": text(each.decode("utf-8", "backslashreplace") for each in found.text),
        "subsystem": text(found.subsystem),
        "device": text(found.device),
        "finished": found.finished,
        "fault": faults.column(),
    }
    return KernelLog({name: data[name] for name in dict.fromkeys((*wanted, "fault"))}, (*notes, *found.faults))


def _facility(number: int) -> str:
    if number < len(FACILITIES):
        return FACILITIES[number]
    return f"local{number - _LOCAL}" if _LOCAL <= number < _LOCAL + 8 else str(number)


_LEVEL: Final = text((*LEVELS, ""))
_NONE: Final = np.empty(0, dtype=np.uint64)
_NOTHING: Final = Records(
    _NONE, _NONE, _NONE.astype(np.int64), _NONE.astype(np.int64), _NONE.astype(np.int64), [], [], [],
    _NONE.astype(np.bool_), _NONE.astype(np.bool_), _NONE.astype(np.bool_), (),
)  # fmt: skip
