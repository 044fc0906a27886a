"""Processes as a tree, as `ps f` and `pstree` show it.

Knows numbers and parents' numbers, which come from a guest: parents may be missing, or go round in a circle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_DEEPEST: Final = 24  # levels drawn; deeper ones are written as a number, or a long chain would fill the disk


def grow(own: Sequence[int], parent: Sequence[int]) -> tuple[list[int], list[int], list[bool]]:
    """Row numbers parents first, siblings in the order given; each row's depth; whether it is its siblings' last.

    A row whose parent is not there is a root. Rows that are their own ancestors come last, the first of them as root.
    """
    rows = range(len(own))
    at = {number: row for row, number in reversed(list(enumerate(own)))}
    above = [at.get(number, -1) for number in parent]
    below: dict[int, list[int]] = {}
    for row in rows:
        below.setdefault(above[row] if above[row] != row else -1, []).append(row)
    order: list[int] = []
    depth, last, seen = [0] * len(own), [True] * len(own), [False] * len(own)
    # Whom no root reaches is in a circle or below one: any of these then begins a tree.
    for root in (*below.get(-1, ()), *rows):
        stack = [root]
        while stack:
            row = stack.pop()
            if seen[row]:
                continue
            seen[row] = True
            order.append(row)
            children = [child for child in below.get(row, ()) if not seen[child]]
            for child in children:
                depth[child], last[child] = depth[row] + 1, child == children[-1]
            stack += reversed(children)
    return order, [depth[row] for row in order], [last[row] for row in order]


def circles(own: Sequence[int], parent: Sequence[int], depth: Sequence[int]) -> list[int]:
    """Numbers of rows of a tree in order that are roots although their parents are there: circles begin with them."""
    there = set(own)
    return [
        me for me, above, level in zip(own, parent, depth, strict=True) if not level and above in there and above != me
    ]


def branches(depth: Sequence[int], last: Sequence[bool], ascii_only: bool = False) -> list[str]:
    """What to draw before the name of each row of a tree in order; roots have nothing before them."""
    bar, tee, end = ("|  ", "|- ", "`- ") if ascii_only else ("│  ", "├─ ", "└─ ")
    out, open_levels = [], [""] * (_DEEPEST + 1)
    for level, final in zip(depth, last, strict=True):
        if level > _DEEPEST:
            out.append("".join(open_levels[1:]) + f"({level}) ")
            continue
        out.append("".join(open_levels[1:level]) + ((end if final else tee) if level else ""))
        open_levels[level] = "   " if final else bar
    return out
