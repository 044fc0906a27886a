"""`vmi-inside files`: files that the guest's kernel has in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmi_inside.cli.escape import visible
from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.listing import Filters, like, list_table
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _path(table: Table) -> list[str]:
    """As ls shows links; what no name is known of is said to have none."""
    pairs = zip(table.path.tolist(), table.target.tolist(), strict=True)
    return [visible(f"{path or '(no path)'}{' -> ' + target if target else ''}") for path, target in pairs]


def _cached(table: Table) -> list[str]:
    """In per cent, rounded down: 100 is all of it."""
    return [f"{int(each * 100)}%" for each in table.cached.tolist()]


_SHOWN = (
    *plain("device", "inode", "type", "mode", "uid", "gid", "size", "pages"), Field("cached", make=_cached),
    *plain("mtime"), Field("path", ("path", "target"), _path),
)  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  vmi-inside files web01 --path '/etc/*'
  vmi-inside files web01 --cached --type reg --sort -pages
  vmi-inside files web01 --deleted -o +mount,filesystem
  vmi-inside files web01 --mount /var/lib --format jsonl"""
)
@target_options
@click.option(
    "--path", "patterns", multiple=True, metavar="GLOB", help="Files of that path, or like it; * takes slashes too."
)
@click.option("--mount", "mounts", multiple=True, metavar="GLOB", help="Of file systems mounted there.")
@click.option(
    "--type", "kinds", multiple=True, metavar="NAME,...", help="Of these types: reg dir lnk chr blk fifo sock memfd."
)
@click.option("--cached", is_flag=True, help="Only those of which at least a page is in memory.")
@click.option("--deleted", is_flag=True, help="Only those to which no name leads.")
@click.option("--all", "everything", is_flag=True, help="Block devices' caches and anonymous inodes, too.")
@output_options
def files(
    target: Target,
    patterns: tuple[str, ...],
    mounts: tuple[str, ...],
    kinds: tuple[str, ...],
    cached: bool,
    deleted: bool,
    everything: bool,
    output: Output,
) -> None:
    """Files in the guest's memory, and how much of each is cached.

    These are all inodes that its kernel has in memory, with the pages of each that are in the page cache. What is
    listed here, `cat` and `extract` can bring out, as far as it is cached. A deleted file is found by the path
    that it had. Ends with exit code 1 when something was asked for and nothing is there.
    """
    asked = {each.strip().lower() for listed in kinds for each in listed.split(",")}
    filters: Filters = {
        **({"path": like((*patterns, *(f"{each} (deleted)" for each in patterns)))} if patterns else {}),
        **({"mount": like(mounts)} if mounts else {}),
        **({"type": asked.__contains__} if kinds else {}),
        **({"pages": bool} if cached else {}),
        **({"deleted": bool} if deleted else {}),
        **({} if everything else {"bare": lambda bare: not bare}),
    }
    list_table(target, output, "cached_files", _SHOWN, filters=filters, what="file")
