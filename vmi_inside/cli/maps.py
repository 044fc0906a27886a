"""`vmi-inside maps`: processes' memory maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.listing import Filters, like, list_table, pid_option
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _range(table: Table) -> list[str]:
    """As /proc/PID/maps writes them."""
    pairs = zip(table.start.tolist(), table.end.tolist(), strict=True)
    return [f"{start:08x}-{end:08x}" for start, end in pairs]


def _offset(table: Table) -> list[str]:
    return [f"{each:08x}" for each in table.offset.tolist()]


_SHOWN = (
    *plain("pid"), Field("range", ("start", "end"), _range), *plain("permissions"),
    Field("offset", make=_offset), *plain("device", "inode", "path"),
)  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  vmi-inside maps web01 -p 1
  vmi-inside maps web01 --permissions '?wx?'
  vmi-inside maps web01 '*/libc.so.6' -o pid,path --format csv
  vmi-inside maps web01 -p 812 '[[]heap]'"""
)
@target_options
@click.argument("path", nargs=-1)
@pid_option
@click.option("--permissions", multiple=True, metavar="GLOB", help="Regions with permissions like this: 'rwx?'.")
@output_options
def maps(
    target: Target,
    path: tuple[str, ...],
    pid: tuple[tuple[int, ...], ...],
    permissions: tuple[str, ...],
    output: Output,
) -> None:
    """Memory maps of processes, as /proc/PID/maps shows them.

    PATH limits it to regions of that file, or like that pattern, in which * stands for slashes too; a deleted file is
    found by the path that it had. Ends with exit code 1 when something was asked for and nothing is there.
    """
    filters: Filters = {
        **({"path": like((*path, *(f"{each} (deleted)" for each in path)))} if path else {}),
        **({"permissions": like(permissions)} if permissions else {}),
    }
    list_table(target, output, "process_memory_map", _SHOWN, filters=filters, pid=pid, what="region")
