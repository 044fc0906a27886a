"""`vmi-inside snapshot`: several tables as one picture, kept in a file."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import click

from vmi_inside.cli.fields import plain
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Command, Target, output_options, target_options
from vmi_inside.cli.output import Output


def tables_option(command: Command) -> Command:
    """-t/--tables, given to the command as `tables`."""
    return click.option(
        "-t", "--tables", multiple=True, metavar="TABLE,...",
        help="These tables; usually processes, process_open_sockets, process_open_files, kernel_modules.",
    )(command)  # fmt: skip


def listed(tables: tuple[str, ...]) -> list[str]:
    """The names that were given, with commas or apart."""
    return [name.strip() for name in chain(*(part.split(",") for part in tables)) if name.strip()]


@click.command(
    epilog="""\b
Examples:
  vmi-inside snapshot web01 -O before.json.gz
  vmi-inside snapshot web01 -t processes,threads
  vmi-inside diff snapshot:before.json.gz web01
  vmi-inside sql snapshot:before.json.gz "select count(*) from processes" """
)
@target_options
@tables_option
@click.option(
    "-O", "--output", "path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Keep it in this file (JSON; .gz is packed).",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.option("--pause", is_flag=True, help="Stop the guest while memory is copied, for some milliseconds.")
@output_options
def snapshot(
    target: Target, tables: tuple[str, ...], path: Path | None, force: bool, pause: bool, output: Output
) -> None:
    """Several tables as one picture of one moment.

    All memory that they need is copied in one go, within milliseconds, and they are read from the copy; of a guest
    that changes much, --pause makes sure that nothing in it moves meanwhile. Shows what the snapshot holds; -O keeps
    it.
    """
    from vmi_inside import saved
    from vmi_inside.snapshot import Contents

    fields = output.choose(Contents.schema, plain("table_name", "rows", "marked"))
    if path is not None and path.exists() and not force:
        raise click.BadParameter(f"{path}: there is a file of that name already; see --force.", param_hint="'-O'")
    with target.attach(output, pausing=pause) as guest:
        taken = guest.snapshot(*listed(tables), pause=pause)
    if path is not None:
        saved.save(taken, path, replace=force)
    output.write(output.ordered(taken.contents()), fields, target.name)
    if not output.quiet:
        still = f", for which the guest stood still {1e3 * taken.paused:.0f} ms" if taken.paused else ""
        say(f"{taken.name}: copied within {1e3 * taken.took:.1f} ms{still}")
