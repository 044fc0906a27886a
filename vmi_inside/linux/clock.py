"""The guest's clocks: when it booted, by its own wall clock.

Knows `struct timekeeper` (include/linux/timekeeper_internal.h). Rates and clock sources are not needed here.
"""

from __future__ import annotations

import time

from vmi_inside.errors import MemoryFault, ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs
from vmi_inside.types import align_up


def timekeeper(kernel: Kernel) -> Structs:
    """The core timekeeper, one row. Raises `NoSymbol`, `NoMember`."""
    keeper = kernel.struct("timekeeper")
    base = kernel.symbol("timekeeper_data", "tk_core")  # tk_core became timekeeper_data[0] in 6.17
    holder = kernel.find_struct("tk_data")  # named since 6.13
    if holder is not None:
        return kernel.structs(keeper, [base + holder.member("timekeeper").offset])
    # Before, an anonymous struct: a sequence counter, then the timekeeper, aligned to 8.
    counter = kernel.struct("seqcount_raw_spinlock", "seqcount")
    return kernel.structs(keeper, [base + align_up(counter.size, 8)])


def wall_clock(kernel: Kernel) -> int | None:
    """Seconds since the epoch at the guest's last tick, by its own clock, or None where that cannot be told."""
    try:
        keeper = timekeeper(kernel)
        return None if keeper.fetch("xtime_sec").fault.any() else int(keeper.number("xtime_sec")[0])
    except (ProfileError, MemoryFault):
        return None


def monotonic(kernel: Kernel) -> int | None:
    """Nanoseconds of the monotonic clock at the guest's last tick, or None where that cannot be told."""
    try:
        keeper = timekeeper(kernel).fetch("tkr_mono.base", "tkr_mono.xtime_nsec", "tkr_mono.shift")
        if keeper.fault.any():
            return None
        rest = int(keeper.unsigned("tkr_mono.xtime_nsec")[0]) >> min(int(keeper.unsigned("tkr_mono.shift")[0]), 63)
        return int(keeper.number("tkr_mono.base")[0]) + rest
    except (ProfileError, MemoryFault):
        return None


def now(kernel: Kernel) -> float | None:
    """As `wall_clock`, None too where what the clock says is no date that could be."""
    seconds = wall_clock(kernel)
    return float(seconds) if seconds is not None and 0 < seconds < 2 * time.time() else None


def boot_time(kernel: Kernel) -> float | None:
    """Seconds since the epoch at which the guest booted (getboottime64), or None where that cannot be told."""
    try:
        keeper = timekeeper(kernel).fetch("offs_real", "offs_boot")
        if keeper.fault.any():
            return None
        return (int(keeper.number("offs_real")[0]) - int(keeper.number("offs_boot")[0])) / 1e9
    except (ProfileError, MemoryFault):
        return None
