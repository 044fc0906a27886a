"""`vmi-inside kill`, `stop`, `cont` and `nice`: what is done to processes of a guest by its own kernel."""

from __future__ import annotations

import signal as signals
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from vmi_inside.cli import exits
from vmi_inside.cli.control import controlled, dry_run_option, quiet_option
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Command, Target, target_options

if TYPE_CHECKING:
    from vmi_inside.guest import Guest


def signal_number(text: str) -> int:
    """The type of options that take a signal: TERM, SIGTERM, 15, RTMIN+1."""
    from vmi_inside.control.signals import number
    from vmi_inside.errors import ControlError

    try:
        return number(text)
    except ControlError as error:
        raise click.BadParameter(f"{error}.") from None


def process_options(command: Command) -> Command:
    """TARGET PID..., --group, --cgroup, --force, --dry-run and --quiet: which processes."""
    for option in (
        quiet_option,
        dry_run_option,
        click.option("--force", is_flag=True, help="Also process 1 and threads of the kernel: this can end the guest."),
        click.option("--cgroup", metavar="PATH", help="All processes of this cgroup and those below: of a container."),
        click.option("--group", type=int, metavar="PGID", help="All processes of this process group."),
        click.argument("pids", metavar="[PID]...", type=int, nargs=-1),
        target_options,
    ):
        command = option(command)
    return command


def chosen(guest: Guest, pids: Sequence[int], group: int | None, cgroup: str | None) -> list[int]:
    """The processes that were meant. Ends with exit code 1 where a group or cgroup has none."""
    from vmi_inside.control.groups import in_cgroup, in_group

    found = list(pids)
    if group is not None:
        found += in_group(guest.kernel, group)
    if cgroup is not None:
        found += in_cgroup(guest.processes(columns=("pid", "cgroup_path")), cgroup)
    if not found:
        say(f"{guest.name}: no process is in it")
        click.get_current_context().exit(exits.NOTHING)
    return found


def act(
    target: Target, pids: Sequence[int], group: int | None, cgroup: str | None, force: bool, dry_run: bool, quiet: bool,
    words: str, do: Callable[[Guest, list[int]], None],
) -> None:  # fmt: skip
    """Do something to processes, or say what would be done: `words` and each of them."""
    if not pids and group is None and cgroup is None:
        raise click.UsageError("Which processes? Give PIDs, --group or --cgroup.")
    with controlled(target, quiet=quiet, dry_run=dry_run) as guest:
        from vmi_inside.control.signals import targets

        meant = targets(guest.kernel, chosen(guest, pids, group, cgroup), force=force)
        if not dry_run:
            do(guest, [one.pid for one in meant])
    for one in meant if dry_run or not quiet else ():
        line = f"{words} {one.pid} ({one.name})"
        if dry_run:
            from vmi_inside.cli.escape import visible

            click.echo(f"would give {visible(line)}")
        else:
            say(f"{target.name}: {line}")


def send(
    number: int, target: Target, pids: Sequence[int], group: int | None, cgroup: str | None, force: bool,
    dry_run: bool, quiet: bool,
) -> None:  # fmt: skip
    """Send a signal to the processes that were meant."""
    from vmi_inside.control.signals import name

    act(target, pids, group, cgroup, force, dry_run, quiet, f"{name(number)} to",
        lambda guest, meant: guest.signal(meant, number, force=force))  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  vmi-inside kill web01 812
  vmi-inside kill web01 812 --signal KILL
  vmi-inside kill web01 --cgroup /system.slice/docker-1f2e.scope --dry-run"""
)
@process_options
@click.option("-s", "--signal", type=signal_number, default="TERM", metavar="SIGNAL", show_default=True,
              help="Which one, by name or number.")  # fmt: skip
def kill(
    target: Target, pids: tuple[int, ...], group: int | None, cgroup: str | None, force: bool, dry_run: bool,
    quiet: bool, signal: int,
) -> None:  # fmt: skip
    """Send a signal to processes of a guest.

    To those of containers, too. The guest's own kernel sends it, with all its effects. It cannot be undone.
    """
    send(signal, target, pids, group, cgroup, force, dry_run, quiet)


@click.command(epilog="\b\nExamples:\n  vmi-inside stop web01 812\n  vmi-inside cont web01 812")
@process_options
def stop(
    target: Target, pids: tuple[int, ...], group: int | None, cgroup: str | None, force: bool, dry_run: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Stop processes of a guest (SIGSTOP) until `cont`."""
    send(signals.SIGSTOP, target, pids, group, cgroup, force, dry_run, quiet)


@click.command(epilog="\b\nExamples:\n  vmi-inside cont web01 812")
@process_options
def cont(
    target: Target, pids: tuple[int, ...], group: int | None, cgroup: str | None, force: bool, dry_run: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Let stopped processes of a guest go on (SIGCONT)."""
    send(signals.SIGCONT, target, pids, group, cgroup, force, dry_run, quiet)


@click.command(epilog="\b\nExamples:\n  vmi-inside nice web01 812 --to 19")
@process_options
@click.option("--to", "value", type=click.IntRange(-20, 19), required=True, help="-20, the most urgent, to 19.")
def nice(
    target: Target, pids: tuple[int, ...], group: int | None, cgroup: str | None, force: bool, dry_run: bool,
    quiet: bool, value: int,
) -> None:  # fmt: skip
    """Set how nice processes of a guest are, all of their threads."""
    act(target, pids, group, cgroup, force, dry_run, quiet, f"nice {value} for",
        lambda guest, meant: guest.nice(meant, value, force=force))  # fmt: skip
