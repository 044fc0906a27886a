"""What the commands that control a guest have in common: consent, dry runs, and what is said afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Command, Target
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.guest import Guest


def quiet_option(command: Command) -> Command:
    """-q/--quiet, given to the command as `quiet`."""
    return click.option("-q", "--quiet", is_flag=True, help="No notices on stderr; errors only.")(command)


def dry_run_option(command: Command) -> Command:
    """-n/--dry-run, given to the command as `dry_run`."""
    return click.option(
        "-n", "--dry-run", is_flag=True, help="Say what would be done; neither pause the guest nor write to it."
    )(command)  # fmt: skip


def reason_option(command: Command) -> Command:
    """--reason, given to the command as `reason`."""
    return click.option("--reason", default="", metavar="TEXT", help="Why; it is kept in the journal.")(command)


@contextmanager
def controlled(
    target: Target, output: Output | None = None, *, quiet: bool = False, writable: bool = True, dry_run: bool = False
) -> Iterator[Guest]:
    """The guest, attached so that it can be changed (paused only, unless `writable`; read-only for a dry run).

    What control leaves to be said, as that libvirt marks the domain, is said at the end.
    """
    out = output or Output(quiet=quiet)
    with target.attach(out, writable=writable and not dry_run, pausing=not dry_run) as guest:
        try:
            yield guest
        finally:
            for notice in guest.machine.notices if guest.machine is not None and not out.quiet else ():
                say(f"{guest.name}: {notice}")
