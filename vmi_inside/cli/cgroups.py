"""`vmi-inside cgroups`: control groups."""

from __future__ import annotations

import click

from vmi_inside.cli.fields import plain
from vmi_inside.cli.listing import Filters, like, list_table
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

_SHOWN = plain("hierarchy", "path", "processes", "threads", "frozen", "dying", "controllers")


@click.command(
    epilog="""\b
Examples:
  vmi-inside cgroups web01
  vmi-inside cgroups web01 '/system.slice/*' --sort -processes
  vmi-inside cgroups web01 --dying -o +id,address
  vmi-inside cgroups web01 --frozen --format json"""
)
@target_options
@click.argument("path", nargs=-1)
@click.option("--frozen", is_flag=True, help="Only those whose processes are stopped by the freezer, or are to be.")
@click.option("--dying", is_flag=True, help="Only those that were removed, and that memory still holds on to.")
@output_options
def cgroups(target: Target, path: tuple[str, ...], frozen: bool, dying: bool, output: Output) -> None:
    """Control groups, and how many processes are in each.

    PATH limits it to groups of that path, or like that pattern, in which * stands for slashes too. Groups that were
    removed are in no directory, but in this table. Ends with exit code 1 when something was asked for and nothing is
    there.
    """
    filters: Filters = {
        **({"path": like(path)} if path else {}),
        **({"frozen": ("yes", "wanted").__contains__} if frozen else {}),
        **({"dying": bool} if dying else {}),
    }
    list_table(target, output, "cgroups", _SHOWN, filters=filters, what="control group")
