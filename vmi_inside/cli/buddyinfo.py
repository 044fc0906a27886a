"""`vmi-inside buddyinfo`: free memory by the size of its pieces."""

from __future__ import annotations

import click

from vmi_inside.cli.fields import plain, sizes
from vmi_inside.cli.listing import list_table
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

_SHOWN = (*plain("node", "zone", *(f"order_{order}" for order in range(11))), *sizes("free", "managed"))


@click.command(
    epilog="""\b
Examples:
  vmi-inside buddyinfo web01
  vmi-inside buddyinfo web01 -o zone,free,managed,present --format csv"""
)
@target_options
@output_options
def buddyinfo(target: Target, output: Output) -> None:
    """Free memory by the size of its pieces.

    Free memory of each zone by the size of its pieces, as /proc/buddyinfo shows it.

    ORDER_N is the number of free pieces of 2**N pages of 4 KiB each.
    """
    list_table(target, output, "buddy_info", _SHOWN, what="zone")
