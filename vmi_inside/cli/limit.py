"""`vmi-inside limit`: what a process may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmi_inside.cli.control import controlled, quiet_option
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, target_options

if TYPE_CHECKING:
    from vmi_inside.control.rlimits import Limit


def _limit(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, Limit]:
    from vmi_inside.control.rlimits import number
    from vmi_inside.errors import ControlError

    found: dict[str, Limit] = {}
    for text in values:
        name, equals, told = text.partition("=")
        soft, colon, hard = told.partition(":")
        try:
            limit = _number(soft), _number(hard if colon else soft)
        except ValueError:
            equals = ""
        if not equals or (soft, hard) == ("", ""):
            raise click.BadParameter(f"{text!r} is no limit like nofile=64, nofile=64:128 or as=unlimited.")
        try:
            number(name := name.lower())
        except ControlError as error:
            raise click.BadParameter(f"{error}.") from None
        if name in found:
            raise click.BadParameter(f"the limit {name} is given twice.")
        found[name] = limit
    return found


def _number(text: str) -> int | None:
    return None if not text else (1 << 64) - 1 if text in ("unlimited", "infinity") else int(text, 0)


@click.command(
    epilog="""\b
Examples:
  vmi-inside limit web01 812 nofile=64:128
  vmi-inside limit web01 812 as=1073741824 nproc=20"""
)
@target_options
@click.argument("pid", type=int)
@click.argument("limits", nargs=-1, required=True, callback=_limit, metavar="LIMIT=[SOFT][:HARD]...")
@click.option("--force", is_flag=True, help="Also process 1 and threads of the kernel.")
@quiet_option
def limit(target: Target, pid: int, limits: dict[str, Limit], force: bool, quiet: bool) -> None:
    """Set limits of a process, as prlimit does.

    Of several all are set, or none; `vmi-inside undo` takes them back. A single number is both the soft and the hard
    limit; SOFT: and :HARD set one of them. Limits that inner code keeps by timers (cpu) cannot be set.
    """
    with controlled(target, quiet=quiet) as guest:
        entry = guest.set_limits(pid, limits, force=force)
    if not quiet:
        say(f"{target.name}: entry {entry.id}: {entry.reason}")
