"""`vmi-inside check`: is the guest lying?"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import click

from vmi_inside.cli import exits
from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table

#: From the least to the gravest; as `linux.integrity.SEVERITIES`, which costs an import.
_SEVERITIES: Final = ("info", "low", "medium", "high", "critical")


def _at(table: Table) -> list[str]:
    """Addresses; nothing where there is none."""
    return [f"{address:#x}" if address else "" for address in table.column("address").tolist()]


_SHOWN = (*plain("severity", "check", "subject", "expected", "seen"), Field("address", ("address",), _at),
          *plain("symbol", "detail"))  # fmt: skip


def _listed(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """--list: the checks and what they look for, and no more."""
    if not wanted or context.resilient_parsing:
        return
    from vmi_inside.linux.integrity import DETECTORS

    width = max(map(len, DETECTORS))
    for name, detector in DETECTORS.items():
        click.echo(f"{name:<{width}}  {detector.words}")
    context.exit()


def _names(text: str) -> tuple[str, ...]:
    """The type of options that take names of checks: `processes,modules`."""
    from vmi_inside.linux.integrity import DETECTORS

    found = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    for name in found:
        if name not in DETECTORS:
            raise click.BadParameter(f"there is no check {name!r}; there are {', '.join(DETECTORS)}.")
    return found


@click.command(
    epilog="""\b
Examples:
  vmi-inside check web01
  vmi-inside check web01 --only processes,modules --severity info
  vmi-inside check web01 --skip user-code --format json
  vmi-inside check web01 --image /boot/vmlinuz-6.1.0-50-amd64
  vmi-inside check file:web01.core || echo 'look closer'
  vmi-inside check --list"""
)
@target_options
@click.option("--only", type=_names, multiple=True, metavar="CHECK,...", help="These checks only.")
@click.option("--skip", type=_names, multiple=True, metavar="CHECK,...", help="All checks but these.")
@click.option(
    "--severity", type=click.Choice(_SEVERITIES), default="medium", show_default=True,
    help="Show, and count for the exit code, what is as grave as this, or graver.",
)  # fmt: skip
@click.option(
    "--image", type=click.Path(dir_okay=False), metavar="FILE",
    help="The vmlinuz of the kernel that runs: its code and constants are compared, byte by byte.",
)  # fmt: skip
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_listed,
    help="The checks that there are, and what each looks for.",
)  # fmt: skip
@output_options
def check(
    target: Target,
    only: tuple[tuple[str, ...], ...],
    skip: tuple[tuple[str, ...], ...],
    severity: str,
    image: str | None,
    output: Output,
) -> None:
    """Whether the guest lies about itself.

    Looks for hidden processes, modules and sockets, for system calls, pointers and functions that lead where they
    should not, for forged credentials, disguised processes, and kernel pages that can be written. What is found is
    looked for twice more before it is told: a guest lives on while it is read. Ends with exit code 11 when something
    is found, and 0 when nothing is. `info` and `low` are what is worth knowing, and no sign of an attack.
    """
    from vmi_inside.linux.integrity import Findings

    fields = output.choose(Findings.schema, _SHOWN)
    asked: dict[str, Any] = {"only": tuple(chain(*only)), "skip": tuple(chain(*skip))}
    with target.attach(output) as guest:
        table = guest.check(**asked, severity="info", image=image)
    shown = table.at_least(severity)
    output.write(output.ordered(shown), fields, target.name)
    unable = [row.check for row in table if row.fault == "not checked"]
    if unable and not output.quiet:
        say(f"{target.name}: could not run on this kernel: {', '.join(unable)}; --severity info says why")
    if len(shown):
        click.get_current_context().exit(exits.FOUND)
    if not output.quiet:
        say(f"{target.name}: nothing found that is {severity} or graver")
