"""`vmi-inside pause`: stop a guest."""

from __future__ import annotations

import click

from vmi_inside.cli.control import controlled, quiet_option
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, target_options


@click.command(epilog="\b\nExamples:\n  vmi-inside pause web01")
@target_options
@quiet_option
def pause(target: Target, quiet: bool) -> None:
    """Stop a guest. None of its vCPUs runs until `vmi-inside resume`."""
    with controlled(target, quiet=quiet, writable=False) as guest:
        done = guest.pause()
    if not quiet:
        say(f"{target.name}: {'paused' if done else 'was paused already'}")
