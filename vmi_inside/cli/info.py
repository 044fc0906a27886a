"""`vmi-inside info`: what a guest is, and how it is read."""

from __future__ import annotations

import click

from vmi_inside.cli.fields import plain
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output


@click.command(epilog="\b\nExamples:\n  vmi-inside info web01\n  vmi-inside info file:web01.core --format json")
@target_options
@output_options
def info(target: Target, output: Output) -> None:
    """The guest's kernel and memory, and how it is reached."""
    from vmi_inside.linux.system import SystemInfo

    fields = output.choose(SystemInfo.schema, plain(*SystemInfo.schema))
    with target.attach(output) as guest:
        table = guest.info()
    output.record(table, fields)
