"""What `deny` and `allow` have in common: which operation, to whom, and what is said of what was done."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from vmi_inside.cli.escape import visible
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Command, Target

if TYPE_CHECKING:
    from vmi_inside.control.gates.placing import Outcome

#: As `control.gates.operations` has them: a command's help does not wait for that to be imported.
OPERATIONS = ("network", "exec", "open", "module", "ptrace", "kill")


def operation_argument(*, required: bool = True) -> Callable[[Command], Command]:
    """OPERATION, given to the command as `operation`."""
    return click.argument("operation", type=click.Choice(OPERATIONS), metavar="OPERATION", required=required)


def subject_options(command: Command) -> Command:
    """--pid, --cgroup and --uid, given to the command under these names."""
    for option in (
        click.option("--uid", type=int, help="All processes of this user (real or effective uid)."),
        click.option("--cgroup", metavar="PATH", help="All processes of this cgroup and those below: of a container."),
        click.option("-p", "--pid", type=int, help="This process, as the guest's first pid namespace numbers it."),
    ):
        command = option(command)
    return command


def one_subject(pid: int | None, cgroup: str | None, uid: int | None) -> None:
    """A usage error unless exactly one was given."""
    if sum(one is not None for one in (pid, cgroup, uid)) != 1:
        raise click.UsageError("One of --pid, --cgroup and --uid says to whom.")


def told(target: Target, outcome: Outcome, *, quiet: bool) -> None:
    """Say what was done, or, of a dry run, what would be written."""
    if outcome.entry is None:
        for one in outcome.changes:
            click.echo(f"would write {one.address:#x} ({visible(one.what)}): {_bytes(one.old)} -> {_bytes(one.new)}")
        for note in outcome.notes:
            click.echo(visible(note))
        return
    if not quiet:
        stood = f"; the guest stood still for {outcome.seconds * 1000:.0f} ms"
        say(f"{target.name}: entry {outcome.entry.id}: {visible(outcome.entry.reason)}{stood}")
        for note in outcome.notes:
            say(f"{target.name}: {note}")


def _bytes(raw: bytes) -> str:
    """Bytes in hexadecimal; a row of one and the same byte by its length."""
    return f"{raw[0]:02x} ({len(raw)} times)" if len(raw) > 16 and len(set(raw)) == 1 else raw.hex(" ")
