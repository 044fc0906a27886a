"""Typed structs at many addresses: columns of members, fetched by one planned gather.

Knows how members lie in a struct and how to turn bytes into columns. Where the addresses come from is `walk`'s matter,
and what the structs mean a table's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmi_inside.errors import WrongProfile
from vmi_inside.profile.ctypes import CType, Member
from vmi_inside.space import AddressSpace
from vmi_inside.types import U8, U64, Mask

#: Members closer than this are read as one span: a row costs more than the bytes between.
SPAN_GAP = 256
#: No struct member that we fetch is larger; a profile that says so lies.
MEMBER_LIMIT = 1 << 16

Names = str | tuple[str, ...]
Column = NDArray[np.generic]


class Structs:
    """`n` structs of one C type at `n` addresses, with the columns that were fetched.

    `address` is (n,) uint64; 0 stands for "none": such rows are never read and never faults, their columns are 0.
    `fault` is (n,) bool: rows with an address that could not be read. `rows["member"]` gives a fetched column:
    integers and enums in their own dtype, pointers as uint64, anything else as (n, size) uint8.
    """

    __slots__ = ("_columns", "address", "fault", "space", "type")

    def __init__(self, space: AddressSpace, ctype: CType, address: U64, fault: Mask | None = None) -> None:
        self.space = space
        self.type = ctype
        self.address = address
        self.fault = np.zeros(len(address), dtype=np.bool_) if fault is None else fault
        self._columns: dict[str, Column] = {}

    def __len__(self) -> int:
        return len(self.address)

    def __getitem__(self, name: str) -> Column:
        return self._columns[name]

    def fetch(self, *members: Names) -> Structs:
        """Read members into columns, nearby ones together, and give these same structs back.

        A member is a path, or a tuple of alternatives of which the first that the type has is read; the column goes
        by the first alternative's name. Raises `NoMember` before anything is read.
        """
        wanted = members
        if self._columns:
            wanted = tuple(names for names in members if _first(names) not in self._columns)
        if not wanted:
            return self
        spans = _planned(self.type, wanted)
        whole = self.address.all()
        live = slice(None) if whole else np.flatnonzero(self.address)
        base = self.address[live]
        for span in spans:
            rows, ok = self.space.gather(base + np.uint64(span.start), span.size)
            if not ok.all():
                self.fault[live] |= ~ok
            for name, member in span.members:
                column = _decode(rows, member, member.offset - span.start)
                if not whole:
                    full = np.zeros((len(self.address), *column.shape[1:]), dtype=column.dtype)
                    full[live] = column
                    column = full
                self._columns[name] = column
        return self

    def select(self, which: NDArray[np.intp] | Mask) -> Structs:
        """These rows only, with their columns."""
        out = Structs(self.space, self.type, self.address[which], self.fault[which])
        out._columns = {name: column[which] for name, column in self._columns.items()}
        return out

    def has(self, *names: str) -> bool:
        """Whether this kernel's type has one of these members."""
        return self.type.has(*names)

    def fetched(self, name: str) -> bool:
        """Whether a column of that name was read."""
        return name in self._columns

    def pointer(self, names: Names) -> U64:
        """A pointer member as (n,) uint64 addresses, fetched if it was not."""
        return self._numbers(names).astype(np.uint64, copy=False)

    def number(self, names: Names) -> NDArray[np.int64]:
        """An integer member as (n,) int64, fetched if it was not."""
        return self._numbers(names).astype(np.int64, copy=False)

    def _numbers(self, names: Names) -> Column:
        """A column (n,). Raises `WrongProfile` for a member that is none: a module's types are the guest's to write."""
        name = _first(names)
        if name not in self._columns:
            self.fetch(names)
        column = self._columns[name]
        if column.ndim != 1:
            raise WrongProfile(f"the types do not hold together: {self.type.name}.{name} is no number")
        return column

    def unsigned(self, names: Names) -> U64:
        """An integer member as (n,) uint64, fetched if it was not."""
        return self.pointer(names)

    def text(self, names: Names) -> list[str]:
        """A char array member as text up to its first NUL, fetched if it was not."""
        name = _first(names)
        if name not in self._columns:
            self.fetch(names)
        column = self._columns[name]
        if column.ndim == 1:
            raise WrongProfile(f"the types do not hold together: {self.type.name}.{name} is no text")
        return texts(column.view(np.uint8))

    def at(self, names: Names) -> U64:
        """The addresses (n,) of a member within each struct; 0 where there is no struct."""
        offset = np.uint64(self.type.member(*_all(names)).offset)
        return np.where(self.address == 0, np.uint64(0), self.address + offset)

    def follow(self, names: Names, ctype: CType | None = None) -> Structs:
        """The structs that a pointer member points at; of the type that the pointer says, unless one is given."""
        member = self.type.member(*_all(names))
        return Structs(self.space, ctype or member.type.target, self.pointer(names))

    def inside(self, names: Names, ctype: CType | None = None) -> Structs:
        """The structs embedded as a member."""
        return Structs(self.space, ctype or self.type.member(*_all(names)).type, self.at(names))

    def holder(self, ctype: CType, *names: str) -> Structs:
        """container_of: the structs of type `ctype` whose member `names` lies at these addresses."""
        offset = np.uint64(ctype.member(*names).offset)
        return Structs(self.space, ctype, np.where(self.address == 0, np.uint64(0), self.address - offset))


def texts(raw: U8) -> list[str]:
    """Rows (n, width) of NUL-terminated bytes as text; bytes that are no UTF-8 become `\\xNN`."""
    if not raw.shape[1]:
        return [""] * len(raw)
    cells: list[bytes] = np.ascontiguousarray(raw).view(f"S{raw.shape[1]}")[:, 0].tolist()
    joined = b"\0".join(cells)
    if joined.count(b"\0") != max(len(cells) - 1, 0):  # what stands behind a NUL is left from a longer text
        joined = b"\0".join([cell.partition(b"\0")[0] for cell in cells])
    # All in one piece: none of the cells holds a NUL now, and no character of UTF-8 goes on behind one.
    return joined.decode("utf-8", "backslashreplace").split("\0") if cells else []


@dataclass(frozen=True, slots=True)
class _Span:
    """Bytes of a struct that are read in one, and the columns that they hold."""

    start: int
    size: int
    members: tuple[tuple[str, Member], ...]


def _planned(ctype: CType, wanted: tuple[Names, ...]) -> tuple[_Span, ...]:
    """What to read of a type for these members. Raises `NoMember`."""
    made: tuple[_Span, ...] | None = ctype.plans.get(wanted)
    if made is None:
        made = tuple(_plan({_first(names): ctype.member(*_all(names)) for names in wanted}))
        ctype.plans[wanted] = made
    return made


def _plan(wanted: dict[str, Member]) -> Iterable[_Span]:
    """Group members into spans: nearby members are one read."""
    group: list[tuple[str, Member]] = []
    start = end = 0
    for name, member in sorted(wanted.items(), key=lambda item: item[1].offset):
        size = min(member.size, MEMBER_LIMIT)
        if group and member.offset - end > SPAN_GAP:
            yield _Span(start, end - start, tuple(group))
            group = []
        if not group:
            start = end = member.offset
        group.append((name, member))
        end = max(end, member.offset + size)
    if group:
        yield _Span(start, end - start, tuple(group))


def _decode(rows: U8, member: Member, offset: int) -> Column:
    size = min(member.size, MEMBER_LIMIT)
    raw = np.ascontiguousarray(rows[:, offset : offset + size])
    scalar = member.type.kind in ("int", "enum", "pointer") and size in (1, 2, 4, 8)
    if not scalar:
        return raw
    signed = member.type.signed and not member.bit_size
    column = raw.view(f"<{'i' if signed else 'u'}{size}")[:, 0]
    if not member.bit_size:
        return column
    bits = (column.astype(np.uint64) >> np.uint64(member.bit_offset)) & np.uint64((1 << member.bit_size) - 1)
    if member.type.signed:
        top = np.uint64(1 << (member.bit_size - 1))
        return ((bits ^ top) - top).view(np.int64)
    return bits


def _first(names: Names) -> str:
    return names if isinstance(names, str) else names[0]


def _all(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names
