"""Who traces which functions: ftrace's records of functions, and its users with their filters.

Knows `ftrace_ops_list`, `struct ftrace_ops` and its hashes, `ftrace_pages_start` and `struct dyn_ftrace`
(kernel/trace/ftrace.c, include/linux/ftrace.h). What is shown of them is the tables' matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside import ragged, walk
from vmi_inside.errors import NoMember, NoSymbol, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs
from vmi_inside.types import I64, U64, Mask

_OPS: Final = 1 << 12
_PAGES: Final = 1 << 16
#: FTRACE_HASH_MAX_BITS is 12; what says more lies.
_HASH_BITS: Final = 16
_RECORD_LIMIT: Final = 1 << 20
#: FTRACE_FL_*: flags of a record; below them is the number of users.
_FLAGS: Final = (
    "ENABLED", "REGS", "REGS_EN", "TRAMP", "TRAMP_EN", "IPMODIFY", "DISABLED", "DIRECT", "DIRECT_EN", "CALL_OPS",
    "CALL_OPS_EN", "TOUCHED", "MODIFIED",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hashes:
    """Addresses of functions in `n` hashes: `ip` (m,), `direct` (m,) what is called there, `owner` (m,) which hash.

    `count` (n,) is how many each says that it has. `fault` (n,) marks those that could not be read.
    """

    ip: U64
    direct: U64
    owner: I64
    count: I64
    fault: Mask
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Records:
    """Functions that are traced: `ip` (n,) address of the call at the function's entry, `flags` and `users` (n,).

    `total` is how many functions could be traced. `bits` are the flags by name.
    """

    ip: U64
    flags: U64
    users: I64
    total: int
    bits: dict[str, int]
    faults: tuple[str, ...]


def users(kernel: Kernel) -> tuple[Structs, tuple[str, ...]]:
    """All registered `ftrace_ops`. Raises `Unsupported` where the kernel has no ftrace."""
    try:
        first = kernel.pointer("ftrace_ops_list")
        end = kernel.symbol("ftrace_list_end")
        ops = kernel.struct("ftrace_ops")
    except (NoSymbol, NoMember) as error:
        raise Unsupported("ftrace: this kernel has none (CONFIG_FUNCTION_TRACER)") from error
    found = walk.chains(
        kernel.space, np.array([first], dtype=np.uint64), ops.member("next").offset,
        end=np.array([end], dtype=np.uint64), what="users of ftrace",
    )  # fmt: skip
    return kernel.structs(ops, found.address[:_OPS]), found.faults


def hashes(kernel: Kernel, address: U64) -> Hashes:
    """The functions in `n` hashes (struct ftrace_hash, kernel/trace/trace.h); an address of 0 has none."""
    rows = kernel.structs("ftrace_hash", address).fetch("size_bits", "buckets", "count")
    bits = rows.unsigned("size_bits")
    fault = rows.fault | (bits > _HASH_BITS)
    width = np.where(fault | (rows.number("count") == 0) | (address == 0), 0, 8 << np.minimum(bits, _HASH_BITS))
    buckets = ragged.gather(kernel.space, rows.pointer("buckets"), width.astype(np.int64))
    head, owner, _ = buckets.words()
    found = walk.chains(kernel.space, head, what="functions of a filter")
    entry = kernel.struct("ftrace_func_entry")
    entries = kernel.structs(entry, found.address - np.uint64(entry.member("hlist").offset))
    has_direct = entry.has("direct")
    entries.fetch("ip", *(("direct",) if has_direct else ()))
    whose = owner[found.owner]
    fault |= ~buckets.ok
    fault[whose[entries.fault]] = True
    direct = entries.pointer("direct") if has_direct else np.zeros(len(entries), dtype=np.uint64)
    count = np.where(rows.fault, 0, rows.number("count"))
    return Hashes(entries.pointer("ip"), direct, whose, count, fault, found.faults)


def records(kernel: Kernel) -> Records:
    """All records of functions whose tracing is on. Raises `Unsupported` where the kernel has no ftrace."""
    profile = kernel.profile
    bits = {name: value for name in _FLAGS if (value := profile.enumerator(f"FTRACE_FL_{name}"))}
    if profile.find_symbol("ftrace_pages_start") is None or "ENABLED" not in bits:
        raise Unsupported("ftrace: this kernel has none (CONFIG_DYNAMIC_FTRACE)")
    page, record = kernel.struct("ftrace_page"), kernel.struct("dyn_ftrace")
    first = np.array([kernel.pointer("ftrace_pages_start")], dtype=np.uint64)
    found = walk.chains(kernel.space, first, page.member("next").offset, what="ftrace's pages")
    pages = kernel.structs(page, found.address[:_PAGES]).fetch("records", "index")
    faults = list(found.faults)
    count = pages.number("index")
    wrong = pages.fault | (count < 0) | (count > _RECORD_LIMIT)
    got = ragged.gather(kernel.space, pages.pointer("records"), np.where(wrong, 0, count) * record.size)
    if wrong.any() or not got.ok.all():
        faults.append("ftrace's pages: some could not be read or believed")
    rows = np.frombuffer(b"".join(got.rows()), dtype=np.uint8)
    rows = rows[: len(rows) // record.size * record.size].reshape(-1, record.size)
    parts = []
    for name in ("ip", "flags"):
        at = record.member(name).offset
        parts.append(np.ascontiguousarray(rows[:, at : at + 8]).view("<u8")[:, 0])
    ip, flags = parts
    on = np.flatnonzero(flags & np.uint64(bits["ENABLED"]))
    flags = flags[on] & np.uint64(0xFFFF_FFFF)
    low = np.uint64(min(bits.values()) - 1)
    return Records(ip[on], flags, (flags & low).astype(np.int64), len(ip), bits, tuple(faults))
