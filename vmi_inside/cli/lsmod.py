"""`vmi-inside lsmod`: loaded kernel modules."""

from __future__ import annotations

import click

from vmi_inside.cli.fields import plain
from vmi_inside.cli.listing import like, list_table
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output


@click.command(
    epilog="""\b
Examples:
  vmi-inside lsmod web01
  vmi-inside lsmod web01 --name 'nf_*' -o +taints,base
  vmi-inside lsmod web01 --format json | jq '.[] | select(.taints != "") | .name'"""
)
@target_options
@click.option("--name", "names", multiple=True, metavar="GLOB", help="Modules whose name is like this.")
@output_options
def lsmod(target: Target, names: tuple[str, ...], output: Output) -> None:
    """Kernel modules, as the kernel's list has them."""
    list_table(
        target, output, "kernel_modules", plain("name", "size", "references", "used_by", "status"),
        filters={"name": like(names)} if names else None, what="module",
    )  # fmt: skip
