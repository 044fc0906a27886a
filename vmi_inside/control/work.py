"""Work for a guest's worker, as bytes: a function called for each row of a table.

Knows how the code and the table look, and `work_struct`, which the table begins with (include/linux/workqueue.h). How
they get into a guest, and out of it, is `deferred`'s matter.

    a page of padding        header (64 bytes), code
    pages of the guest's     work_struct; NEXT and END, the rows that are still to do; rows of 64 bytes:
                             six arguments, what was returned, and 8 bytes that nobody looks at
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from vmi_inside.control.assemble import Assembler, At
from vmi_inside.control.padding import PADDING
from vmi_inside.errors import Unsupported
from vmi_inside.profile.ctypes import CType
from vmi_inside.types import MASK64, PAGE_SIZE

ARGUMENTS: Final = 6
_ROW: Final = 64
_RESULT: Final = 8 * ARGUMENTS
_NEXT, _END, _ROWS_AT = 64, 72, 128
#: Pages of a table: no more than 2**ORDER_LIMIT.
ORDER_LIMIT: Final = 4
#: Rows of one table.
ROW_LIMIT: Final = ((PAGE_SIZE << ORDER_LIMIT) - _ROWS_AT) // _ROW
EMPTY: Final = bytes([PADDING]) * PAGE_SIZE
_MAGIC: Final = b"vmi-call"
#: _MAGIC, where the pages are, how many as a power of two, size of the code.
_HEADER: Final = struct.Struct("<8sQII")
_CODE_AT: Final = 64


class NotOurs(ValueError):
    """The bytes are not what this version writes."""


@dataclass(frozen=True, slots=True)
class Calls:
    """What is to be called: a function, with each row of up to six integers; then `after`, with each row's first.

    `guards` (address, value of 64 bits) must hold at the moment at which `references` (addresses of counts of 32 bits,
    one for each row) are raised, so that what the calls are about lives until they are made. `after` lowers them.
    """

    function: int
    rows: Sequence[Sequence[int]]
    after: int | None = None
    guards: Sequence[tuple[int, int]] = ()
    references: Sequence[int] = ()

    def first(self, count: int) -> Calls:
        """No more than so many rows of them; guards are no fewer."""
        return replace(self, rows=self.rows[:count], references=self.references[:count])


@dataclass(frozen=True, slots=True)
class Table:
    """Where a table is: `pages` is its address, 2**`order` pages; `size` is what header and code take in their page."""

    pages: int
    order: int
    size: int = 0

    @property
    def room(self) -> int:
        """For how many rows there is room."""
        return ((PAGE_SIZE << self.order) - _ROWS_AT) // _ROW

    def progress(self, head: bytes) -> tuple[int, int]:
        """Rows done, and rows in all, by the table's first bytes. Raises `NotOurs` where that makes no sense."""
        start = self.pages + _ROWS_AT
        now, end = struct.unpack_from("<QQ", head, _NEXT)
        if not start <= now <= end <= start + self.room * _ROW or (now - start) % _ROW or (end - start) % _ROW:
            raise NotOurs(f"the table of calls at {self.pages:#x} has been tampered with")
        return (now - start) // _ROW, (end - start) // _ROW


HEAD_SIZE: Final = _ROWS_AT


def order_for(rows: int) -> int:
    """How many pages so many rows need, as a power of two; rows beyond ROW_LIMIT need another go."""
    return next((one for one in range(ORDER_LIMIT) if Table(0, one).room >= rows), ORDER_LIMIT)


def code_page(room: int, table: Table, calls: Calls) -> bytes:
    """Header and code for a page at `room`."""
    code = assemble(room + _CODE_AT, calls.function, calls.after)
    return _HEADER.pack(_MAGIC, table.pages, table.order, len(code)).ljust(_CODE_AT, b"\0") + code


def read_page(raw: bytes) -> Table | None:
    """What stands in such a page; None for padding. Raises `NotOurs`."""
    if raw == EMPTY:
        return None
    magic, pages, order, size = _HEADER.unpack_from(raw)
    if magic != _MAGIC or order > ORDER_LIMIT or pages % PAGE_SIZE or size > PAGE_SIZE - _CODE_AT:
        raise NotOurs("something else")
    return Table(pages, order, _CODE_AT + size)


def table_bytes(work: CType, room: int, table: Table, calls: Calls) -> bytes:
    """A table with all rows to do; `work` is `struct work_struct`. Raises `Unsupported` where that is too large."""
    if work.size > _NEXT:
        raise Unsupported(f"no calls that may sleep in this kernel: its work_struct has {work.size} bytes")
    link, rows = work.member("entry").offset, table.pages + _ROWS_AT
    head = bytearray(_ROWS_AT)
    # `data` of 0 says that pool 0 ran it last, which looks through its workers before it takes it (`__queue_work`).
    for at, value in (
        (link, table.pages + link), (link + 8, table.pages + link), (work.member("func").offset, room + _CODE_AT),
        (_NEXT, rows), (_END, rows + _ROW * len(calls.rows)),
    ):  # fmt: skip
        head[at : at + 8] = value.to_bytes(8, "little")
    return bytes(head) + b"".join(
        struct.pack("<8Q", *(value & MASK64 for value in (*row, *[0] * (8 - len(row))))) for row in calls.rows
    )


def returned(raw: bytes) -> list[int]:
    """What each row of a table returned; `raw` are its bytes."""
    return [int.from_bytes(raw[at : at + 8], "little") for at in range(_ROWS_AT + _RESULT, len(raw), _ROW)]


def table_size(rows: int) -> int:
    """Bytes of a table of so many rows."""
    return _ROWS_AT + _ROW * rows


def assemble(origin: int, function: int, after: int | None) -> bytes:
    """The code of a work: rdi is the `work_struct`, which the pages begin with."""
    asm = Assembler(origin)
    asm.plain("endbr64")
    asm.push("rbx")  # the stack is aligned to 16 now, as functions expect
    asm.move("rbx", "rdi")
    asm.label("each")
    asm.load("rax", At("rbx", _NEXT))
    asm.reckon("cmp", "rax", At("rbx", _END))
    asm.jump_if("ae", "done")
    for at, register in enumerate(("rdi", "rsi", "rdx", "rcx", "r8", "r9")):
        asm.load(register, At("rax", 8 * at))
    asm.call(function)
    asm.load("rcx", At("rbx", _NEXT))
    asm.store(At("rcx", _RESULT), "rax")
    if after is not None:
        asm.load("rdi", At("rcx"))
        asm.call(after)
        asm.load("rcx", At("rbx", _NEXT))
    asm.reckon("add", "rcx", _ROW)
    asm.store(At("rbx", _NEXT), "rcx")
    asm.jump("each")
    asm.label("done")
    asm.pop("rbx")
    asm.plain("ret")
    return asm.finish()
