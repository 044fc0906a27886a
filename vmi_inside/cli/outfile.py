"""Files that commands write: whole or not at all, never over another one unasked, and bytes never to a terminal.

What stood in a guest's memory may be secret: these files are their owner's alone.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click

from vmi_inside.cli import sink
from vmi_inside.cli.options import Command
from vmi_inside.newfile import replacing


def file_options(command: Command) -> Command:
    """-O/--output and --force, given to the command as `path` and `force`."""
    command = click.option("--force", is_flag=True, help="Write over a file that is there.")(command)
    return click.option(
        "-O", "--output", "path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
        help="Write to this file, not to stdout.",
    )(command)  # fmt: skip


def check(path: Path | None, force: bool, *, binary: bool = True) -> None:
    """A usage error when `path` is there already, or bytes would go to a terminal."""
    if path is None:
        if binary and sys.stdout.isatty():
            raise click.UsageError("these are bytes, and no text for a terminal; name a file with -O, or pipe them.")
    elif path.exists() and not force:
        raise click.UsageError(f"{path} is there already; --force writes over it.")


@contextlib.contextmanager
def written(path: Path | None) -> Iterator[IO[bytes]]:
    """Where bytes go: stdout, or a new file, which takes its name when all of it is on disk."""
    if path is None:
        with sink.stdout() as out:
            yield out
        return
    try:
        with replacing(path, private=True) as file:
            yield file
    except OSError as error:
        raise click.FileError(str(path), error.strerror) from None
