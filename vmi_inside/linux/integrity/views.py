"""Views compared: what some ways to a thing show, and others leave out.

Knows sets of addresses alone. What the things are, and where each of them should be seen, is told by the detectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vmi_inside.types import U64, Mask, distinct


@dataclass(frozen=True, slots=True)
class View:
    """One way to find things: `seen` are the addresses that it shows, `faults` what cut it short.

    Without addresses and with `faults` it could not be had at all, and is not compared.
    """

    name: str
    seen: U64
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Missing:
    """A thing (its row) that some views lack although they should have it, and what others say."""

    row: int
    lack: tuple[str, ...]
    have: tuple[str, ...]


def union(views: Iterable[View]) -> U64:
    """All addresses that any of them shows, ascending, each once."""
    every: U64 = distinct(np.concatenate([np.empty(0, dtype=np.uint64), *(view.seen for view in views)]))
    found: U64 = every[every != 0]
    return found


def missing(address: U64, views: Sequence[tuple[View, Mask]]) -> Iterator[Missing]:
    """The things (n,) that a view lacks. Each view comes with (n,) bool: which of the things it should show."""
    seen = [np.isin(address, view.seen) for view, _ in views]
    lacking = [should & ~has for has, (_, should) in zip(seen, views, strict=True)]
    bad = np.logical_or.reduce(lacking) if lacking else np.zeros(len(address), dtype=np.bool_)
    for row in np.flatnonzero(bad).tolist():
        yield Missing(
            row,
            tuple(view.name for (view, _), lacks in zip(views, lacking, strict=True) if lacks[row]),
            tuple(view.name for (view, _), has in zip(views, seen, strict=True) if has[row]),
        )
