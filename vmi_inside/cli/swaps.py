"""`vmi-inside swaps`: where memory is swapped to."""

from __future__ import annotations

import click

from vmi_inside.cli.fields import plain, sizes
from vmi_inside.cli.listing import list_table
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

_SHOWN = (*plain("path", "type"), *sizes("size", "used"), *plain("priority", "active"))


@click.command(
    epilog="""\b
Examples:
  vmi-inside swaps web01
  vmi-inside swaps web01 --format json"""
)
@target_options
@output_options
def swaps(target: Target, output: Output) -> None:
    """Swap files and partitions, and how much of each is used.

    Swap files and partitions, as /proc/swaps shows them, and how much of each is used.
    """
    list_table(target, output, "swaps", _SHOWN, what="swap file")
