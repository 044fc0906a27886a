"""`vmi-inside setuid`: whose a process is."""

from __future__ import annotations

import click

from vmi_inside.cli.control import controlled, quiet_option
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, target_options


@click.command(epilog="\b\nExamples:\n  vmi-inside setuid web01 812 --uid 1000 --gid 1000\n  vmi-inside undo web01")
@target_options
@click.argument("pid", type=int)
@click.option("--uid", type=click.IntRange(0, 0xFFFF_FFFE), help="All its user ids.")
@click.option("--gid", type=click.IntRange(0, 0xFFFF_FFFE), help="All its group ids.")
@click.option("--force", is_flag=True, help="Also process 1.")
@quiet_option
def setuid(target: Target, pid: int, uid: int | None, gid: int | None, force: bool, quiet: bool) -> None:
    """Make a process another user's.

    Make a process another user's, all of its threads; `vmi-inside undo` takes it back.

    One that becomes another user's than root loses its capabilities. Supplementary groups and open files stay.
    """
    if uid is None and gid is None:
        raise click.UsageError("Give --uid, --gid or both.")
    with controlled(target, quiet=quiet) as guest:
        entry = guest.set_ids(pid, uid, gid, force=force)
    if not quiet:
        say(f"{target.name}: entry {entry.id}: {entry.reason}")
