"""The table of sockets: every socket of the machine, and who holds it.

Joins `hashes` (what the protocols know) with descriptor tables (what processes hold). A socket that several descriptors
hold has a row for each; one that none holds (TIME_WAIT, orphaned, the kernel's own) has one, with pid -1.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.descriptors import MOVED, Descriptors, descriptors, moved
from vmi_inside.linux.names import task_names
from vmi_inside.linux.sockets.hashes import hashed_sockets
from vmi_inside.linux.sockets.namespaces import network_namespaces
from vmi_inside.linux.sockets.rows import SocketRows
from vmi_inside.linux.sockets.vsock import vsock_sockets
from vmi_inside.linux.tasks import CHANGED, PIDTYPE_TGID, changed, pids
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64, distinct


class OpenSockets(Table):
    """One row for each socket and descriptor that holds it; osquery's column names where it has them."""

    family: Text  # inet inet6 unix netlink packet vsock ...
    protocol: Text  # tcp udp udplite raw icmp sctp ..., or the family's name
    type: Text  # stream dgram raw seqpacket ...
    state: Text
    local_address: Text
    local_port: I64
    remote_address: Text
    remote_port: I64
    path: Text  # of unix sockets
    rx_queue: I64  # bytes; a listener's connections that wait
    tx_queue: I64  # bytes; a listener's backlog
    uid: I64
    inode: I64
    peer_inode: I64  # of a unix socket's other end; 0 for none
    net_namespace: I64  # inode number
    pid: I64  # -1: held by no process
    fd: I64  # -1: held by no process
    name: Text  # of the process
    address: U64  # of the struct sock


_OWNER = ("pid", "fd", "name")


def process_open_sockets(kernel: Kernel, columns: Iterable[str] | None = None) -> OpenSockets:
    """All sockets of all network namespaces. `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have.
    """
    wanted = list(OpenSockets.schema if columns is None else columns)
    OpenSockets.check(wanted)
    with kernel.operation():
        namespaces, notes = network_namespaces(kernel)
        hashed, more = hashed_sockets(kernel, namespaces)
        vsock, vsock_type, and_more = vsock_sockets(kernel)
        holders = _Holders(kernel)
        held = holders.socket
        unique = distinct(np.concatenate((hashed, vsock, held)))
        unique = unique[unique != 0]
        faults = Faults(len(unique))
        rows = SocketRows(kernel, unique, faults, vsock_type)
        data = {name: rows.column(name) for name in wanted if name not in (*_OWNER, "fault")}
        data["fault"] = faults.column()
        joined, index = _join(unique, held)
        shown = {name: column[joined] for name, column in data.items()}
        for name in _OWNER:
            if name in wanted:
                shown[name] = holders.owners[name][index]
        more_faults = holders.fault()[index]
        for row in np.flatnonzero(more_faults != "").tolist():
            shown["fault"][row] = "; ".join(filter(None, (shown["fault"][row], more_faults[row])))
        return OpenSockets(shown, (*notes, *more, *and_more, *holders.notes))


class _Holders:
    """Who holds sockets: `socket` (n,) addresses of `struct sock`, one for each descriptor that leads to one.

    `owners` are the owners' columns, with one row more, for "nobody", at the end.
    """

    def __init__(self, kernel: Kernel) -> None:
        every = pids(kernel)
        number, _, tasks = every.tasks(kernel, PIDTYPE_TGID)
        found = descriptors(kernel, tasks.fetch("files"))
        unique, back = np.unique(found.file, return_inverse=True)
        files = kernel.structs("file", unique).fetch("f_op", "private_data")
        is_socket = files.pointer("f_op") == np.uint64(kernel.symbol("socket_file_ops"))
        which = np.where(is_socket, files.pointer("private_data"), np.uint64(0))
        sockets = kernel.structs("socket", which)
        sock = sockets.pointer("sk")[back]
        rows = np.flatnonzero(sock)
        # Few of all processes hold sockets: nothing else is asked of the others.
        holding = distinct(found.task[rows])
        number, tasks = number[holding], tasks.select(holding).fetch("comm", "flags")
        task = np.searchsorted(holding, found.task[rows])
        nobody = len(holding)
        names = text([*task_names(kernel, tasks), ""])
        self.socket: U64 = sock[rows]
        self.owners: dict[str, Column] = {
            "pid": np.append(number[task], -1),
            "fd": np.append(found.fd[rows], -1),
            "name": names[np.append(task, nobody)],
        }
        self.notes = list(every.faults + found.faults)
        if files.fault.any() or sockets.fault.any():
            self.notes.append(f"descriptors: {int(files.fault.sum() + sockets.fault.sum())} files could not be read")
        self._kernel, self._number, self._tasks = kernel, number, tasks
        self._found = Descriptors(task, found.fd[rows], found.file[rows], found.slot[rows], ())

    def fault(self) -> Text:
        """What changed of each descriptor (n,) since it was read; to be asked when all else was."""
        faults = Faults(len(self.socket) + 1)
        faults.mark(np.append(moved(self._kernel, self._found), False), MOVED)
        faults.mark(np.append(changed(self._number, self._tasks)[self._found.task], False), CHANGED)
        return faults.column()


def _join(unique: U64, held: U64) -> tuple[I64, I64]:
    """Row numbers into the sockets and into the owners: a row for each holder, or one for nobody (the last owner)."""
    at = np.searchsorted(unique, held)
    free = np.ones(len(unique), dtype=np.bool_)
    free[at] = False
    socket_row = np.concatenate((at, np.flatnonzero(free)))
    owner = np.concatenate((np.arange(len(held)), np.full(int(free.sum()), len(held))))
    order = np.lexsort((owner, socket_row))
    return socket_row[order], owner[order]
