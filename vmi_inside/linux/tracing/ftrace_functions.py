"""Functions that are traced, and by whom, as tracefs's enabled_functions shows them.

How records and filters are found is `ftraced`'s knowledge.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside.errors import MemoryFault, NoSymbol
from vmi_inside.kernel import Kernel
from vmi_inside.linux.symbols.code import Code
from vmi_inside.linux.tracing import ftraced
from vmi_inside.table import Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask

#: Callbacks of one function that are named.
_NAMED: Final = 16


class FtraceFunctions(Table):
    """One row for each function whose tracing is on."""

    function: Text  # its name, and its module
    owner: Text  # whose code it is: kernel, a module's name
    users: I64  # as ftrace counts them
    callbacks: Text  # what is called: functions, by the filters of ftrace's users
    direct: Text  # what is called without ftrace: eBPF's trampolines, mostly
    regs: Mask  # a user wants all registers
    ipmodify: Mask  # a user may change where the function goes on: live patches, some kprobes
    probed: U64  # address of the call at the function's entry


def ftrace_functions(kernel: Kernel, columns: Iterable[str] | None = None) -> FtraceFunctions:
    """All functions that are traced; `columns` asks for some columns only.

    Raises `Unsupported` where the kernel has no ftrace.
    """
    wanted = list(FtraceFunctions.schema if columns is None else columns)
    FtraceFunctions.check(wanted)
    with kernel.operation():
        found = ftraced.records(kernel)
        notes = list(found.faults)
        code = Code(kernel)

        def flagged(name: str) -> Mask:
            flag: Mask = found.flags & np.uint64(found.bits.get(name, 0)) != 0
            return flag

        data = {
            "users": found.users,
            "regs": flagged("REGS"),
            "ipmodify": flagged("IPMODIFY"),
            "probed": found.ip,
        }
        faults = Faults(len(found.ip))
        owners = code.owners(found.ip)
        faults.mark(owners == "", "nobody's code")
        data["owner"] = owners
        if "function" in wanted:
            data["function"] = text(map(_plain, code.symbols(found.ip).tolist()))
        if {"callbacks", "direct"} & set(wanted):
            called, more = _callbacks(kernel, code, found.ip)
            notes += more
            data["callbacks"] = text(", ".join(_cut(names)) for names in called)
            direct, more = _directly(kernel, found.ip)
            notes += more
            data["direct"] = np.where(direct == 0, "", code.symbols(direct))
        data["fault"] = faults.column()
        return FtraceFunctions({name: data[name] for name in (*wanted, "fault")}, notes)


def _plain(symbol: str) -> str:
    """`vfs_read+0x4 [module]` without the distance: the call stands a few bytes into the function."""
    head, space, module = symbol.partition(" ")
    return f"{head.partition('+')[0]}{space}{module}"


def _cut(names: list[str]) -> list[str]:
    return names if len(names) <= _NAMED else [*names[:_NAMED], f"and {len(names) - _NAMED} more"]


def _callbacks(kernel: Kernel, code: Code, ip: U64) -> tuple[list[list[str]], list[str]]:
    """Callbacks of each function (n,): of all users that are on and whose filter has it."""
    rows, faults = ftraced.users(kernel)
    rows.fetch("func", "saved_func", "flags", "func_hash")
    hashes = rows.follow("func_hash").fetch("filter_hash", "notrace_hash")
    asked = ftraced.hashes(kernel, hashes.pointer("filter_hash"))
    spared = ftraced.hashes(kernel, hashes.pointer("notrace_hash"))
    function = np.where(rows.pointer("saved_func") != 0, rows.pointer("saved_func"), rows.pointer("func"))
    names = code.symbols(function).tolist()
    on = rows.number("flags") & (kernel.profile.enumerator("FTRACE_OPS_FL_ENABLED") or 1) != 0
    called: list[list[str]] = [[] for _ in range(len(ip))]
    for user in np.flatnonzero(on & ~rows.fault & ~asked.fault).tolist():  # some tens at the most
        every = asked.count[user] == 0
        hit = np.full(len(ip), every) if every else np.isin(ip, asked.ip[asked.owner == user])
        hit &= ~np.isin(ip, spared.ip[spared.owner == user])
        for row in np.flatnonzero(hit).tolist():
            called[row].append(names[user])
    return called, [*faults, *asked.faults, *spared.faults]


def _directly(kernel: Kernel, ip: U64) -> tuple[U64, list[str]]:
    """What is called directly at each function (n,), 0 for nothing: the hash `direct_functions`."""
    out = np.zeros(len(ip), dtype=np.uint64)
    try:
        address = kernel.pointer("direct_functions")
    except (NoSymbol, MemoryFault):
        return out, []
    found = ftraced.hashes(kernel, np.array([address], dtype=np.uint64))
    to = dict(zip(found.ip.tolist(), found.direct.tolist(), strict=True))
    for row, each in enumerate(ip.tolist()):
        out[row] = to.get(each, 0)
    return out, [*found.faults, *(["direct_functions could not be read"] if found.fault.any() else [])]
