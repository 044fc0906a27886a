"""`vmi-inside limits`: resource limits of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.listing import Filters, like, list_table, pid_option
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _limit(name: str) -> Field:
    """A limit in a number, or in the word that ulimit has."""

    def cells(table: Table) -> list[str]:
        from vmi_inside.linux.processes.limits import UNLIMITED

        return ["unlimited" if each == UNLIMITED else str(each) for each in table.column(name).tolist()]

    return Field(name, make=cells)


@click.command(
    epilog="""\b
Examples:
  vmi-inside limits web01 -p 812
  vmi-inside limits web01 --resource '*open files' --sort -soft
  vmi-inside limits web01 --resource '*core*' --format csv"""
)
@target_options
@click.option("--resource", "resources", multiple=True, metavar="GLOB", help="Of resources like this: '*open files'.")
@pid_option
@output_options
def limits(target: Target, resources: tuple[str, ...], pid: tuple[tuple[int, ...], ...], output: Output) -> None:
    """Resource limits of processes, as ulimit shows them.

    Resource limits of processes, as /proc/PID/limits and ulimit show them.

    In JSON and CSV no limit is the kernel's number for it, 18446744073709551615. Ends with exit code 1 when something
    was asked for and nothing is there.
    """
    fits = like(each.lower() for each in resources)
    filters: Filters = {"resource": lambda name: fits(name.lower())} if resources else {}
    shown = (*plain("pid", "name", "resource"), _limit("soft"), _limit("hard"), *plain("unit"))
    list_table(target, output, "process_limits", shown, filters=filters, pid=pid, what="limit")
