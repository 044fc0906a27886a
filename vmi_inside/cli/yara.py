"""`vmi-inside yara`: YARA rules over the guest's memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmi_inside.cli import exits
from vmi_inside.cli.fields import plain
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output
from vmi_inside.cli.progress import progress
from vmi_inside.cli.scope import Scope, scope_options

if TYPE_CHECKING:
    from vmi_inside.linux.contents.streams import Stream

_SHOWN = plain("rule", "pid", "name", "address", "string", "path", "data")


@click.command(
    epilog="""\b
Examples:
  vmi-inside yara web01 rules/*.yar
  vmi-inside yara web01 implant.yar -p 812 --format json
  vmi-inside yara web01 implant.yar --all --timeout 600
  vmi-inside yara web01 webshells.yar --files -o rule,path"""
)
@target_options
@click.argument(
    "rules", nargs=-1, required=True, metavar="RULES...",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
)  # fmt: skip
@scope_options
@click.option("--timeout", type=click.FloatRange(min=0), default=0, metavar="SECONDS", help="Scan no longer than that.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    metavar="N",
    help="No more matches than that.",
)
@output_options
def yara(
    target: Target, rules: tuple[Path, ...], scope: Scope, timeout: float, limit: int, output: Output
) -> None:  # fmt: skip
    """Matches of YARA rules in memory, or in cached files.

    Rules are matched in the memory of processes, of the kernel, in RAM, or in cached files. Processes' memory
    unless something else is asked for. A rule's condition is judged of memory that adjoins, and of at most 16 MiB
    of it at once. Needs yara-x (pip install 'vmi-inside[yara]'). Ends with exit code 1 when nothing matches, 11
    when time ran out.
    """
    from vmi_inside.linux.contents.yara_matches import YaraMatches
    from vmi_inside.scan.yara import Scanner, sources

    fields = output.choose(YaraMatches.schema, _SHOWN)
    scanner = Scanner(sources(rules), timeout)
    with target.attach(output) as guest, progress("scanning") as told:
        total, done = scope.size(guest), 0

        def step(stream: Stream, size: int) -> None:
            nonlocal done
            told(done, total)
            done += size

        table = guest.yara(scanner, scope.streams(guest), limit=limit, progress=step)
    output.write(output.ordered(table), fields, target.name)
    if scanner.timed_out:
        click.get_current_context().exit(exits.PARTIAL)
    if not len(table):
        say(f"{target.name}: no rule matches")
        click.get_current_context().exit(exits.NOTHING)
