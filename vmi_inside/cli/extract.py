"""`vmi-inside extract`: files of the guest into a folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmi_inside.cli import exits, unpack
from vmi_inside.cli.contents import write_content
from vmi_inside.cli.escape import visible
from vmi_inside.cli.gaps import Gaps
from vmi_inside.cli.listing import like
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.guest import Guest
    from vmi_inside.linux.files.cached_files import CachedFiles

#: Files whose page caches are read together.
_BATCH = 256


@click.command(
    epilog="""\b
Examples:
  vmi-inside extract web01 /etc --into web01-etc
  vmi-inside extract web01 '/var/log/*.log' '/tmp/*' --into evidence
  vmi-inside extract web01 '*' --into everything --quiet"""
)
@target_options
@click.argument("patterns", metavar="PATH...", nargs=-1, required=True)
@click.option(
    "--into", "folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", required=True,
    help="Where to; made when it is not there.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Write over files that are there.")
@click.option(
    "-q", "--quiet", is_flag=True, help="Do not name what is missing; the exit code tells of it all the same."
)
def extract(target: Target, patterns: tuple[str, ...], folder: Path, force: bool, quiet: bool) -> None:
    """Copy files of the guest out of its page cache.

    Each is written into DIR under its path in the guest, as far as the page cache has it. PATH is a file, a folder
    with all that is below it, or a pattern in which * takes slashes too. Regular files only: links and devices are
    left out. Paths come from the guest and are not trusted: nothing is written outside of DIR, and no link in DIR
    is followed. Parts that are not in memory are zeros, and named on stderr; the exit code is then 11.
    """
    partial = failed = written = 0
    with target.attach(Output()) as guest:
        table, left_out = _chosen(guest, patterns)
        if not len(table):
            say(f"{target.name}: no file matches" + (f" ({left_out} that are no regular files do)" if left_out else ""))
            click.get_current_context().exit(exits.NOTHING)
        try:
            root = unpack.Folder(folder)
        except OSError as error:
            raise click.FileError(str(folder), error.strerror) from None
        from vmi_inside.linux.files.file_content import contents

        for start in range(0, len(table), _BATCH):
            some = table.where(slice(start, start + _BATCH))
            for row, content in zip(some, contents(guest.kernel, some.address.tolist()), strict=True):
                gaps = Gaps(row.path)
                try:
                    with root.create(row.path, force=force) as file:
                        write_content(content, file, gaps, sparse=True)
                        file.flush()
                        with contextlib.suppress(OSError, OverflowError):  # a guest may claim any time
                            os.utime(file.fileno(), (row.mtime, row.mtime))
                except OSError as error:
                    failed += 1
                    say(f"{target.name}: {row.path}: not written: {error.strerror or error}")
                    continue
                written += 1
                partial += bool(gaps.size or content.fault)
                if not quiet:
                    gaps.tell()
                    if content.fault:
                        say(f"{row.path}: {content.fault}")
    more = f", {partial} of them not wholly in memory" if partial else ""
    links = f"; {left_out} that are no regular files left out" if left_out else ""
    say(f"{target.name}: {written} files written into {visible(str(folder))}{more}{links}")
    if failed or partial:
        click.get_current_context().exit(exits.NOTHING if failed else exits.PARTIAL)


def _chosen(guest: Guest, patterns: tuple[str, ...]) -> tuple[CachedFiles, int]:
    """The regular files that fit, and how many others do, folders not counted."""
    import numpy as np

    table = guest.cached_files(["path", "type", "mtime", "bare", "address"])
    plain = [each.rstrip("/") or "/" for each in patterns]
    below = [f"{each.rstrip('/')}/*" for each in plain]
    deleted = [f"{each} (deleted)" for each in plain]
    exact, fits = frozenset((*plain, *deleted)), like((*plain, *deleted, *below))
    named = np.array([path in exact or (path != "" and fits(path)) for path in table.path.tolist()], dtype=np.bool_)
    named &= ~table.bare
    regular = np.isin(table.type, ("reg", "memfd"))
    others = named & ~regular & ~np.isin(table.type, ("dir",))
    return table.where(named & regular), int(others.sum())
