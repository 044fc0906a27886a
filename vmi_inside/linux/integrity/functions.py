"""Functions of the kernel that begin with a jump away, and places of ftrace's that hold something else.

Knows what may stand there: calls of ftrace and of eBPF's trampolines, jumps of static calls and of optimized kprobes,
kprobes' breakpoints. The encodings are `jumps`' knowledge. Only entries are looked at, not what is within a function.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmi_inside.errors import MemoryFault, ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux.integrity.findings import Finding
from vmi_inside.linux.integrity.jumps import LENGTH, jumps
from vmi_inside.linux.integrity.probes import kprobes, traced_places
from vmi_inside.linux.integrity.reading import Reading
from vmi_inside.linux.symbols.gated import Gated, gated
from vmi_inside.types import U8, U64, Mask

#: What lies between functions, and how much of it shows that a place is none of theirs.
_PADDING: Final = 0xCC
_PADDED: Final = 16
#: Trampolines of static calls: their jump may lead into a module.
_STATIC: Final = "__SCT__"
#: Symbols that mark a place between functions, where padding may stand.
_MARKS: Final = ("_start", "_end")
_IDLE: Final = tuple(bytes.fromhex(one) for one in ("0f1f440000", "6666666690"))
_TRACERS: Final = ("ftrace_", "__fentry__")


def function_entries(kernel: Kernel, reading: Reading) -> Iterator[Finding]:
    """Functions whose first instructions lead out of the kernel's code, or into what lies between its functions."""
    text, functions = reading.text, reading.functions
    offset = (functions - np.uint64(text.start)).astype(np.int64)
    whole = offset + LENGTH <= len(text.data)
    functions, offset = functions[whole], offset[whole]
    found = jumps(text.start, text.data, offset)
    kind, target = found.kind, found.target
    through = kind == "jump through memory"
    if through.any():
        raw, _ = kernel.space.gather(target[through], 8)
        target = target.copy()
        target[through] = raw.view("<u8")[:, 0]
    probed = _probed(kernel)
    owners = reading.code.owners(target)
    owners[(owners == "init") & ~reading.executable.hold(target)] = "kernel"  # what is gone is called no more
    stop = kind == "breakpoint"
    suspect = np.where(stop, ~np.isin(functions[found.row], probed), (owners != "kernel") | _between(reading, target))
    rows = np.flatnonzero(suspect)
    gates = gated(kernel)
    names = reading.code.symbols(functions[found.row[rows]]).tolist()
    for row, name, symbol in zip(rows.tolist(), names, reading.code.symbols(target[rows]).tolist(), strict=True):
        owner, address = owners[row], int(functions[found.row[row]])
        if stop[row]:
            if not name.endswith(_MARKS):
                yield Finding("high", name, "code, or a kprobe that is registered", "a breakpoint of nobody's", address)
        elif owner in ("ftrace", "bpf", "kprobes") or (owner and name.startswith(_STATIC) and owner != "kernel"):
            continue
        else:
            where = "between its functions" if owner == "kernel" else f"in {owner or 'nobody'}'s code"
            yield Finding(
                "high" if owner not in ("", "kernel") else "critical", name, "code of its own",
                f"{kind[row]} to {int(target[row]):#x}, {where}", address, symbol, _gate(gates, int(target[row])),
            )  # fmt: skip
    yield from _traced(kernel, reading, gates)


def _gate(gates: Gated | None, target: int) -> str:
    """What is to be said when a jump leads to where gates are. It stays as grave: a guest can make them up."""
    here = gates is not None and gates.start <= target <= gates.end
    return "as a gate of vmi-inside has it: `vmi-inside journal` knows whether it is one" if here else ""


def _probed(kernel: Kernel) -> U64:
    """Addresses of kprobes, and those behind the landing pad that they may stand for."""
    try:
        rows, _ = kprobes(kernel)
        address = rows.pointer("addr")
    except (ProfileError, MemoryFault):
        return np.empty(0, dtype=np.uint64)
    return np.concatenate((address, address - np.uint64(4)))


def _between(reading: Reading, target: U64) -> Mask:
    """Which targets (n,) in the kernel's code lie where no function is: no symbol is there, and padding is before."""
    text = reading.text
    offset = (target - np.uint64(text.start)).astype(np.int64)
    inside = text.holds(target) & (offset >= _PADDED)
    rows = np.flatnonzero(inside)
    rows = rows[text.data[offset[rows] - 1] == _PADDING]
    before = text.data[offset[rows][:, None] - 1 - np.arange(_PADDED)[None, :]]
    rows = rows[(before == _PADDING).all(axis=1) & ~np.isin(target[rows], reading.functions)]
    between = np.zeros(len(target), dtype=np.bool_)
    between[rows] = True
    return between


def _traced(kernel: Kernel, reading: Reading, gates: Gated | None) -> Iterator[Finding]:
    """The places of ftrace's that hold neither nothing nor a call of a tracer."""
    try:
        places, faults = traced_places(kernel)
    except (ProfileError, MemoryFault) as error:
        yield Finding("info", "ftrace", detail=f"not looked at: {error}")
        return
    for fault in faults:
        yield Finding("medium", "ftrace", "a list that can be followed to its end", fault)
    code, ok = _five(kernel, reading, places)
    idle = np.zeros(len(places), dtype=np.bool_)
    for nothing in _IDLE:
        idle |= (code == np.frombuffer(nothing, np.uint8)).all(axis=1)
    rest = np.flatnonzero(ok & ~idle)
    far = np.ascontiguousarray(code[rest, 1:5]).view("<i4")[:, 0].astype(np.int64).view(np.uint64)
    target = places[rest] + np.uint64(5) + far
    owners, symbols = reading.code.owners(target), reading.code.symbols(target)
    for at, row in enumerate(rest.tolist()):
        calls = code[row, 0] == 0xE8
        honest = owners[at] in ("ftrace", "bpf") or (owners[at] == "kernel" and symbols[at].startswith(_TRACERS))
        jumps_away = code[row, 0] in (0xE8, 0xE9)
        if (calls and honest) or (code[row, 0] == _PADDING and places[row] in _probed(kernel)):
            continue
        yield Finding(
            "critical", reading.code.symbols(places[row : row + 1])[0], "nothing, or a call of ftrace's or eBPF's",
            f"{code[row].tobytes().hex(' ')}" + (f", to {int(target[at]):#x}" if jumps_away else ""),
            int(places[row]), symbols[at] if jumps_away else "", _gate(gates, int(target[at])) if jumps_away else "",
        )  # fmt: skip


def _five(kernel: Kernel, reading: Reading, places: U64) -> tuple[U8, Mask]:
    """Five bytes at each place (n,), and which could be read."""
    text = reading.text
    inside = text.holds(places) & text.holds(places + np.uint64(4))
    code = np.zeros((len(places), 5), dtype=np.uint8)
    ok = inside.copy()
    offset = (places[inside] - np.uint64(text.start)).astype(np.int64)
    code[inside] = text.data[offset[:, None] + np.arange(5)[None, :]]
    code[~inside], ok[~inside] = kernel.space.gather(places[~inside], 5)
    return code, ok
