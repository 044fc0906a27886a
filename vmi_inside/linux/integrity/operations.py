"""Objects on the heap and their tables of operations: open files, /proc, file systems, sockets, protocols.

Knows which member of which object leads to such a table. Tables lie in the kernel's image or in a module, and their
functions are somebody's code; the tables of the image are `pointers`' matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside import ragged, walk
from vmi_inside.errors import MemoryFault, ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.descriptors import descriptors
from vmi_inside.linux.integrity.findings import Finding
from vmi_inside.linux.integrity.module_views import MODULE_SPACE
from vmi_inside.linux.integrity.proc_entries import ProcEntries
from vmi_inside.linux.integrity.reading import Reading
from vmi_inside.structs import Structs
from vmi_inside.types import I64, U64, distinct

#: More file systems than any machine has mounted.
_MOUNTED: Final = 1 << 16
_PROTOCOLS: Final = 256
_TABLE_LIMIT: Final = 4096


@dataclass(frozen=True, slots=True)
class Held:
    """Tables (n,) by address, what each is called, its size in bytes, and what has it: a function of the row.

    `function` says that a function may stand there instead of a table.
    """

    kind: str
    table: U64
    size: int
    holder: Callable[[int], str]
    function: bool = False


def operation_tables(kernel: Kernel, reading: Reading) -> Iterator[Finding]:
    """Tables in memory that neither the kernel's image nor a module has, and functions in them that are nobody's."""
    held: list[Held] = []
    for finder in (_files, _proc, _file_systems, _protocols):
        try:
            held += finder(kernel, reading)
        except (ProfileError, MemoryFault) as error:
            yield Finding("info", finder.__name__.strip("_"), detail=f"not looked at: {error}")
    for each in held:
        yield from _checked(kernel, reading, each)


def _checked(kernel: Kernel, reading: Reading, held: Held) -> Iterator[Finding]:
    table, first = np.unique(held.table, return_index=True)
    table, first = table[table != 0], first[table != 0]
    executable = reading.executable.hold(table)
    direct = executable & held.function
    profile = kernel.profile
    low, high = profile.find_symbol("_text", "_stext") or 0, profile.find_symbol("_end") or 0
    placed = (table - np.uint64(low)) < np.uint64(max(high - low, 0))
    if reading.code.modules is not None:
        placed |= reading.code.modules.within(table) >= 0
    placed &= ~executable  # a table is no code
    size = np.where(direct, 0, min(held.size, _TABLE_LIMIT))
    got = ragged.gather(kernel.space, table, size.astype(np.int64))
    word, owner, _ = got.words()
    bad = reading.unowned(word)
    for row in distinct(owner[bad]).tolist():
        functions = word[bad[owner[bad] == row]]
        symbols = ", ".join(reading.code.symbols(functions).tolist())
        yield Finding(
            "critical", held.holder(int(first[row])), f"functions in its {held.kind} that are somebody's code",
            f"{len(functions)} that are nobody's", int(table[row]), symbols,
        )  # fmt: skip
    for row in reading.unowned(np.where(direct, table, np.uint64(0))).tolist():
        yield Finding(
            "critical", held.holder(int(first[row])), f"a {held.kind} that is somebody's code", f"{int(table[row]):#x}",
            int(table[row]), reading.code.symbols(table[row : row + 1])[0],
        )  # fmt: skip
    inside = executable | ((table >= np.uint64(MODULE_SPACE[0])) & (table < np.uint64(MODULE_SPACE[1])))
    for row in np.flatnonzero(~placed & ~direct).tolist():
        # Some are made when they are needed (debugfs): on the heap, but never where modules lie.
        yield Finding(
            "high" if inside[row] else "low", held.holder(int(first[row])),
            f"its {held.kind} in the data of the kernel or a module", f"at {int(table[row]):#x}", int(table[row]),
            fault="" if got.ok[row] else "table unreadable",
        )  # fmt: skip


def _size(kernel: Kernel, name: str) -> int:
    ctype = kernel.find_struct(name)
    return ctype.size if ctype is not None else 0


def _files(kernel: Kernel, reading: Reading) -> Iterator[Held]:
    number, tasks = reading.processes
    found = descriptors(kernel, tasks)
    files, first = np.unique(found.file, return_index=True)
    names = tasks.text("comm")

    def holder(row: int) -> str:
        at = int(first[row])
        task = int(found.task[at])
        return f"pid {number[task]} ({names[task]}) descriptor {found.fd[at]}"

    rows = kernel.structs("file", files).fetch("f_op", "f_inode")
    yield Held("file_operations", rows.pointer("f_op"), _size(kernel, "file_operations"), holder)
    inodes = rows.follow("f_inode").fetch("i_fop", "i_op")
    yield Held("i_fop", _tables(inodes, "i_fop"), _size(kernel, "file_operations"), holder)
    yield Held("inode_operations", _tables(inodes, "i_op"), _size(kernel, "inode_operations"), holder)
    is_socket = rows.pointer("f_op") == np.uint64(kernel.profile.find_symbol("socket_file_ops") or 0)
    private = np.where(is_socket, rows.pointer("private_data"), np.uint64(0))
    sockets = kernel.structs("socket", private).fetch("ops", "sk")
    yield Held("proto_ops", sockets.pointer("ops"), _size(kernel, "proto_ops"), holder)
    protocol = kernel.structs("sock", sockets.pointer("sk")).pointer("__sk_common.skc_prot")
    yield Held("proto", protocol, _size(kernel, "proto"), holder)


def _tables(rows: Structs, member: str) -> U64:
    return np.where(rows.fault, np.uint64(0), rows.pointer(member))


def _proc(kernel: Kernel, reading: Reading) -> Iterator[Held]:
    entries = ProcEntries(kernel)
    rows = entries.rows
    for member, ctype in (
        ("proc_ops", "proc_ops"), ("proc_iops", "inode_operations"), ("seq_ops", "seq_operations"),
        ("proc_dops", "dentry_operations"),
    ):  # fmt: skip
        if rows.has(member):
            yield Held(member, rows.pointer(member), _size(kernel, ctype), entries.path, member == "seq_ops")


def _file_systems(kernel: Kernel, reading: Reading) -> Iterator[Held]:
    ctype = kernel.struct("super_block")
    listed = walk.serial(kernel.space, kernel.symbol("super_blocks"), what="super_blocks", limit=_MOUNTED)
    rows = kernel.structs(ctype, listed.address - np.uint64(ctype.member("s_list").offset)).fetch(
        "s_op", "s_root", "s_id"
    )
    names = rows.text("s_id")

    def holder(row: int) -> str:
        return f"file system {names[row]}"

    inodes = rows.follow("s_root").follow("d_inode").fetch("i_op", "i_fop")
    yield Held("super_operations", rows.pointer("s_op"), _size(kernel, "super_operations"), holder)
    yield Held("root's inode_operations", _tables(inodes, "i_op"), _size(kernel, "inode_operations"), holder)
    yield Held("root's file_operations", _tables(inodes, "i_fop"), _size(kernel, "file_operations"), holder)


def _protocols(kernel: Kernel, reading: Reading) -> Iterator[Held]:
    for symbol, ctype in (("inet_protos", "net_protocol"), ("inet6_protos", "inet6_protocol")):
        start = kernel.profile.find_symbol(symbol)
        if start is None:
            continue
        number: I64 = np.arange(_PROTOCOLS)
        raw, _ = kernel.space.gather(np.uint64(start) + np.uint64(8) * number.astype(np.uint64), 8)

        def holder(row: int, symbol: str = symbol) -> str:
            return f"{symbol}[{row}]"

        yield Held(ctype, raw.view("<u8")[:, 0], _size(kernel, ctype), holder)
