"""The users of ftrace: whose code is called when functions are entered, and how many functions they ask for.

How users and their filters are found is `ftraced`'s knowledge; which functions are traced is a table of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.symbols.code import Code
from vmi_inside.linux.tracing import ftraced
from vmi_inside.table import Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask

#: FTRACE_OPS_FL_* that say something of what a user may do.
_WORDS: Final = (
    "SAVE_REGS", "IPMODIFY", "DIRECT", "PERMANENT", "PID", "RCU", "TRACE_ARRAY", "SUBOP", "GRAPH", "JMP", "DYNAMIC",
)  # fmt: skip


class FtraceOps(Table):
    """One row for each registered `ftrace_ops`."""

    callback: Text  # function that is called
    owner: Text  # whose code it is: kernel, a module's name, bpf; empty where nobody's
    name: Text  # the struct's symbol, where it is a global
    enabled: Mask
    functions: I64  # that it asks for; -1 for all
    excluded: I64  # functions that it does not want
    flags: Text  # save_regs, ipmodify (may change where a function goes on), direct, permanent, pid ...
    trampoline: U64  # its own, 0 where it shares the common one
    trampoline_size: I64  # bytes
    address: U64  # of struct ftrace_ops


def ftrace_ops(kernel: Kernel, columns: Iterable[str] | None = None) -> FtraceOps:
    """All users of ftrace; `columns` asks for some columns only. Raises `Unsupported` where the kernel has none."""
    wanted = list(FtraceOps.schema if columns is None else columns)
    FtraceOps.check(wanted)
    with kernel.operation():
        rows, notes = ftraced.users(kernel)
        # What is called is `saved_func` where ftrace put something in between, as it does for single processes.
        rows.fetch("func", "saved_func", "flags", "func_hash", "trampoline", "trampoline_size")
        hashes = rows.follow("func_hash").fetch("filter_hash", "notrace_hash")
        asked = ftraced.hashes(kernel, hashes.pointer("filter_hash"))
        spared = ftraced.hashes(kernel, hashes.pointer("notrace_hash"))
        faults = Faults(len(rows))
        faults.mark(rows.fault, "ftrace_ops unreadable")
        faults.mark(hashes.fault | asked.fault | spared.fault, "filter unreadable")
        flags = rows.number("flags")
        function = np.where(rows.pointer("saved_func") != 0, rows.pointer("saved_func"), rows.pointer("func"))
        code = Code(kernel)
        on = kernel.profile.enumerator("FTRACE_OPS_FL_ENABLED") or 1
        owners = code.owners(function)
        faults.mark((function != 0) & (owners == ""), "its callback is nobody's code")
        data = {
            "callback": np.where(function == 0, "", code.symbols(function)),
            "owner": owners,
            "name": text(_symbol(kernel, each) for each in rows.address.tolist()),
            "enabled": flags & on != 0,
            "functions": np.where((asked.count == 0) & ~asked.fault, -1, asked.count),
            "excluded": spared.count,
            "flags": _words(kernel, flags),
            "trampoline": rows.pointer("trampoline"),
            "trampoline_size": rows.number("trampoline_size"),
            "address": rows.address,
            "fault": faults.column(),
        }
        return FtraceOps({name: data[name] for name in (*wanted, "fault")}, notes)


def _symbol(kernel: Kernel, address: int) -> str:
    """The global that begins there; empty where none does."""
    found = kernel.profile.symbol_at(address)
    return found[0] if found is not None and found[1] == 0 else ""


def _words(kernel: Kernel, flags: I64) -> Text:
    """Flags in words."""
    bits = {word: kernel.profile.enumerator(f"FTRACE_OPS_FL_{word}") for word in _WORDS}
    shown = [
        " ".join(word.lower() for word, bit in bits.items() if bit and each & bit) for each in flags.tolist()
    ]  # fmt: skip
    return text(shown)
