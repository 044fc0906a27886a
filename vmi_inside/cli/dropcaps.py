"""`vmi-inside dropcaps`: capabilities taken from a process."""

from __future__ import annotations

import click

from vmi_inside.cli.control import controlled, quiet_option
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, target_options


@click.command(
    epilog="""\b
Examples:
  vmi-inside dropcaps web01 812 --all
  vmi-inside dropcaps web01 812 net_admin CAP_SYS_PTRACE"""
)
@target_options
@click.argument("pid", type=int)
@click.argument("names", nargs=-1, metavar="[CAPABILITY]...")
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.option("--force", is_flag=True, help="Also process 1.")
@quiet_option
def dropcaps(target: Target, pid: int, names: tuple[str, ...], every: bool, force: bool, quiet: bool) -> None:
    """Take capabilities from a process.

    Take capabilities from a process, also those that it could gain; `vmi-inside undo` gives them back.
    """
    if every == bool(names):
        raise click.UsageError("Name capabilities, or say --all.")
    with controlled(target, quiet=quiet) as guest:
        entry = guest.drop_capabilities(pid, None if every else names, force=force)
    if not quiet:
        say(f"{target.name}: entry {entry.id}: {entry.reason}")
