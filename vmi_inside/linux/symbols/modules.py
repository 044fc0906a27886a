"""Loaded kernel modules, from the kernel's own list.

Knows `struct module` (include/linux/module.h) beside what `loaded` knows of its memory. Leaves hidden modules to the
checks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.kernel import Kernel
from vmi_inside.linux.symbols.loaded import Loaded, loaded
from vmi_inside.structs import Structs
from vmi_inside.table import Faults, Table, Text, text
from vmi_inside.types import I64, U64

#: enum module_state (include/linux/module.h).
STATES: Final = ("Live", "Loading", "Unloading", "Unformed")
#: A module's own share of its count of users: what /proc/modules leaves out (MODULE_REF_BASE, kernel/module/main.c).
_REF_BASE: Final = 1
#: Bits of `taints` that are a module's, and their letters (kernel/panic.c, taint_flags).
TAINTS: Final = {0: "P", 10: "C", 12: "O", 13: "E", 16: "X", 18: "N"}


class KernelModules(Table):
    """One row for each module on `modules`; osquery's column names where it has them."""

    name: Text
    size: I64  # bytes, all of its memory
    used_by: Text  # names of the modules that need it
    references: I64  # users, modules that need it among them
    status: Text  # Live Loading Unloading Unformed
    version: Text
    srcversion: Text
    taints: Text  # letters, as /proc/modules has them in brackets
    base: U64  # where its code begins
    address: U64  # of struct module


def kernel_modules(kernel: Kernel, columns: Iterable[str] | None = None) -> KernelModules:
    """All modules on the kernel's list, the newest first. `columns` asks for some columns only."""
    wanted = list(KernelModules.schema if columns is None else columns)
    KernelModules.check(wanted)
    with kernel.operation():
        found = loaded(kernel)
        rows = found.modules.fetch("state", "refcnt.counter", "taints", "version", "srcversion")
        faults = Faults(len(rows))
        faults.mark(rows.fault, "module unreadable")
        notes = list(found.faults)
        data = {
            "name": text(found.name),
            "size": _sizes(found),
            "references": np.maximum(rows.number("refcnt.counter") - _REF_BASE, 0),
            "status": _states(rows.number("state")),
            "base": _bases(found),
            "address": rows.address,
            "taints": text(map(_letters, rows.unsigned("taints").tolist())),
        }
        for name in ("version", "srcversion"):
            if name in wanted:
                strings, ok = kernel.strings(rows.pointer(name))
                faults.mark(~ok, f"{name} unreadable")
                data[name] = text(strings)
        if "used_by" in wanted:
            data["used_by"], more = _users(kernel, found)
            notes += more
        data["fault"] = faults.column()
        return KernelModules({name: data[name] for name in (*wanted, "fault")}, notes)


def _sizes(found: Loaded) -> I64:
    """All memory of each module; of a layout the whole counts, and its text is a part of that."""
    counted = np.ones(len(found.base), dtype=np.bool_) if found.modules.has("mem") else ~found.text
    out = np.zeros(len(found.modules), dtype=np.int64)
    np.add.at(out, found.owner[counted], found.size[counted])
    return out


def _bases(found: Loaded) -> U64:
    out = np.zeros(len(found.modules), dtype=np.uint64)
    rows = np.flatnonzero(found.text)[::-1]  # the first region of a module is its core's
    out[found.owner[rows]] = found.base[rows]
    return out


def _states(code: I64) -> Text:
    return np.array([*STATES, ""], dtype=object)[np.where((code >= 0) & (code < len(STATES)), code, len(STATES))]


def _letters(bits: int) -> str:
    return "".join(letter for bit, letter in TAINTS.items() if bits >> bit & 1)


def _users(kernel: Kernel, found: Loaded) -> tuple[Text, list[str]]:
    """Names of the modules that need each: the list of `struct module_use` that begins in `source_list`."""
    rows: Structs = found.modules
    if not rows.has("source_list"):
        return text("" for _ in found.name), ["used_by: the kernel keeps no such list"]
    head = rows.at("source_list")
    first = kernel.structs("list_head", head)
    walked = walk.chains(kernel.space, first.pointer("next"), end=head, what="users of a module")
    use = kernel.struct("module_use")
    users = kernel.structs(use, walked.address - np.uint64(use.member("source_list").offset)).pointer("source")
    by_address = dict(zip(rows.address.tolist(), found.name, strict=True))
    names: list[list[str]] = [[] for _ in found.name]
    for owner, user in zip(walked.owner.tolist(), users.tolist(), strict=True):
        names[owner].append(by_address.get(user, f"{user:#x}"))
    return text(",".join(each) for each in names), list(walked.faults)
