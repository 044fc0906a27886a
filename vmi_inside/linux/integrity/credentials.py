"""Credentials that no honest way leads to: the kernel's own, another process's, or changed where they lie.

Knows `struct cred` and who may share one (include/linux/cred.h, kernel/cred.c): the threads of one process, nobody
else; and that a change of user goes with a change of the `user_struct` whose processes are counted. What credentials
allow is left to others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.opened import opened
from vmi_inside.linux.integrity.findings import Finding
from vmi_inside.linux.integrity.reading import Reading
from vmi_inside.linux.memory.vmas import user_memory
from vmi_inside.linux.tasks import PF_KTHREAD, PIDTYPE_PID
from vmi_inside.structs import Structs
from vmi_inside.types import I64, U64, Mask, distinct

_S_ISUID: Final = 0o4000
_IDS: Final = ("uid.val", "euid.val", "suid.val", "fsuid.val")


def forged_credentials(kernel: Kernel, reading: Reading) -> Iterator[Finding]:
    """Tasks with credentials that are not theirs."""
    number, _, tasks = reading.pids.tasks(kernel, PIDTYPE_PID)
    tasks.fetch("cred", "real_cred", "tgid", "flags", "comm", "mm", "real_parent")
    names = tasks.text("comm")
    group = tasks.number("tgid")

    def row_of(row: int, severity: str, expected: str, seen: str, address: int, detail: str = "") -> Finding:
        return Finding(severity, f"pid {number[row]} ({names[row]})", expected, seen, address, detail=detail)

    init = np.uint64(kernel.profile.find_symbol("init_cred") or 0)
    own, real = tasks.pointer("cred"), tasks.pointer("real_cred")
    for row in np.flatnonzero(~tasks.fault & ((own == init) | (real == init)) & (init != 0)).tolist():
        yield row_of(row, "critical", "credentials of its own", "init_cred, the kernel's", int(init))
    # Credentials by the process that has them as its own.
    holder, first = np.unique(real, return_index=True)
    at = np.searchsorted(holder, own)
    at[at == len(holder)] = 0
    shared = _shared(real, group, init)
    borrowed = (own != real) & (holder[at] == own) & (group[first[at]] != group) & (own != init)
    for row in np.flatnonzero(shared & ~tasks.fault).tolist():
        others = sorted(set(group[real == real[row]].tolist()) - {int(group[row])})
        yield row_of(
            row, "high", "credentials that other processes do not have", f"those of pid {', '.join(map(str, others))}",
            int(real[row]),
        )  # fmt: skip
    for row in np.flatnonzero(borrowed & ~tasks.fault).tolist():
        other = group[first[at[row]]]
        yield row_of(row, "medium", "acting with credentials of its own", f"with those of pid {other}", int(own[row]))
    cred = kernel.structs("cred", real).fetch(*_IDS, "user")
    for row in np.flatnonzero(_changed(cred)).tolist():
        user = int(cred.follow("user").number("uid.val")[row])
        yield row_of(
            row, "high", f"uid {user}, for which it is counted", f"uid {int(cred.number('uid.val')[row])}",
            int(real[row]), "credentials were changed where they lie",
        )  # fmt: skip
    yield from _risen(kernel, tasks, names, number, cred)


def _shared(real: U64, group: I64, init: np.uint64) -> Mask:
    """Which tasks (n,) have real credentials that a task of another process has, too."""
    order = np.lexsort((group, real))
    same = (real[order][1:] == real[order][:-1]) & (group[order][1:] != group[order][:-1])
    several = distinct(real[order][1:][same])
    shared: Mask = np.isin(real, several) & (real != 0) & (real != init)
    return shared


def _changed(cred: Structs) -> Mask:
    """Which credentials (n,) have another user than the one whose processes they are counted with."""
    if not cred.type.member("user").type.target.has("uid.val"):
        return np.zeros(len(cred), dtype=np.bool_)
    users = cred.follow("user")
    changed: Mask = users.number("uid.val") != cred.number("uid.val")
    changed &= ~cred.fault & ~users.fault & (users.address != 0)
    return changed


def _risen(kernel: Kernel, tasks: Structs, names: list[str], number: I64, cred: Structs) -> Iterator[Finding]:
    """Processes of root whose parent is none, and whose executable did not make them so. Told, not accused."""
    at = {address: row for row, address in enumerate(tasks.address.tolist())}
    parent = np.array([at.get(address, -1) for address in tasks.pointer("real_parent").tolist()], dtype=np.intp)
    root = cred.number("euid.val") == 0
    ids = np.stack([cred.number(name) for name in _IDS])
    below = (parent >= 0) & root & (ids[:, parent] != 0).all(axis=0) & ~cred.fault & ~cred.fault[parent]
    below &= (tasks.number("flags") & PF_KTHREAD == 0) & (tasks.pointer("mm") != 0) & (number == tasks.number("tgid"))
    rows = np.flatnonzero(below)
    if not len(rows):
        return
    files = user_memory(kernel, tasks.select(rows)).follow("exe_file")
    mode = opened(kernel, files).mode
    for row, bits in zip(rows.tolist(), mode.tolist(), strict=True):
        if not bits & _S_ISUID:
            yield Finding(
                "info", f"pid {number[row]} ({names[row]})", "root's by way of root's, or of a setuid executable",
                f"a child of pid {number[parent[row]]} ({names[parent[row]]}), which is not root's",
                int(tasks.address[row]),
            )  # fmt: skip
