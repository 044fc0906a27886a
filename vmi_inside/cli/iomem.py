"""`vmi-inside iomem`: which physical addresses, or ports, belong to what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.listing import like, list_table
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _ranges(digits: int) -> Field:
    def cells(table: Table) -> list[str]:
        rows = zip(table.depth.tolist(), table.start.tolist(), table.end.tolist(), strict=True)
        return [f"{'  ' * depth}{start:0{digits}x}-{end:0{digits}x}" for depth, start, end in rows]

    return Field("range", ("depth", "start", "end"), cells)


@click.command(
    epilog="""\b
Examples:
  vmi-inside iomem web01
  vmi-inside iomem web01 --name 'System RAM' --format json
  vmi-inside iomem web01 --ports"""
)
@target_options
@click.option("--ports", is_flag=True, help="Ports instead, as /proc/ioports has them.")
@click.option("--name", "names", multiple=True, metavar="GLOB", help="Ranges whose name is like this.")
@output_options
def iomem(target: Target, ports: bool, names: tuple[str, ...], output: Output) -> None:
    """Ranges of physical addresses, or of ports.

    They are shown as root sees them in /proc/iomem and /proc/ioports.
    """
    shown = (_ranges(4 if ports else 8), *plain("name"))
    list_table(
        target, output, "ioports" if ports else "iomem", shown,
        filters={"name": like(names)} if names else None, what="range",
    )  # fmt: skip
