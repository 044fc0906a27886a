"""The kernel's log in memory: the records of printk, whichever form the kernel keeps them in.

Knows the ring of descriptors (kernel/printk/printk_ringbuffer.h, 5.10) and the buffer of records that came before it
(`struct printk_log`, kernel/printk/printk.c, 3.5 to 5.9). How records are shown is a table's matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside import ragged
from vmi_inside.errors import MemoryFault
from vmi_inside.kernel import Kernel
from vmi_inside.profile.ctypes import CType
from vmi_inside.structs import Structs
from vmi_inside.types import I64, U64, Mask

#: Records that are read at the most; a log of 32 MiB has 2^20 descriptors.
RECORD_LIMIT: Final = 1 << 20
#: LOG_BUF_LEN_MAX is 2 GiB (kernel/printk/printk.c).
_SIZE_BITS: Final = 31
#: enum desc_state, in the two upper bits of a descriptor's state; below them its id.
_COMMITTED, _FINALIZED = 1, 2
_STATE_SHIFT: Final = np.uint64(62)
_ID: Final = np.uint64((1 << 62) - 1)
#: The id that stands before a block's text.
_HEAD: Final = 8


@dataclass(frozen=True, slots=True)
class Records:
    """Records (n,), ascending by sequence number. `info` has what `Records.fetched` names.

    `finished` (n,) says which the kernel will not add to; `lost` (n,) of which the text is no longer there, `bad` (n,)
    which could not be read. `faults` says what was left out.
    """

    sequence: U64
    nanoseconds: U64
    level: I64
    facility: I64
    caller: I64  # a thread's number; with bit 31 a CPU's
    text: list[bytes]
    subsystem: list[str]
    device: list[str]
    finished: Mask
    lost: Mask
    bad: Mask
    faults: tuple[str, ...]


def records(kernel: Kernel, after: int | None = None) -> Records:
    """All records in memory, or those whose sequence number is above `after`.

    Raises `NoSymbol` and `NoMember` where the kernel keeps no log, `MemoryFault` where its head cannot be read.
    """
    if kernel.find_struct("printk_ringbuffer") is not None:
        return _ring(kernel, after)
    from vmi_inside.linux.printk_old import buffer

    return buffer(kernel, after)


def _ring(kernel: Kernel, after: int | None) -> Records:
    head = kernel.structs("printk_ringbuffer", [kernel.pointer("prb")]).fetch(
        "desc_ring.count_bits", "desc_ring.descs", "desc_ring.infos", "desc_ring.head_id.counter",
        "desc_ring.tail_id.counter", "text_data_ring.size_bits", "text_data_ring.data",
    )  # fmt: skip
    if head.fault.any() or not head.address.all():
        raise MemoryFault("the head of the log cannot be read")
    bits, size_bits = int(head.number("desc_ring.count_bits")[0]), int(head.number("text_data_ring.size_bits")[0])
    count = 1 << bits if bits < 64 else 0
    if not 0 < count <= RECORD_LIMIT or size_bits > _SIZE_BITS:
        raise MemoryFault(f"the log makes no sense: 2^{bits} records, 2^{size_bits} bytes")
    newest, oldest = (int(head.unsigned(f"desc_ring.{end}_id.counter")[0]) & int(_ID) for end in ("head", "tail"))
    length = (newest - oldest & int(_ID)) + 1
    faults: tuple[str, ...] = ()
    if length > count:
        faults = (f"log: {length} records in a ring of {count}",)
        length = count
    descriptors = head.pointer("desc_ring.descs"), kernel.struct("prb_desc")
    infos = head.pointer("desc_ring.infos"), kernel.struct("printk_info")

    def at(ids: U64, array: tuple[U64, CType]) -> Structs:
        base, ctype = array
        return kernel.structs(ctype, base + (ids & np.uint64(count - 1)) * np.uint64(ctype.size))

    if after is not None:
        # Ids and sequence numbers go up together: the newest record's tells how many there are after `after`.
        last = int(at(np.array([newest], dtype=np.uint64), infos).unsigned("seq")[0])
        length = min(length, max(last - after, 0))
    ids = (np.uint64(newest) - np.arange(length, dtype=np.uint64)[::-1]) & _ID
    state = at(ids, descriptors).fetch("state_var.counter", "text_blk_lpos.begin", "text_blk_lpos.next")
    value = state.unsigned("state_var.counter")
    phase = (value >> _STATE_SHIFT).astype(np.int64)
    shown = ((value & _ID == ids) & ((phase == _COMMITTED) | (phase == _FINALIZED))) | state.fault
    ids, state, phase = ids[shown], state.select(shown), phase[shown]
    about = at(ids, infos).fetch("seq", "ts_nsec", "text_len", "facility", "level", "caller_id")
    if about.has("dev_info"):
        about.fetch("dev_info.subsystem", "dev_info.device")
    text, lost = _texts(kernel, int(head.pointer("text_data_ring.data")[0]), 1 << size_bits, ids, state, about)
    order = np.argsort(about.unsigned("seq"), kind="stable")
    if after is not None:
        order = order[about.number("seq")[order] > after]
    devices = [about.text(f"dev_info.{name}") for name in ("subsystem", "device")] if about.has("dev_info") else []
    subsystem, device = devices or ([""] * len(ids), [""] * len(ids))
    rows = order.tolist()
    return Records(
        about.unsigned("seq")[order], about.unsigned("ts_nsec")[order], about.number("level")[order],
        about.number("facility")[order], about.number("caller_id")[order], [text[row] for row in rows],
        [subsystem[row] for row in rows], [device[row] for row in rows], (phase == _FINALIZED)[order], lost[order],
        (state.fault | about.fault)[order], faults,
    )  # fmt: skip


def _texts(kernel: Kernel, data: int, size: int, ids: U64, state: Structs, about: Structs) -> tuple[list[bytes], Mask]:
    """The texts of records, and which are lost: never stored, or written over by newer ones."""
    begin, end = state.unsigned("text_blk_lpos.begin"), state.unsigned("text_blk_lpos.next")
    length = about.number("text_len")
    mask = np.uint64(size - 1)
    nothing = begin & np.uint64(1) != 0  # no block: an empty line (its length is 0), or one that found no room
    # A block that would reach over the end of the ring begins at its start instead.
    wrapped = begin // np.uint64(size) != (end - np.uint64(1)) // np.uint64(size)
    start = np.where(wrapped, np.uint64(0), begin & mask)
    room = np.where(wrapped, end & mask, end - begin)
    sane = ~nothing & (room > np.uint64(_HEAD)) & (start + room <= np.uint64(size))
    room = np.where(sane, room, np.uint64(0)).astype(np.int64)
    wanted = np.where(sane, np.minimum(length, room - _HEAD) + _HEAD, 0)
    got = ragged.gather(kernel.space, np.uint64(data) + start, wanted)
    texts = []
    lost = np.zeros(len(ids), dtype=np.bool_)
    for row, (raw, owner) in enumerate(zip(got.rows(), ids.tolist(), strict=True)):
        whole = bool(got.ok[row]) and len(raw) >= _HEAD and int.from_bytes(raw[:_HEAD], "little") == owner
        texts.append(raw[_HEAD:] if whole else b"")
    lost = (length > 0) & (np.array([len(each) for each in texts], dtype=np.int64) < length)
    return texts, lost
