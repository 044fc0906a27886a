"""A table to stdout, in the format that was asked for, and what must be said about it to stderr.

Knows the four formats. JSON, JSON lines and CSV have the library's columns and exact values; a table has what people
read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import click

from vmi_inside.cli import grids
from vmi_inside.cli.escape import visible
from vmi_inside.cli.fields import Field, Fields, checked, plain
from vmi_inside.cli.messages import say
from vmi_inside.cli.sink import emit

if TYPE_CHECKING:
    from vmi_inside.guest import Guest
    from vmi_inside.table import Table

FORMATS: Final = ("table", "json", "jsonl", "csv")


@dataclass(frozen=True, slots=True)
class Output:
    """What was asked about output: `format`, `columns` (-o), `sort`, headers, width, and how much to say."""

    format: str = "table"
    columns: tuple[str, ...] = ()
    sort: tuple[str, ...] = ()
    headers: bool = True
    wide: bool = False
    quiet: bool = False
    verbose: bool = False

    def choose(self, schema: Sequence[str], default: Fields) -> Fields:
        """The fields to show. `default` is for people; data has all columns of `schema` unless -o says otherwise.

        Raises `click.BadParameter` for columns that are not in `schema`.
        """
        standard = default if self.format == "table" else plain(*schema)
        chosen: list[Field] = []
        for asked in self.columns or ("+",):
            if asked.startswith("+"):
                chosen += standard
            for name in filter(None, asked.removeprefix("+").split(",")):
                chosen += plain(*schema) if name.strip() == "all" else plain(checked(name, schema, "-o"))
        if not chosen:
            raise click.BadParameter(f"no columns. There are: {', '.join(schema)}.", param_hint="'-o'")
        for key in self._keys:
            checked(key.removeprefix("-"), schema, "--sort")
        return _distinct(chosen)

    def needs(self, fields: Fields, *more: str) -> list[str]:
        """The library's columns that must be read for these fields, for sorting, and for `more`."""
        made = (name for field in fields for name in field.columns)
        return list(dict.fromkeys((*made, *(key.removeprefix("-") for key in self._keys), *more)))

    def ordered(self, table: Table, *default: str) -> Table:
        """The rows as --sort wants them, else by `default`."""
        return table.sorted(*(self._keys or default))

    @property
    def _keys(self) -> list[str]:
        return [key.strip().lower() for part in self.sort for key in part.split(",") if key.strip()]

    def attached(self, guest: Guest) -> None:
        """Say what there is to say about how the guest is read."""
        for notice in () if self.quiet else guest.notices:
            self._about(guest.name, notice)
        if self.verbose:
            self._about(guest.name, guest.how)

    def write(self, table: Table, fields: Fields, name: str = "") -> None:
        """The table to stdout; then its notes, and how many of its rows are marked, to stderr."""
        marked = sum(map(bool, table.column("fault").tolist())) if "fault" in table.columns else 0
        if self.format == "table":
            self._table(table, _distinct((*fields, Field("fault"))) if marked and self._standard else fields)
        else:
            emit(_WRITERS[self.format](table, [field.name for field in fields], self.headers), "utf-8")
        if self.quiet:
            return
        for note in table.notes:
            self._about(name, note)
        if marked:
            rows = "1 row is" if marked == 1 else f"{marked} rows are"
            self._about(name, f"{rows} marked as not wholly readable: see the column fault")

    def record(self, table: Table, fields: Fields) -> None:
        """A table of one row; for people as a list of names and values."""
        if self.format != "table" or len(table) != 1:
            self.write(table, fields)
            return
        if self._standard and not any(table.column("fault").tolist()):
            fields = tuple(field for field in fields if field.name != "fault")
        names = [field.name for field in fields]
        values = [cell for field in fields for cell in field.cells(table)]
        self._grid(grids.Grid(("",) * 2, (names, values), (False, False), has_headers=False))

    @property
    def _standard(self) -> bool:
        return not self.columns or any(asked.startswith("+") for asked in self.columns)

    def _about(self, name: str, text: str) -> None:
        say(text if not name or name in text else f"{name}: {text}")

    def _table(self, table: Table, fields: Fields) -> None:
        self._grid(
            grids.Grid(
                [field.header for field in fields],
                [field.cells(table) for field in fields],
                [field.right(table) for field in fields],
                self.headers,
            )
        )

    def _grid(self, grid: grids.Grid) -> None:
        if sys.stdout.isatty():
            grids.show(grid, self.wide)
        else:
            emit(line + "\n" for line in grid.lines())


def _distinct(fields: Iterable[Field]) -> Fields:
    """Each name once, where and as it came first."""
    unique: dict[str, Field] = {}
    for field in fields:
        unique.setdefault(field.name, field)
    return tuple(unique.values())


def _rows(table: Table, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    return zip(*(table.column(name).tolist() for name in names), strict=True)


def _json_lines(table: Table, names: Sequence[str], headers: bool) -> Iterator[str]:
    import json

    # ASCII only: JSON lets through DEL, C1 controls and bidi marks that a terminal would obey.
    encode = json.JSONEncoder(ensure_ascii=True).encode
    return (encode(dict(zip(names, row, strict=True))) + "\n" for row in _rows(table, names))


def _json(table: Table, names: Sequence[str], headers: bool) -> Iterator[str]:
    """One array, one object a line."""
    if not len(table):
        yield "[]\n"
        return
    before = "[\n"
    for line in _json_lines(table, names, headers):
        yield before + line.rstrip("\n")
        before = ",\n"
    yield "\n]\n"


def _csv(table: Table, names: Sequence[str], headers: bool) -> Iterator[str]:
    """RFC 4180, exact; but on a terminal what could harm it is escaped, as in tables."""
    import csv
    import io

    rows: Iterable[Iterable[Any]] = _rows(table, names)
    if sys.stdout.isatty():
        rows = ([visible(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    line = io.StringIO()
    writer = csv.writer(line)  # ends lines with CR LF
    for row in chain([names] if headers else [], rows):
        writer.writerow(row)
        yield line.getvalue()
        line.seek(0)
        line.truncate()


_WRITERS: Final = {"json": _json, "jsonl": _json_lines, "csv": _csv}
