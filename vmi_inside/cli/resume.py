"""`vmi-inside resume`: let a guest run."""

from __future__ import annotations

import click

from vmi_inside.cli.control import controlled, quiet_option
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, target_options


@click.command(epilog="\b\nExamples:\n  vmi-inside resume web01")
@target_options
@quiet_option
def resume(target: Target, quiet: bool) -> None:
    """Let a guest run that was paused, by whomever."""
    with controlled(target, quiet=quiet, writable=False) as guest:
        done = guest.resume()
    if not quiet:
        say(f"{target.name}: {'runs' if done else 'was running already'}")
