"""`vmi-inside diff`: what came, went and changed between two readings."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from vmi_inside.cli import complete
from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.options import Target, connect_option, output_options, profile_option
from vmi_inside.cli.output import Output
from vmi_inside.cli.snapshot import listed, tables_option

if TYPE_CHECKING:
    from vmi_inside.snapshot import Snapshot
    from vmi_inside.table import Table

KEPT: Final = "snapshot:"
_SIGNS: Final = {"added": "+", "removed": "-", "changed": "~"}


def _sign(table: Table) -> list[str]:
    return [_SIGNS.get(word, "?") for word in table.column("change").tolist()]


_SHOWN: Final = (Field("", ("change",), _sign), *plain("table_name", "row", "column_name", "before", "after"))


@click.command(
    epilog="""\b
Examples:
  vmi-inside diff web01 --wait 10
  vmi-inside diff snapshot:before.json.gz web01
  vmi-inside diff file:monday.core file:tuesday.core -t processes,kernel_modules"""
)
@click.argument("before", metavar="BEFORE", shell_complete=complete.targets)
@click.argument("after", metavar="[AFTER]", required=False, shell_complete=complete.targets)
@click.option("--wait", type=click.FloatRange(0, 86400), metavar="SECONDS", help="Read BEFORE again after so long.")
@tables_option
@connect_option
@profile_option
@output_options
def diff(
    before: str,
    after: str | None,
    wait: float | None,
    tables: tuple[str, ...],
    connect: str | None,
    profile_file: str | None,
    output: Output,
) -> None:
    """What came, went and changed between two readings.

    BEFORE and AFTER are targets, or snapshot:FILE for one that `vmi-inside snapshot` kept. What changes of itself
    (times, sizes, queues) is left out.
    """
    from vmi_inside import diff as compared
    from vmi_inside.snapshot import USUAL

    if (after is None) == (wait is None):
        raise click.UsageError("Give AFTER, or --wait SECONDS to read BEFORE again.")
    fields = output.choose(compared.Changes.schema, _SHOWN)
    names = listed(tables)
    with ExitStack() as stack:
        first = _taken(Target(before, connect, profile=profile_file), names, output, stack)
        if wait is not None:
            time.sleep(wait)
        second = _taken(Target(after or before, connect, profile=profile_file), names, output, stack)
    common = [name for name in first.tables if name in second.tables]
    found = compared.diff(first, second, names or [name for name in USUAL if name in common] or common)
    output.write(output.ordered(found), fields)


def _taken(target: Target, tables: list[str], output: Output, stack: ExitStack) -> Snapshot:
    if target.name.startswith(KEPT):
        from vmi_inside import saved

        return saved.load(Path(target.name.removeprefix(KEPT)))
    guest = stack.enter_context(target.attach(output))
    return guest.snapshot(*tables)
