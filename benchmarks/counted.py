"""What two benchmarks share: a memory that counts, and a median."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


class Counted:
    """A memory that counts the gathers that go through it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.gathers = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def gather(self, pa: Any, out: Any) -> Any:
        self.gathers += 1
        return self._inner.gather(pa, out)


def median(action: Callable[[], object], rounds: int) -> float:
    """Median seconds of `rounds` calls, after one that does not count."""
    action()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
