"""Tracepoints in use: which functions are called at which, the kernel's own tracepoints and modules'.

Knows `struct tracepoint` and `tracepoint_func` (include/linux/tracepoint-defs.h) and where their pointers are listed:
between `__start___tracepoints_ptrs` and `__stop___tracepoints_ptrs`, and in each `struct module`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside import ragged
from vmi_inside.errors import NoSymbol, ProfileError, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.symbols.code import Code
from vmi_inside.linux.symbols.loaded import loaded
from vmi_inside.profile.ctypes import CType
from vmi_inside.structs import Structs
from vmi_inside.table import Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask

_POINTS: Final = 1 << 15
_FUNCTIONS: Final = 64


class Tracepoints(Table):
    """One row for each function that is registered at a tracepoint; tracepoints of which nobody makes use have none."""

    name: Text  # of the tracepoint
    module: Text  # whose tracepoint it is: kernel, or a module's name
    function: Text  # that is called
    owner: Text  # whose code that is: kernel, a module's name, bpf; empty where nobody's
    data_address: U64  # what the function gets first: its user's struct
    priority: I64  # higher ones are called first
    address: U64  # of struct tracepoint


def tracepoints(kernel: Kernel, columns: Iterable[str] | None = None) -> Tracepoints:
    """All functions at tracepoints; `columns` asks for some columns only.

    Raises `Unsupported` where the kernel has no tracepoints.
    """
    wanted = list(Tracepoints.schema if columns is None else columns)
    Tracepoints.check(wanted)
    with kernel.operation():
        rows, module, notes = _points(kernel)
        rows.fetch("name", "funcs")
        used = np.flatnonzero((rows.pointer("funcs") != 0) | rows.fault)
        rows, module = rows.select(used), module[used]
        owner, called, cut = _functions(kernel, rows)
        names, named = kernel.strings(rows.pointer("name"))
        points, whose = text(names)[owner], module[owner]
        function = called.pointer("func")
        code = Code(kernel)
        faults = Faults(len(owner))
        faults.mark(rows.fault[owner], "tracepoint unreadable")
        faults.mark(~named[owner], "name unreadable")
        faults.mark(called.fault, "functions unreadable")
        faults.mark(cut[owner], f"more than {_FUNCTIONS} functions")
        owners = code.owners(function)
        faults.mark((function != 0) & (owners == ""), "its function is nobody's code")
        data = {
            "name": points,
            "module": whose,
            "owner": owners,
            "data_address": called.pointer("data"),
            "priority": called.number("prio"),
            "address": rows.address[owner],
        }
        if "function" in wanted:
            data["function"] = np.where(function == 0, "", code.symbols(function))
        data["fault"] = faults.column()
        return Tracepoints({name: data[name] for name in (*wanted, "fault")}, notes)


def _points(kernel: Kernel) -> tuple[Structs, Text, list[str]]:
    """All tracepoints, and whose each is."""
    point = kernel.find_struct("tracepoint")
    try:
        start, stop = (kernel.symbol(f"__{end}___tracepoints_ptrs") for end in ("start", "stop"))
    except NoSymbol as error:
        raise Unsupported("tracepoints: this kernel has none (CONFIG_TRACEPOINTS)") from error
    if point is None:
        raise Unsupported("tracepoints: this kernel does not tell their type")
    notes: list[str] = []
    lists = [("kernel", start, max(stop - start, 0))]
    wide = 4
    try:
        modules = loaded(kernel)
        member = modules.modules.type.member("tracepoints_ptrs").type.target
        wide = member.size if member.kind == "int" else 8
        modules.modules.fetch("tracepoints_ptrs", "num_tracepoints")
        count = modules.modules.number("num_tracepoints") * wide
        lists += list(
            zip(modules.name, modules.modules.pointer("tracepoints_ptrs").tolist(), count.tolist(), strict=True)
        )
        notes += modules.faults
    except ProfileError as error:
        notes.append(f"tracepoints of modules: {error}")
    base = np.array([each[1] for each in lists], dtype=np.uint64)
    size = np.array([min(each[2], _POINTS * wide) for each in lists], dtype=np.int64)
    notes += [f"tracepoints of {name}: cut after {_POINTS}" for name, _, long in lists if long > _POINTS * wide]
    got = ragged.gather(kernel.space, base, size)
    if not got.ok.all():
        notes.append("tracepoints: a list of them could not be read")
    found: list[U64] = []
    for at, raw in zip(base, got.rows(), strict=True):
        found.append(_pointers(at, raw, wide))
    address = np.concatenate(found)
    whose = np.repeat(np.array([*(each[0] for each in lists), ""], dtype=object)[:-1], [len(each) for each in found])
    kept = np.flatnonzero(address)
    return kernel.structs(point, address[kept]), whose[kept], notes


def _pointers(base: np.uint64, raw: bytes, wide: int) -> U64:
    """A list's pointers: of 64 bits, or of 32 from where each stands (CONFIG_HAVE_ARCH_PREL32_RELOCATIONS)."""
    if wide != 4:
        return np.frombuffer(raw, dtype="<u8").copy()
    distance = np.frombuffer(raw, dtype="<i4").astype(np.int64).view(np.uint64)
    return np.where(
        distance == 0, np.uint64(0), base + np.uint64(4) * np.arange(len(distance), dtype=np.uint64) + distance
    )


def _functions(kernel: Kernel, rows: Structs) -> tuple[I64, Structs, Mask]:
    """The functions (m,) of tracepoints (n rows): of which each is, its struct, and (n,) which were cut.

    An array that ends with a function of 0, read an entry of all a round. A tracepoint that cannot be read has one row.
    """
    func: CType = kernel.struct("tracepoint_func")
    at = rows.pointer("funcs").copy()
    live = np.flatnonzero(at)
    owners: list[I64] = [np.flatnonzero(at == 0)]
    address: list[U64] = [np.zeros(len(owners[0]), dtype=np.uint64)]
    cut = np.zeros(len(rows), dtype=np.bool_)
    for number in range(_FUNCTIONS + 1):
        if not len(live):
            break
        if number == _FUNCTIONS:
            cut[live] = True
            break
        here = kernel.structs(func, at[live] + np.uint64(number * func.size))
        there = (here.pointer("func") != 0) | here.fault
        owners.append(live[there])
        address.append(here.address[there])
        live = live[there & ~here.fault]
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    called = kernel.structs(func, np.concatenate(address)[order]).fetch("func", "data", "prio")
    return owner[order], called, cut
