"""vsock sockets: the bound and connected tables of the `vsock` module.

Knows net/vmw_vsock/af_vsock.c, whose tables are arrays of circular lists. Types and symbols come from the module, or
from the kernel where it is built in.
"""

from __future__ import annotations

import numpy as np

from vmi_inside import walk
from vmi_inside.errors import MemoryFault, NoSymbol, ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux.symbols.module_types import module_types
from vmi_inside.profile.ctypes import CType
from vmi_inside.types import U64

_FAMILY = 40  # AF_VSOCK; net_families (net/socket.c) holds what serves it
_BUCKETS = 251  # VSOCK_HASH_SIZE; the bound table has one more, for sockets that are not bound yet
_TABLES = (("vsock_bind_table", _BUCKETS + 1, "bound_table"), ("vsock_connected_table", _BUCKETS, "connected_table"))


def vsock_sockets(kernel: Kernel) -> tuple[U64, CType | None, tuple[str, ...]]:
    """Addresses of all vsock sockets in the tables, `struct vsock_sock`, and notes.

    Without the module there are no such sockets, and no type.
    """
    try:
        return _vsock_sockets(kernel)
    except (ProfileError, MemoryFault) as error:
        return np.empty(0, dtype=np.uint64), None, (f"vsock sockets: {error}",)


def _vsock_sockets(kernel: Kernel) -> tuple[U64, CType | None, tuple[str, ...]]:
    families = kernel.profile.find_symbol("net_families")
    if families is not None and not kernel.space.read_u64(families + 8 * _FAMILY):
        return np.empty(0, dtype=np.uint64), None, ()
    ctype = kernel.find_struct("vsock_sock")
    symbols = {name: kernel.profile.find_symbol(name) for name, _, _ in _TABLES}
    if ctype is None:
        module = module_types(kernel, "vsock")
        if module is None:
            return np.empty(0, dtype=np.uint64), None, ()
        ctype = module.struct("vsock_sock")
        symbols = {name: module.symbols.get(name) for name, _, _ in _TABLES}
    if ctype is None:
        return np.empty(0, dtype=np.uint64), None, ("vsock: the module has no types (BTF) in memory",)
    heads, node = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.uint64)]
    notes: list[str] = []
    for name, count, member in _TABLES:
        base = symbols[name]
        if base is None:
            notes.append(f"vsock: {NoSymbol(name)}")
            continue
        heads.append(np.uint64(base) + 16 * np.arange(count, dtype=np.uint64))
        node.append(np.full(count, ctype.member(member).offset, dtype=np.uint64))
    head = np.concatenate(heads)
    first = kernel.structs("list_head", head).pointer("next")
    walked = walk.chains(kernel.space, first, end=head, what="vsock table")
    return walked.address - np.concatenate(node)[walked.owner], ctype, (*notes, *walked.faults)
