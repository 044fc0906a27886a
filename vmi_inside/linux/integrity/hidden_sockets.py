"""Hidden sockets: what descriptors hold, and the hash tables leave out.

Knows which sockets are hashed: internet sockets that have a port, all raw, unix and packet sockets. The tables are
`sockets.hashes`' knowledge; a socket that was taken out of them is in no list of the guest's own, and goes on working
until its connection must be looked up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.descriptors import descriptors
from vmi_inside.linux.integrity.findings import Finding
from vmi_inside.linux.integrity.reading import Reading
from vmi_inside.linux.sockets.hashes import hashed_sockets
from vmi_inside.linux.sockets.namespaces import network_namespaces
from vmi_inside.linux.sockets.rows import CLOSE, INET, INET6, PACKET, UNIX, SocketRows
from vmi_inside.table import Faults
from vmi_inside.types import Mask

_UDP: Final = (17, 136)
_RAW_TYPE: Final = 3
_BOUND: Final = 13  # TCP_BOUND_INACTIVE, which is not hashed by its peer


def hidden_sockets(kernel: Kernel, reading: Reading) -> Iterator[Finding]:
    """Sockets that processes hold and no hash table has."""
    namespaces, faults = network_namespaces(kernel)
    hashed, more = hashed_sockets(kernel, namespaces)
    for fault in (*faults, *more):
        severity = "medium" if "circle" in fault else "info"
        yield Finding(severity, "socket tables", "tables that can be read whole", fault)
    number, tasks = reading.processes
    held = descriptors(kernel, tasks)
    files, first = np.unique(held.file, return_index=True)
    rows = kernel.structs("file", files).fetch("f_op", "private_data")
    is_socket = rows.pointer("f_op") == np.uint64(kernel.symbol("socket_file_ops"))
    sockets = kernel.structs("socket", np.where(is_socket, rows.pointer("private_data"), np.uint64(0)))
    address, at = np.unique(sockets.pointer("sk"), return_index=True)
    address, at = address[address != 0], at[address != 0]
    found = SocketRows(kernel, address, Faults(len(address)))
    lost = np.flatnonzero(_should(found) & ~np.isin(address, hashed))
    if not len(lost):
        return
    names = tasks.text("comm")
    shown = {name: found.column(name) for name in ("protocol", "state", "local_address", "local_port",
                                                   "remote_address", "remote_port")}  # fmt: skip
    for row in lost.tolist():
        one = {name: column[row] for name, column in shown.items()}
        holder = int(held.task[first[at[row]]])
        yield Finding(
            "high", f"pid {number[holder]} ({names[holder]})", "in the hash table of its protocol", "not in it",
            int(address[row]), detail="{protocol} {state} {local_address}:{local_port} {remote_address}:{remote_port}, "
            .format(**one) + f"descriptor {held.fd[first[at[row]]]}",
        )  # fmt: skip


def _should(rows: SocketRows) -> Mask:
    """Which sockets (n,) the hash tables should have."""
    port = rows.common.number("skc_num") != 0
    inet = ((rows.family == INET) | (rows.family == INET6)) & rows.whole
    moving = (rows.raw_state != CLOSE) & (rows.raw_state != _BOUND)
    tcp = rows.tcp & moving & port
    udp = inet & np.isin(rows.number, _UDP) & port
    raw = inet & (rows.kind == _RAW_TYPE)
    known: Mask = tcp | udp | raw | (((rows.family == UNIX) | (rows.family == PACKET)) & rows.whole)
    return known
