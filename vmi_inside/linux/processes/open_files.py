"""Open files: one row for each descriptor of each process, and for its working directory, root and executable.

What `lsof` shows. Who holds which file is `descriptors`' knowledge, what a file is `opened`'s; sockets have a table of
their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Final

import numpy as np

from vmi_inside import ragged
from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.descriptors import DESCRIPTOR_LIMIT, MOVED, descriptors, moved
from vmi_inside.linux.files.opened import Opened, opened
from vmi_inside.linux.memory.vmas import user_memory
from vmi_inside.linux.names import task_names
from vmi_inside.linux.tasks import CHANGED, changed
from vmi_inside.linux.tasks import pids as all_pids
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask


class OpenFiles(Table):
    """One row for each open file of a process; osquery's column names where it has them."""

    pid: I64
    name: Text  # of the process
    fd: I64  # -1, -2, -3 for what is no descriptor: cwd, rtd, txt
    descriptor: Text  # the number; or lsof's words: cwd, rtd (root), txt (executable)
    path: Text  # as /proc/PID/fd/N says: socket:[inode], anon_inode:[eventfd], a deleted file's with " (deleted)"
    type: Text  # reg dir chr blk fifo sock, eventfd epoll timerfd signalfd inotify pidfd bpf perf, memfd, ns ...
    access: Text  # r, w, u (both); empty for cwd, rtd, txt and O_PATH
    flags: Text  # in octal, as fdinfo says: O_* and whether it is closed on exec (02000000)
    offset: I64  # bytes
    inode: I64
    device: Text  # of the file system, major:minor
    size: I64  # bytes
    deleted: Mask  # no name leads to it: unlinked, or never named (memfd)
    address: U64  # of the struct file; 0 for cwd and rtd


#: What is no descriptor: number, lsof's word.
_PLACES: Final = ((-1, "cwd"), (-2, "rtd"), (-3, "txt"))
_ACCESS: Final = text(("r", "w", "u", ""))  # O_ACCMODE; 3 opens for ioctl alone
_O_PATH: Final = 0o10000000
_O_CLOEXEC: Final = 0o2000000


class _Files:
    """What is open: `task` (n,) row of the task, `fd` (n,), `file` (n,) address; places stand before descriptors."""

    def __init__(self, kernel: Kernel, number: I64, tasks: Structs) -> None:
        self.kernel = kernel
        self.number = number
        self.tasks = tasks
        found = self._found = descriptors(kernel, tasks)
        roots = tasks.follow("fs").fetch("pwd.dentry", "pwd.mnt", "root.dentry", "root.mnt")
        memory = user_memory(kernel, tasks).fetch("exe_file")
        self.unreadable = roots.fault | memory.fault
        cwd, rtd = (np.flatnonzero(roots.pointer(f"{name}.dentry")) for name in ("pwd", "root"))
        txt = np.flatnonzero(memory.pointer("exe_file"))
        task = np.concatenate((cwd, rtd, txt, found.task))
        fd = np.concatenate((*(np.full(len(rows), at[0]) for at, rows in zip(_PLACES, (cwd, rtd, txt), strict=True)),
                             found.fd))  # fmt: skip
        none = np.zeros(len(cwd) + len(rtd), dtype=np.uint64)
        file = np.concatenate((none, memory.pointer("exe_file")[txt], found.file))
        dentry = np.concatenate((roots.pointer("pwd.dentry")[cwd], roots.pointer("root.dentry")[rtd]))
        mount = np.concatenate((roots.pointer("pwd.mnt")[cwd], roots.pointer("root.mnt")[rtd]))
        order = np.lexsort((np.where(fd < 0, -1 - fd, fd), fd >= 0, task))
        self.task, self.fd, self.file = task[order], fd[order], file[order]
        # Each struct file, and each place without one, is looked at once.
        unique, back = np.unique(file[len(none) :], return_inverse=True)
        self.files = kernel.structs("file", unique)
        self.back = np.concatenate((np.arange(len(none)), len(none) + back))[order]
        self._places = dentry, mount
        self._order = order
        self.faults = found.faults

    @cached_property
    def opened(self) -> Opened:
        """What the places and the files are, each once."""
        files = opened(self.kernel, self.files)
        dentry, mount = self._places
        inode = self.kernel.structs("dentry", dentry).pointer("d_inode")
        return Opened(
            self.kernel,
            np.concatenate((dentry, files.at)),
            np.concatenate((mount, files.mount)),
            np.concatenate((inode, files.inodes)),
        )

    def of_files(self, column: Column) -> Column:
        """A column of the struct files as a column of the table: 0 for places without one."""
        whole = np.concatenate((np.zeros(len(self._places[0]), dtype=column.dtype), column))
        return whole[self.back]

    @cached_property
    def closing(self) -> Mask:
        """Which descriptors are closed on exec (n,)."""
        unique, back = np.unique(self.tasks.pointer("files"), return_inverse=True)
        tables = self.kernel.structs("files_struct", unique).follow("fdt").fetch("max_fds", "close_on_exec")
        size = np.clip(tables.number("max_fds"), 0, DESCRIPTOR_LIMIT) >> 3
        bits = ragged.gather(self.kernel.space, tables.pointer("close_on_exec"), size)
        table, fd = back[self.task], np.maximum(self.fd, 0)
        inside = (self.fd >= 0) & (fd >> 3 < bits.size[table])
        at = np.where(inside, bits.start[table] + (fd >> 3), 0)
        data = bits.data if len(bits.data) else np.zeros(1, dtype=np.uint8)
        closing: Mask = inside & (data[at] >> (fd & 7).astype(np.uint8) & 1 != 0)
        return closing

    @cached_property
    def flags(self) -> I64:
        """f_flags (n,), with O_CLOEXEC as the descriptor has it."""
        flags = self.of_files(self.files.number("f_flags")) & ~np.int64(_O_CLOEXEC)
        return flags | np.where(self.closing, np.int64(_O_CLOEXEC), np.int64(0))

    def shown_flags(self) -> Text:
        """In octal, as fdinfo does; empty for what is no descriptor."""
        unique, back = np.unique(np.where(self.fd < 0, np.int64(-1), self.flags), return_inverse=True)
        return text("" if each < 0 else f"0{each:o}" for each in unique.tolist())[back]

    def moved(self) -> Mask:
        """Which descriptors do not lead to the files any more that they led to (n,)."""
        which = moved(self.kernel, self._found)
        places = np.zeros(len(self._order) - len(which), dtype=np.bool_)
        return np.concatenate((places, which))[self._order]

    def access(self) -> Text:
        """Read, write, or both."""
        flags = self.of_files(self.files.number("f_flags"))
        return _ACCESS[np.where((self.fd < 0) | (flags & _O_PATH != 0), 3, flags & 3)]

    def descriptor(self) -> Text:
        """Descriptors as lsof calls them."""
        words = dict(_PLACES)
        unique, back = np.unique(self.fd, return_inverse=True)
        return text(words.get(each, str(each)) for each in unique.tolist())[back]


_COLUMNS: Final[dict[str, Callable[[_Files], Column]]] = {
    "pid": lambda rows: rows.number[rows.task],
    "name": lambda rows: text(task_names(rows.kernel, rows.tasks))[rows.task],
    "fd": lambda rows: rows.fd,
    "descriptor": _Files.descriptor,
    "path": lambda rows: rows.opened.path[rows.back],
    "type": lambda rows: rows.opened.kind[rows.back],
    "access": _Files.access,
    "flags": _Files.shown_flags,
    "offset": lambda rows: rows.of_files(rows.files.number("f_pos")),
    "inode": lambda rows: rows.opened.inode[rows.back],
    "device": lambda rows: rows.opened.device[rows.back],
    "size": lambda rows: rows.opened.size[rows.back],
    "deleted": lambda rows: rows.opened.deleted[rows.back],
    "address": lambda rows: rows.file,
}


def process_open_files(
    kernel: Kernel, columns: Iterable[str] | None = None, *, pids: frozenset[int] | None = None
) -> OpenFiles:
    """All open files of all processes, or of those in `pids`; `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have.
    """
    wanted = list(OpenFiles.schema if columns is None else columns)
    OpenFiles.check(wanted)
    with kernel.operation():
        every = all_pids(kernel)
        number, tasks = every.processes(kernel, pids)
        tasks.fetch("files", "fs", "mm", "comm", "flags")
        rows = _Files(kernel, number, tasks)
        rows.files.fetch("f_path.dentry", "f_path.mnt", "f_inode", "f_flags", "f_pos", "f_mode")
        data = {name: _COLUMNS[name](rows) for name in wanted if name in _COLUMNS}
        faults = Faults(len(rows.task))
        faults.mark(rows.of_files(rows.files.fault), "file unreadable")
        faults.mark(rows.opened.fault[rows.back], "inode unreadable")
        if "path" in wanted:
            faults.mark(~rows.opened.path_whole[rows.back], "path incomplete")
        faults.mark(rows.moved(), MOVED)
        faults.mark(changed(number, tasks)[rows.task], CHANGED)
        data["fault"] = faults.column()
        notes = [*every.faults, *rows.faults]
        if rows.unreadable.any():
            notes.append("working directories, roots, executables: some could not be read")
        return OpenFiles(data, notes)
