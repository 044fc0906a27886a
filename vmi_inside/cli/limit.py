"""`vmi-inside limit`: what a process may use."""

from __future__ import annotations

import click

from vmi_inside.cli.control import controlled, quiet_option
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, target_options


def _limit(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, int | None, int | None]]:
    from vmi_inside.control.rlimits import LIMITS

    found = []
    for text in values:
        name, equals, told = text.partition("=")
        soft, colon, hard = told.partition(":")
        try:
            found.append((name.lower(), _number(soft), _number(hard if colon else soft)))
        except ValueError:
            equals = ""
        if not equals or (soft, hard) == ("", ""):
            raise click.BadParameter(f"{text!r} is no limit like nofile=64, nofile=64:128 or as=unlimited.")
        if name.lower() not in LIMITS:  # before any of the others is set
            raise click.BadParameter(f"there is no limit {name!r}; there are {', '.join(LIMITS)}.")
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
def limit(target: Target, pid: int, limits: list[tuple[str, int | None, int | None]], force: bool, quiet: bool) -> None:
    """Set limits of a process, as prlimit does.

    `vmi-inside undo` takes each back. A single number is both the soft and the hard limit; SOFT: and :HARD set one
    of them. Limits that inner code keeps by timers (cpu) cannot be set.
    """
    with controlled(target, quiet=quiet) as guest:
        for name, soft, hard in limits:
            entry = guest.set_limit(pid, name, soft, hard, force=force)
            if not quiet:
                say(f"{target.name}: entry {entry.id}: {entry.reason}")
