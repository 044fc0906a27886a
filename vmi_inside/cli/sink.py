"""Stdout. Knows what a closed pipe, a full disk and an encoding without the letters are, and what to do then."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import IO

import click

from vmi_inside.cli import exits
from vmi_inside.cli.messages import say

_LINES = 2000  # at a time: few system calls, little memory


def emit(lines: Iterable[str], encoding: str | None = None) -> None:
    """Write lines, which bring their own line ends, to stdout, and see them out of the door.

    `encoding` is the terminal's unless given. Characters that it does not have are written as escapes.
    """
    source = iter(lines)
    with stdout() as out:
        while block := "".join(islice(source, _LINES)):
            out.write(block.encode(encoding or sys.stdout.encoding, "backslashreplace"))


@contextmanager
def stdout() -> Iterator[IO[bytes]]:
    """Stdout for bytes. When the reader has gone away (`| head`), the process ends by SIGPIPE as other tools do,
    without a word."""
    try:
        yield sys.stdout.buffer
        sys.stdout.flush()
    except BrokenPipeError:
        # Not for the whole run: there, a broken pipe may be a monitor's socket, which is an error like others.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    except OSError as error:
        # What is left in the buffer cannot be written either; Python would try again at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        say(f"cannot write the output: {error.strerror}")
        raise click.exceptions.Exit(exits.NOTHING) from error
