"""User and system time of processes and threads, as /proc counts them.

Source: kernel/sched/cputime.c (`thread_group_cputime`, `cputime_adjust`). Times in the kernel are in nanoseconds.
"""

from __future__ import annotations

import numpy as np

from vmi_inside.types import I64, U64


def adjusted(utime: U64, stime: U64, runtime: U64) -> tuple[I64, I64]:
    """Milliseconds (n,) in user and in system mode: the tick-sampled times scaled to the precise run time.

    All three arguments are nanoseconds, (n,) uint64.
    """
    user, system, total = (part.astype(np.float64) for part in (utime, stime, runtime))
    both = user + system
    share = np.divide(system, both, out=np.zeros_like(both), where=both > 0)
    # Without a sample on one side, all of the run time counts for the other; without any, for the user side.
    in_system = np.where(stime == 0, 0.0, np.where(utime == 0, total, share * total))
    in_user = total - in_system
    return (in_user / 1e6).astype(np.int64), (in_system / 1e6).astype(np.int64)
