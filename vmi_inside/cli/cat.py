"""`vmi-inside cat`: one file of the guest, out of its page cache."""

from __future__ import annotations

from pathlib import Path

import click

from vmi_inside.cli import exits, outfile
from vmi_inside.cli.contents import file_choice, write_content
from vmi_inside.cli.gaps import Gaps
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, target_options
from vmi_inside.cli.output import Output


@click.command(
    epilog="""\b
Examples:
  vmi-inside cat web01 /etc/passwd | less
  vmi-inside cat web01 /usr/sbin/nginx -O nginx
  vmi-inside cat web01 /tmp/implant --device 0:24 --inode 1042 -O implant"""
)
@target_options
@click.argument("where", metavar="PATH")
@file_choice
@outfile.file_options
def cat(
    target: Target, where: str, device: str | None, inode: int | None, path: Path | None, force: bool
) -> None:  # fmt: skip
    """Print a file of the guest, out of its page cache.

    Links are followed. Of a file that was deleted, PATH is the path that it had. Parts that are not in memory are
    zeros, and named on stderr; the exit code is then 11.
    """
    outfile.check(path, force)
    gaps = Gaps(where)
    with target.attach(Output()) as guest:
        found = guest.file_content(where, device=device, inode=inode)
        with outfile.written(path) as file:
            write_content(found, file, gaps, sparse=path is not None)
    if path is not None:
        say(f"{target.name}: {found.size} bytes written to {path}")
    if found.fault:
        say(f"{target.name}: {where}: {found.fault}")
    gaps.close(exits.PARTIAL)
