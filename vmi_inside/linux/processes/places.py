"""Where a process stands: directories, terminal, session, container, and whether its executable still has a name.

Knows `fs_struct` (include/linux/fs_struct.h), `signal_struct.pids` and `tty` (include/linux/sched/signal.h) and
`tty_struct.name`. Open files are left to others.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from typing import Final

import numpy as np

from vmi_inside.linux.files.paths import paths
from vmi_inside.linux.processes.view import TaskColumn, View
from vmi_inside.table import Column, Text, text
from vmi_inside.types import I64, Mask

#: Slots of `signal_struct.pids` (enum pid_type, include/linux/pid_types.h).
PIDTYPE_PGID: Final = 2
PIDTYPE_SID: Final = 3
_PLACES: Final = ("pwd", "root")
_ENDS: Final = ("dentry", "mnt")
_PSEUDO: Final = re.compile(r"pts(\d+)")


class Placed(View):
    """Processes, and the directories that they have as theirs."""

    @cached_property
    def _directories(self) -> tuple[Text, Mask]:
        """Working directories (n,), and behind them roots (n,); most are the same few."""
        roots = self.noted(
            self.tasks.follow("fs").fetch(*(f"{each}.{end}" for each in _PLACES for end in _ENDS)), "cwd"
        )
        dentry, mount = (np.concatenate([roots.pointer(f"{each}.{end}") for each in _PLACES]) for end in _ENDS)
        found, ok = paths(self.kernel, dentry, mount)
        return text(found), ok

    def directory(self, which: int, word: str) -> Text:
        """The working directory (0) or the root (1) of each."""
        found, ok = self._directories
        mine = slice(which * len(self.tasks), (which + 1) * len(self.tasks))
        self.faults.mark(~ok[mine], f"{word} incomplete")
        return found[mine]

    @cached_property
    def memberships(self) -> tuple[Text, Text]:
        """The container and the unit of systemd that each is in."""
        from vmi_inside.linux.processes.containers import memberships

        return memberships(self)


def on_disk(view: View) -> I64:
    """1 where the executable has a name, 0 where it was unlinked or never had one, -1 where there is none."""
    file = view.mm.pointer("exe_file")
    entries = view.kernel.structs("file", file).follow("f_path.dentry").fetch("d_hash.pprev")
    view.noted(entries, "executable")
    named = (entries.pointer("d_hash.pprev") != 0).astype(np.int64)
    return np.where(entries.address == 0, np.int64(-1), named)


def tty(view: View) -> Text:
    """Controlling terminals as ps calls them: `pts/3`, `ttyS0`; empty without one."""
    unique, back = np.unique(view.signal.pointer("tty"), return_inverse=True)
    terminals = view.kernel.structs("tty_struct", unique)
    names = text(_PSEUDO.sub(r"pts/\1", name) for name in terminals.text("name"))
    view.faults.mark(terminals.fault[back], "terminal unreadable")
    return names[back]


def _group(kind: int, word: str) -> Callable[[View], Column]:
    def make(view: View) -> Column:
        """The number, in the initial namespace, of the process that the group or session began with."""
        unique, back = np.unique(view.signal.pointer(f"pids[{kind}]"), return_inverse=True)
        numbers = view.pid.type.member("numbers").offset
        upid = view.kernel.struct("upid")
        first = view.kernel.structs(upid, np.where(unique == 0, np.uint64(0), unique + np.uint64(numbers)))
        found = first.number("nr")
        view.faults.mark(first.fault[back], f"{word} unreadable")
        return found[back]

    return make


COLUMNS: Final[dict[str, TaskColumn[Placed]]] = {
    "cwd": TaskColumn(lambda view: view.directory(0, "cwd"), ("fs",)),
    "root": TaskColumn(lambda view: view.directory(1, "root"), ("fs",)),
    "on_disk": TaskColumn(on_disk, ("mm", "flags")),
    "tty": TaskColumn(tty, ("signal",)),
    "pgroup": TaskColumn(_group(PIDTYPE_PGID, "process group"), ("signal",)),
    "session": TaskColumn(_group(PIDTYPE_SID, "session"), ("signal",)),
    "container": TaskColumn(lambda view: view.memberships[0], ("cgroups",)),
    "unit": TaskColumn(lambda view: view.memberships[1], ("cgroups",)),
    "oom_score_adj": TaskColumn(lambda view: view.signal.number("oom_score_adj"), ("signal",)),
}
