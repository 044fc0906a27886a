"""What is said on stderr: one line each, beginning with the command's name.

Knows how an error, a notice or a bug is put. Results never come here; stdout is theirs alone.
"""

from __future__ import annotations

import shlex
import sys
import traceback
import warnings
from types import TracebackType
from typing import NoReturn

import click

from vmi_inside.cli import exits
from vmi_inside.cli.escape import visible
from vmi_inside.errors import VmiError

PROGRAM = "vmi-inside"
_TARGET = "vmi_inside.target"
_DEBUG = "vmi_inside.debug"


def say(text: str) -> None:
    """One line on stderr. It may quote the guest, so it is made visible."""
    click.echo(f"{PROGRAM}: {visible(text)}", err=True)


def about(target: str) -> None:
    """From here on, errors that do not name the target are said to be about this one."""
    click.get_current_context().meta[_TARGET] = target


def _debug(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        context.meta[_DEBUG] = True
        sys.excepthook = sys.__excepthook__


#: --debug: from here on, errors and bugs come with a traceback.
debug_option = click.option(
    "--debug", is_flag=True, is_eager=True, expose_value=False, callback=_debug, help="Show tracebacks of errors."
)


def fail(context: click.Context, error: VmiError) -> NoReturn:
    """End the command with this error: its line, its exit code."""
    if context.meta.get(_DEBUG):
        traceback.print_exception(error)
    text = str(error) or type(error).__name__
    target = context.meta.get(_TARGET, "")
    say(text if target.rpartition(":")[2] in text else f"{target}: {text}")
    raise click.exceptions.Exit(exits.code(error)) from error


def install() -> None:
    """Have Python's own last words, for bugs and warnings, said in one line too."""
    sys.excepthook = _bug
    warnings.showwarning = _warning


def _bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    last = traceback.extract_tb(trace)[-1:]
    where = f" at {last[0].filename}:{last[0].lineno}" if last else ""
    again = shlex.join([PROGRAM, "--debug", *sys.argv[1:]])
    say(f"this is a bug: {kind.__name__}: {error}{where}; please report it with what this prints: {again}")


def _warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: object = None,
) -> None:
    say(f"warning: {message}")
