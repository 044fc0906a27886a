"""The columns that are shown: which ones were asked for, and how their values are written in a table for people.

Knows the columns' meanings by their names (bytes, seconds since the epoch, addresses). JSON and CSV do not come here:
they have the library's values, exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

import click

from vmi_inside.cli.escape import visible

if TYPE_CHECKING:
    from vmi_inside.table import Table

_YEAR_9999: Final = 253_370_764_800


def size(value: int) -> str:
    """Bytes as `ls -h` shows them: 512, 1.5K, 12M; rounded up."""
    if value < 1024:
        return str(value)
    unit = min((value.bit_length() - 1) // 10, 6)
    if -(-value * 10 // (1 << 10 * unit)) < 100:
        tenths = -(-value * 10 // (1 << 10 * unit))
        return f"{tenths // 10}.{tenths % 10}{'KMGTPE'[unit - 1]}"
    whole = -(-value // (1 << 10 * unit))
    return "1.0" + "KMGTPE"[unit] if whole == 1024 and unit < 6 else f"{whole}{'KMGTPE'[unit - 1]}"


def moment(value: int) -> str:
    """Seconds since the epoch as local ISO time; a number that is no date stays a number."""
    return datetime.fromtimestamp(value).isoformat(timespec="seconds") if 0 <= value < _YEAR_9999 else str(value)


def duration(value: int) -> str:
    """Milliseconds as minutes and seconds: 2:05.31."""
    minutes, rest = divmod(max(value, 0) // 10, 6000)
    return f"{minutes}:{rest // 100:02}.{rest % 100:02}"


def address(value: int) -> str:
    """An address in hexadecimal."""
    return f"{value:#x}"


#: Sets of capabilities and of signals, as numbers.
_MASKS: Final = (
    "inheritable", "permitted", "effective", "bounding", "ambient", "pending", "shared", "blocked", "ignored", "caught",
)  # fmt: skip
_WRITTEN: Final[dict[str, Callable[[int], str]]] = {
    **dict.fromkeys(("resident_size", "total_size", "memory"), size),
    **dict.fromkeys(("start_time", "boot_time", "load_time", "clock", "time", "mtime"), moment),
    **dict.fromkeys(("user_time", "system_time"), duration),
}
#: Written so where they are unsigned: a register's value is, a counter's is a number.
_ADDRESSES: Final = (
    "address", "kaslr_offset", "pointer", "jited_address", "data_address", "probed", "trampoline", "value",
    *(f"{name}_mask" for name in _MASKS),
)  # fmt: skip


def column_cells(table: Table, name: str) -> list[str]:
    """A column of the library as people read it."""
    column = table.column(name)
    values: list[Any] = column.tolist()
    if column.dtype.kind == "b":
        return ["yes" if value else "no" for value in values]
    if name in _WRITTEN and column.dtype.kind in "iu":
        return list(map(_WRITTEN[name], values))
    if name in _ADDRESSES and column.dtype.kind == "u":
        return list(map(address, values))
    return [visible(value if isinstance(value, str) else str(value)) for value in values]


#: Where the column's name is much wider than its values, ps's word stands above them.
_HEADERS: Final = {"resident_size": "RSS", "total_size": "VSZ"}


@dataclass(frozen=True, slots=True)
class Field:
    """A column of a table for people: a column of the library, or several of them put together."""

    name: str
    needs: tuple[str, ...] = ()
    make: Callable[[Table], list[str]] | None = None
    number: bool = False  # what `make` writes belongs to the right

    @property
    def header(self) -> str:
        """What stands above it."""
        return _HEADERS.get(self.name, self.name.upper())

    @property
    def columns(self) -> tuple[str, ...]:
        """The library's columns that it is made from."""
        return self.needs or (self.name,)

    def cells(self, table: Table) -> list[str]:
        """Its texts, one a row, safe for a terminal."""
        return self.make(table) if self.make else column_cells(table, self.name)

    def right(self, table: Table) -> bool:
        """Whether it is a number, and belongs to the right."""
        return self.number or (self.make is None and table.column(self.name).dtype.kind in "iuf")


Fields = tuple[Field, ...]


def plain(*names: str) -> Fields:
    """Fields for columns of the library."""
    return tuple(map(Field, names))


def sizes(*names: str) -> Fields:
    """Fields for columns of bytes, written with units."""

    def field(name: str) -> Field:
        return Field(name, make=lambda table: [size(value) for value in table.column(name).tolist()], number=True)

    return tuple(map(field, names))


def checked(name: str, schema: Sequence[str], option: str) -> str:
    """The name, in the columns' spelling. A usage error with the columns there are, and the nearest, if it is none."""
    found = name.strip().lower()
    if found in schema:
        return found
    near = get_close_matches(found, schema, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise click.BadParameter(f"no column {name!r}.{hint} Columns: {', '.join(schema)}.", param_hint=f"'{option}'")
