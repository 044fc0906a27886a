"""The kernel's log before 5.10: records of differing lengths, one behind the other in one buffer.

Knows `struct printk_log` and `log_buf`, `log_first_idx`, `log_next_idx` (kernel/printk/printk.c, 3.5 to 5.9). Later
kernels' log is `printk`'s, which this one belongs to.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vmi_inside.errors import MemoryFault
from vmi_inside.kernel import Kernel
from vmi_inside.linux.printk import RECORD_LIMIT, Records

#: CONFIG_LOG_BUF_SHIFT is 25 at the most; `log_buf_len=` on the command line may ask for more.
_BUFFER_LIMIT: Final = 64 << 20
#: LOG_ALIGN: what records begin at multiples of.
_ALIGNMENT: Final = 4


def buffer(kernel: Kernel, after: int | None = None) -> Records:
    """All records, or those above `after`. Raises `NoSymbol`, `NoMember`, `MemoryFault`."""
    ctype = kernel.struct("printk_log", "log")
    size = kernel.number(4, "log_buf_len")
    if size > _BUFFER_LIMIT:
        raise MemoryFault(f"the log makes no sense: a buffer of {size} bytes")
    data = kernel.space.read(kernel.pointer("log_buf"), size)
    here, end = kernel.number(4, "log_first_idx"), kernel.number(4, "log_next_idx")
    sequence, last = kernel.number(8, "log_first_seq"), kernel.number(8, "log_next_seq")
    length = ctype.member("len")
    starts: list[int] = []
    faults: tuple[str, ...] = ()
    first = sequence
    turned = False
    while sequence < last:
        if len(starts) == RECORD_LIMIT:
            faults = (f"log: cut after {RECORD_LIMIT} records",)
            break
        taken = int.from_bytes(data[here + length.offset : here + length.offset + length.size], "little")
        if taken == 0 or here + ctype.size > size:
            # A record without length says that the next stands at the buffer's start.
            if turned:
                faults = ("log: ends before its last record",)
                break
            here, turned = 0, True
            continue
        if taken < ctype.size or taken % _ALIGNMENT or here + taken > size or (turned and here >= end):
            faults = (f"log: the record at {here} makes no sense",)
            break
        starts.append(here)
        sequence += 1
        here += taken
    return _records(kernel, data, starts, first, after, faults)


def _records(
    kernel: Kernel, data: bytes, starts: list[int], first: int, after: int | None, faults: tuple[str, ...]
) -> Records:
    ctype = kernel.struct("printk_log", "log")
    skipped = 0 if after is None else min(max(after + 1 - first, 0), len(starts))
    starts, first = starts[skipped:], first + skipped

    def number(name: str, start: int) -> int:
        member = ctype.member(name)
        value = int.from_bytes(data[start + member.offset : start + member.offset + member.size], "little")
        return value >> member.bit_offset & (1 << member.bit_size) - 1 if member.bit_size else value

    def column(name: str) -> np.ndarray:
        return np.array([number(name, start) if ctype.has(name) else 0 for start in starts], dtype=np.uint64)

    room = column("len").astype(np.int64) - ctype.size
    told = column("text_len").astype(np.int64)
    text = [data[at + ctype.size :][:n] for at, n in zip(starts, np.minimum(room, told).tolist(), strict=True)]
    dictionaries = [
        data[at + ctype.size + skip : at + ctype.size + skip + n]
        for at, skip, n in zip(starts, told.tolist(), np.clip(column("dict_len"), 0, 1024).tolist(), strict=True)
    ]
    subsystem, device = ([_value(each, name) for each in dictionaries] for name in (b"SUBSYSTEM", b"DEVICE"))
    count = len(starts)
    return Records(
        np.uint64(first) + np.arange(count, dtype=np.uint64), column("ts_nsec"), column("level").astype(np.int64),
        column("facility").astype(np.int64), column("caller_id").astype(np.int64), text, subsystem, device,
        np.ones(count, dtype=np.bool_), told > room, np.zeros(count, dtype=np.bool_), faults,
    )  # fmt: skip


def _value(dictionary: bytes, name: bytes) -> str:
    """A value of NUL-separated `NAME=value` pairs."""
    for pair in dictionary.split(b"\0"):
        key, found, value = pair.partition(b"=")
        if found and key == name:
            return value.decode("utf-8", "backslashreplace")
    return ""
