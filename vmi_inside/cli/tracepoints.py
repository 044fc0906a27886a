"""`vmi-inside tracepoints`: what is called at tracepoints."""

from __future__ import annotations

import click

from vmi_inside.cli.fields import plain
from vmi_inside.cli.listing import Filters, like, list_table
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output


@click.command(
    epilog="""\b
Examples:
  vmi-inside tracepoints web01
  vmi-inside tracepoints web01 'sched_*'
  vmi-inside tracepoints web01 --owner 'evil*' --format json"""
)
@target_options
@click.argument("tracepoint", nargs=-1)
@click.option(
    "--owner", "owners", multiple=True, metavar="GLOB", help="Functions that are the code of modules like this."
)
@output_options
def tracepoints(target: Target, tracepoint: tuple[str, ...], owners: tuple[str, ...], output: Output) -> None:
    """Tracepoints that are in use, and whose code is called there.

    TRACEPOINT limits it to tracepoints of that name, or like that pattern. Ends with exit code 1 when something was
    asked for and nothing is there.
    """
    filters: Filters = {
        **({"name": like(tracepoint)} if tracepoint else {}),
        **({"owner": like(owners)} if owners else {}),
    }
    list_table(
        target, output, "tracepoints", plain("name", "module", "function", "owner", "data_address"),
        filters=filters, what="function at a tracepoint",
    )  # fmt: skip
