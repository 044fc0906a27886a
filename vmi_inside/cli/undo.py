"""`vmi-inside undo`: take changes back."""

from __future__ import annotations

import click

from vmi_inside.cli import exits
from vmi_inside.cli.control import controlled, dry_run_option, quiet_option
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, target_options


@click.command(
    epilog="\b\nExamples:\n  vmi-inside undo web01\n  vmi-inside undo web01 12 --dry-run\n  vmi-inside undo web01 --all"
)
@target_options
@click.argument("number", metavar="[ID]", type=int, required=False)
@click.option("--all", "every", is_flag=True, help="Everything that still stands, the last first.")
@dry_run_option
@quiet_option
def undo(target: Target, number: int | None, every: bool, dry_run: bool, quiet: bool) -> None:
    """Put back what stood in the guest before a change.

    Put back what stood in the guest before a change: the last one, that of an ID, or all.

    Nothing is written when the guest has rebooted since, or when other bytes stand there than the change had written.
    """
    if every and number is not None:
        raise click.UsageError("Either an ID or --all.")
    with controlled(target, quiet=quiet) as guest:
        standing = guest.standing()
        chosen = [number] if number is not None else [entry.id for entry in standing][: None if every else 1]
        if not chosen:
            say(f"{target.name}: there is nothing to undo")
            click.get_current_context().exit(exits.NOTHING)
        by_id = {entry.id: entry for entry in guest.journal()}
        for one in chosen:
            entry = by_id.get(one)
            if dry_run and entry is not None:
                for write in reversed(entry.writes):
                    click.echo(f"would put back {write.address:#x}: {write.new.hex(' ')} -> {write.old.hex(' ')}")
                continue
            made = guest.undo(one)
            if not quiet:
                say(f"{target.name}: entry {made.id}: {made.reason}")
