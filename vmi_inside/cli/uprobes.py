"""`vmi-inside uprobes`: where programs are probed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.listing import Filters, like, list_table
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _offset(table: Table) -> list[str]:
    """As uprobe_events has it."""
    return [f"{each:#x}" for each in table.offset.tolist()]


_SHOWN = (
    *plain("path", "inode"), Field("offset", make=_offset),
    *plain("handler", "return_handler", "owner", "event"),
)  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  vmi-inside uprobes web01
  vmi-inside uprobes web01 '*/libssl.so*'
  vmi-inside uprobes web01 --owner 'evil*' --format json"""
)
@target_options
@click.argument("path", nargs=-1)
@click.option(
    "--owner", "owners", multiple=True, metavar="GLOB", help="Handlers that are the code of modules like this."
)
@output_options
def uprobes(target: Target, path: tuple[str, ...], owners: tuple[str, ...], output: Output) -> None:
    """Where programs are probed, and whose code runs there.

    Uprobes: instructions of programs and libraries at which the kernel runs somebody's code.

    PATH limits it to files of that path, or like that pattern, in which * stands for slashes too. Ends with exit code 1
    when something was asked for and nothing is there.
    """
    filters: Filters = {
        **({"path": like(path)} if path else {}),
        **({"owner": like(owners)} if owners else {}),
    }
    list_table(target, output, "uprobes", _SHOWN, filters=filters, what="uprobe")
