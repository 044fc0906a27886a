"""What most commands do: read one table, keep the rows that were asked for, write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from vmi_inside.cli import exits
from vmi_inside.cli.filters import keep
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Command, Target, numbers
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.cli.fields import Fields
    from vmi_inside.table import Table

Filters = Mapping[str, Callable[[Any], object]]


def pid_option(command: Command) -> Command:
    """-p/--pid, given to the command as `pid`."""
    return click.option(
        "-p", "--pid", type=numbers, metavar="PID,...", multiple=True, help="These processes only."
    )(command)  # fmt: skip


def like(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Fits what is like one of these shell patterns."""
    listed = tuple(patterns)
    return lambda value: any(fnmatchcase(value, each) for each in listed)


def list_table(
    target: Target,
    output: Output,
    name: str,
    default: Fields,
    *,
    filters: Filters | None = None,
    pid: Iterable[tuple[int, ...]] = (),
    sort: tuple[str, ...] = (),
    what: str = "row",
) -> None:
    """Write the table of that name (in `tables.TABLES`).

    `default` are the fields that people see, `filters` what columns' values must fit, `pid` what `pid_option` gave,
    `sort` the order where none was asked for, `what` a row is called. Ends with exit code 1 when rows were asked for
    and none is there.
    """
    from vmi_inside.tables import TABLES

    reading = TABLES[name]
    fields = output.choose(reading.table.schema, default)
    fits = dict(filters or {})
    pids = frozenset(chain(*pid))
    if pids:
        fits["pid"] = pids.__contains__
    columns = output.needs(fields, *fits, *(key.removeprefix("-") for key in sort), "fault")
    options = {"pids": pids} if pids and reading.by_process else {}
    with target.attach(output) as guest:
        table: Table = guest.read(reading, columns, **options)
    for column, fit in fits.items():
        table = keep(table, column, fit)
    output.write(output.ordered(table, *sort), fields, target.name)
    if fits and not len(table):
        say(f"{target.name}: no {what} matches")
        click.get_current_context().exit(exits.NOTHING)
