"""Hooks in place, by the kernel's own books: kprobes, ftrace, eBPF, security modules, netfilter.

Tells whose function each of them calls: an honest one is the kernel's, a module's or eBPF's. What each hook is for is
left to the tables of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside import ragged, walk
from vmi_inside.errors import MemoryFault, ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux.integrity.findings import Finding
from vmi_inside.linux.integrity.probes import kprobes
from vmi_inside.linux.integrity.reading import Reading
from vmi_inside.linux.sockets.namespaces import network_namespaces
from vmi_inside.types import U64

_HANDLERS: Final = ("pre_handler", "post_handler")
_OPS_LIMIT: Final = 1 << 12
_ENTRIES: Final = 1 << 10
_FAMILIES: Final = ("ipv4", "ipv6", "arp", "bridge")


@dataclass(frozen=True, slots=True)
class Hooks:
    """Hooks (n,) of one kind: what each is called, where its function's pointer lies, and the function.

    `told` is how an honest one is rated, or empty where it is not worth a row; `module` the same for one that a module
    has, `unknown` for one that nobody has.
    """

    kind: str
    name: list[str]
    place: U64
    function: U64
    told: str = ""
    module: str = "info"
    unknown: str = "critical"
    faults: tuple[str, ...] = ()


def hooks(kernel: Kernel, reading: Reading) -> Iterator[Finding]:
    """Hooks whose function is nobody's; and, as information, those that are there."""
    for finder in FINDERS:
        kind = finder.__name__.strip("_").replace("_", " ")
        try:
            found = finder(kernel, reading)
        except (ProfileError, MemoryFault) as error:
            yield Finding("info", kind, detail=f"not looked at: {error}")
            continue
        for fault in found.faults:
            yield Finding("medium", kind, "a list that can be followed to its end", fault)
        owners, symbols = reading.code.owners(found.function), reading.code.symbols(found.function)
        rows = zip(found.name, found.place.tolist(), found.function.tolist(), owners.tolist(), symbols.tolist(),
                   strict=True)  # fmt: skip
        for name, place, function, owner, symbol in rows:
            if not function:
                continue
            severity = (
                found.told if owner in ("kernel", "init", "bpf", "ftrace", "kprobes") else found.module if owner
                else found.unknown
            )  # fmt: skip
            if severity:
                yield Finding(
                    severity, f"{found.kind} {name}".strip(), "code that somebody owns",
                    f"{function:#x}, {owner or 'nobody'}'s", place, symbol,
                )  # fmt: skip


def _kprobes(kernel: Kernel, reading: Reading) -> Hooks:
    rows, faults = kprobes(kernel)
    rows.fetch("addr", *_HANDLERS)
    places = reading.code.symbols(rows.pointer("addr")).tolist()
    return Hooks(
        "kprobe at", places * len(_HANDLERS), np.concatenate([rows.at(name) for name in _HANDLERS]),
        np.concatenate([rows.pointer(name) for name in _HANDLERS]), told="info", module="low", faults=faults,
    )  # fmt: skip


def _ftrace(kernel: Kernel, reading: Reading) -> Hooks:
    ctype = kernel.struct("ftrace_ops")
    first = np.array([kernel.pointer("ftrace_ops_list")], dtype=np.uint64)
    end = np.array([kernel.symbol("ftrace_list_end")], dtype=np.uint64)
    found = walk.chains(kernel.space, first, ctype.member("next").offset, end=end, what="ftrace_ops_list")
    rows = kernel.structs(ctype, found.address[:_OPS_LIMIT])
    names = reading.code.symbols(rows.address).tolist()
    return Hooks("ftrace", names, rows.at("func"), rows.pointer("func"), told="info", module="low", faults=found.faults)


def _ebpf(kernel: Kernel, reading: Reading) -> Hooks:
    """Programs; the code of those that were loaded without privileges is in no list of the kernel's."""
    head = int(kernel.object("idr", "prog_idr").pointer("idr_rt.xa_head")[0])
    found = walk.xarray(kernel.space, head, kernel.struct("xa_node"), what="prog_idr")
    rows = kernel.structs("bpf_prog", found.address)
    names = [f"program {number}" for number in found.owner.tolist()]
    return Hooks("eBPF", names, rows.at("bpf_func"), rows.pointer("bpf_func"), module="medium", unknown="low",
                 faults=found.faults)  # fmt: skip


def _security(kernel: Kernel, reading: Reading) -> Hooks:
    """Hooks of security modules: lists until 6.11, calls that are patched in since."""
    hook = kernel.struct("security_hook_list")
    heads = kernel.find_struct("security_hook_heads")
    if heads is not None:
        names = list(heads.members)
        offsets = [member.offset for member in heads.members.values()]
        raw, _ = kernel.space.gather(np.uint64(kernel.symbol("security_hook_heads")) + np.array(offsets, np.uint64), 8)
        found = walk.chains(kernel.space, raw.view("<u8")[:, 0], what="security_hook_heads")
        rows = kernel.structs(hook, found.address - np.uint64(hook.member("list").offset))
        called, faults = [names[owner] for owner in found.owner.tolist()], found.faults
    else:
        call = kernel.struct("lsm_static_call")
        start = kernel.symbol("static_calls_table")
        objects = reading.objects
        after = objects[min(int(objects.searchsorted(np.uint64(start), "right")), len(objects) - 1)]
        number = np.arange(min((int(after) - start) // call.size, _OPS_LIMIT), dtype=np.uint64)
        calls = kernel.structs(call, np.uint64(start) + number * np.uint64(call.size)).fetch("hl", "key")
        used = calls.select(calls.pointer("hl") != 0)
        rows, faults = kernel.structs(hook, used.pointer("hl")), ()
        keys = reading.code.symbols(used.pointer("key")).tolist()
        called = [name.removeprefix("__SCK__lsm_static_call_") for name in keys]
    at = rows.at("hook")  # a union of pointers to functions
    raw, _ = kernel.space.gather(at, 8)
    return Hooks("security hook", called, at, raw.view("<u8")[:, 0], module="high", faults=faults)


def _netfilter(kernel: Kernel, reading: Reading) -> Hooks:
    namespaces, faults = network_namespaces(kernel)
    names, arrays = [], []
    for family in _FAMILIES:
        member = f"nf.hooks_{family}"
        if not namespaces.has(member):
            continue
        at = namespaces.type.member(member)
        table = namespaces.fetch(member)[member].view("<u8")
        arrays.append(table.ravel())
        names += [f"{family} hook {number}" for _ in range(len(namespaces)) for number in range(at.size // 8)]
    every = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.uint64)
    rows = kernel.structs("nf_hook_entries", every)
    count = np.minimum(rows.number("num_hook_entries"), _ENTRIES)
    entry = kernel.struct("nf_hook_entry").size
    first = rows.at("hooks")
    got = ragged.gather(kernel.space, first, count * entry)
    function, row, index = got.words()
    calls = index % (entry // 8) == 0
    return Hooks(
        "netfilter", [names[at] for at in row[calls].tolist()],
        first[row[calls]] + index[calls].astype(np.uint64) * np.uint64(8), function[calls], faults=faults,
    )  # fmt: skip


FINDERS: Final[tuple[Callable[[Kernel, Reading], Hooks], ...]] = (_kprobes, _ftrace, _ebpf, _security, _netfilter)
