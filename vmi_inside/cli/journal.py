"""`vmi-inside journal`: what was changed in a guest."""

from __future__ import annotations

import click

from vmi_inside.cli import exits
from vmi_inside.cli.control import controlled
from vmi_inside.cli.fields import plain
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output


@click.command(
    epilog="""\b
Examples:
  vmi-inside journal web01
  vmi-inside journal web01 --format json | jq '.[] | select(.undoable) | .id'"""
)
@target_options
@output_options
def journal(target: Target, output: Output) -> None:
    """Changes made to a guest, and which can be undone.

    Changes made to a guest with vmi-inside, from this account, and which can be undone.
    """
    from vmi_inside.control.changes import Changes, changes

    fields = output.choose(Changes.schema, plain("id", "time", "kind", "state", "undoable", "user", "reason"))
    with controlled(target, output) as guest:
        table = changes(guest.journal(), guest.standing())
    output.write(output.ordered(table), fields, target.name)
    if not len(table):
        say(f"{target.name}: nothing was changed")
        click.get_current_context().exit(exits.NOTHING)
