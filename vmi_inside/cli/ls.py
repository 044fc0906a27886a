"""`vmi-inside ls`: what lies in a folder of the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmi_inside.cli import exits
from vmi_inside.cli.escape import visible
from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _name(table: Table) -> list[str]:
    """The last part of each path, and where links lead."""
    pairs = zip(table.path.tolist(), table.target.tolist(), strict=True)
    return [visible(f"{path.rpartition('/')[2]}{' -> ' + target if target else ''}") for path, target in pairs]


_SHOWN = (*plain("type", "mode", "uid", "gid", "size", "pages", "mtime"), Field("name", ("path", "target"), _name))


@click.command(
    epilog="""\b
Examples:
  vmi-inside ls web01 /etc
  vmi-inside ls web01 /var/log --sort -mtime
  vmi-inside ls web01 /tmp --format json"""
)
@target_options
@click.argument("path", default="/")
@output_options
def ls(target: Target, path: str, output: Output) -> None:
    """What lies in a folder, as far as it is in memory.

    Only names that the guest's kernel has looked up lately are there, on file systems that keep them on a disk; of
    those in memory (tmpfs) all are. Links are followed. Ends with exit code 1 when there is nothing.
    """
    from vmi_inside.linux.files.cached_files import CachedFiles
    from vmi_inside.linux.files.find_file import listed

    fields = output.choose(CachedFiles.schema, _SHOWN)
    columns = output.needs(fields, "path", "type", "target", "mount", "fault")
    with target.attach(output) as guest:
        table = listed(guest.cached_files(columns), path)
    output.write(output.ordered(table, "path"), fields, target.name)
    if not len(table):
        say(f"{target.name}: nothing in {path!r} is in memory")
        click.get_current_context().exit(exits.NOTHING)
