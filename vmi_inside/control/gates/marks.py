"""Bits in tasks that mark the descendants of a process, those that are born later among them.

Knows a word of `task_struct` that no member covers: a new task begins as a copy of its parent, holes and all
(arch_dup_task_struct, arch/x86/kernel/process.c; 5.10 to 7.2), so what stands there is inherited, whatever becomes of
the parent. Who descends from whom now is told by `rules`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside.control.gates import rules
from vmi_inside.control.gates.changes import Change
from vmi_inside.control.gates.holes import holes
from vmi_inside.control.gates.layout import Rule, Scope, State
from vmi_inside.control.gates.rules import Found
from vmi_inside.errors import ControlError
from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs
from vmi_inside.types import Mask

_WORD: Final = 4
_BITS: Final = 8 * _WORD


def choose(kernel: Kernel) -> int:
    """The offset of a word that no member of `task_struct` covers, and 0 in every task; 0 where there is none."""
    rows = rules.tasks(kernel)
    for offset in holes(kernel.struct("task_struct"), _WORD):
        if offset and not _words(kernel, rows, offset)[1].any():
            return offset
    return 0


def mark(kernel: Kernel, state: State, found: Found) -> tuple[Found, list[Change]]:
    """A bit for a process and its descendants, and the words to change. Raises `ControlError` when none is left."""
    if not state.mark:
        raise ControlError("this kernel's tasks have no unused bits to mark a process's children with")
    rows, word = _words(kernel, rules.tasks(kernel), state.mark)
    used = int(np.bitwise_or.reduce(word, initial=np.uint32(0)))
    for rule in state.rules.values():
        used |= rule.number if rule.scope == Scope.MARKED else 0
    bit = next((1 << at for at in range(_BITS) if not used >> at & 1), 0)
    if not bit:
        raise ControlError(f"no more gates for processes with their children: {_BITS} stand")
    mine = rules.descendants(rows, found.pid, found.first, np.zeros(len(rows), dtype=np.bool_))
    return replace(found, number=bit), _changes(state, rows, word, mine, set_=bit)


def unmarked(kernel: Kernel, state: State, rule: Rule) -> list[Change]:
    """The words of descendants that do not bear a rule's mark."""
    rows, word = _words(kernel, rules.tasks(kernel), state.mark)
    marked: Mask = word & np.uint32(rule.number) != 0
    missing = rules.descendants(rows, rule.pid, rule.first, marked) & ~marked
    return _changes(state, rows, word, missing, set_=rule.number)


def clear(kernel: Kernel, state: State, bits: int) -> list[Change]:
    """The words of all tasks that bear these marks."""
    rows, word = _words(kernel, rules.tasks(kernel), state.mark)
    return _changes(state, rows, word, word & np.uint32(bits) != 0, clear=bits)


def _words(kernel: Kernel, rows: Structs, offset: int) -> tuple[Structs, NDArray[np.uint32]]:
    """The tasks that can be read, and the words (n,) at that offset."""
    raw, ok = kernel.space.gather(rows.address + np.uint64(offset), _WORD)
    good = ok & ~rows.fault & (rows.address != 0)
    return rows.select(good), raw[good].view("<u4")[:, 0]


def _changes(
    state: State, rows: Structs, word: NDArray[np.uint32], which: Mask, *, set_: int = 0, clear: int = 0
) -> list[Change]:
    what = "task_struct: a word that nothing uses"
    return [
        Change(at + state.mark, old.to_bytes(_WORD, "little"), (old & ~clear | set_).to_bytes(_WORD, "little"), what)
        for at, old in zip(rows.address[which].tolist(), word[which].tolist(), strict=True)
    ]
