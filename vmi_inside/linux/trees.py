"""Trees whose nodes keep their children on lists, put in order: each before those below it.

Knows neither what the nodes are nor how they are linked: that is the asker's matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.types import I64, U64, distinct
from vmi_inside.walk import Walk

#: Real trees are some levels deep.
DEPTH_LIMIT: Final = 64
NODE_LIMIT: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Tree:
    """Nodes (n,) in order, their depths, and the row of the node above each: -1 for a root."""

    address: U64
    depth: I64
    parent: I64
    faults: tuple[str, ...]


def descend(roots: U64, children: Callable[[U64], Walk], what: str) -> Tree:
    """The trees below `roots` (n,), these first in each; `children` gives those of many nodes, with `owner` their row.

    Rounds are as many as the deepest tree has levels, each as long as its longest list.
    """
    below: dict[int, list[int]] = {}
    faults: dict[str, None] = {}
    above = distinct(roots)
    seen = set(above.tolist())
    for _ in range(DEPTH_LIMIT):
        found = children(above)
        faults |= dict.fromkeys(found.faults)
        level = []
        order = np.argsort(found.owner, kind="stable")
        for owner, node in zip(found.owner[order].tolist(), found.address[order].tolist(), strict=True):
            if node in seen or len(seen) > NODE_LIMIT:
                faults[f"{what}: runs in a circle, or has more than {NODE_LIMIT} nodes"] = None
                continue
            seen.add(node)
            level.append(node)
            below.setdefault(int(above[owner]), []).append(node)
        if not level:
            break
        above = np.array(level, dtype=np.uint64)
    else:
        faults[f"{what}: cut after {DEPTH_LIMIT} levels"] = None
    rows: list[tuple[int, int, int]] = []
    todo = [(node, 0, -1) for node in reversed(roots.tolist())]
    while todo:
        node, depth, parent = todo.pop()
        todo += [(child, depth + 1, len(rows)) for child in reversed(below.get(node, []))]
        rows.append((node, depth, parent))
    address, depths, parents = zip(*rows, strict=True) if rows else ((), (), ())
    return Tree(
        np.array(address, dtype=np.uint64), np.array(depths, dtype=np.int64), np.array(parents, dtype=np.int64),
        tuple(faults),
    )  # fmt: skip
