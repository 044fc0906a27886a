"""Counters that each CPU keeps a part of.

Knows `struct percpu_counter` (include/linux/percpu_counter.h). What is counted is left to others.
"""

from __future__ import annotations

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.types import I64, U64, Mask


def pending(kernel: Kernel, counters: U64) -> tuple[I64, Mask]:
    """What the CPUs have not yet added to `n` counters, and (n,) bool: which could be read of all of them.

    `counters` (n,) are the values of the member of that name, per-CPU addresses; 0 has nothing pending. The whole is
    `count` and this.
    """
    at = counters[:, None] + kernel.percpu_offset[None, :]
    raw, good = kernel.space.gather(at.ravel(), 4)
    parts = raw.view("<i4")[:, 0].reshape(at.shape)
    whole = good.reshape(at.shape).all(axis=1)
    none = counters == 0
    return np.where(none, 0, parts.sum(axis=1, dtype=np.int64)), whole | none
