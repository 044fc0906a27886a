"""What the shell is told when somebody presses Tab: targets and columns.

Says nothing on errors: a prompt is no place for them.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Final

import click

from vmi_inside.errors import VmiError

_FILE: Final = ("file:", "qmp:", "libvmi:")
_MOST: Final = 1000
#: The tables of commands, for their columns' names.
_TABLES: Final = {
    "ps": "vmi_inside.linux.processes.processes:Processes",
    "ss": "vmi_inside.linux.sockets.table:OpenSockets",
}


def targets(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Domains by name, and paths after `file:`, `qmp:` and `libvmi:`."""
    for prefix in _FILE:
        if incomplete.startswith(prefix):
            return [prefix + path for path in _paths(incomplete.removeprefix(prefix))]
    return [word for word in (*_domains(context.params.get("connect")), *_FILE) if word.startswith(incomplete)]


def columns(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The last of a list of columns."""
    where = _TABLES.get(context.command.name or "")
    if where is None:
        return []
    module, _, name = where.partition(":")
    schema: tuple[str, ...] = getattr(import_module(module), name).schema
    before, comma, last = incomplete.rpartition(",")
    sign = last[:1] if last[:1] in ("+", "-") else ""
    return [before + comma + sign + column for column in ("all", *schema) if column.startswith(last.removeprefix(sign))]


def _domains(connect: str | None) -> list[str]:
    with suppress(VmiError, ImportError):
        from vmi_inside.guest import guests

        names: list[str] = guests(connect).column("name").tolist()
        return [name for name in names if name.isprintable()]
    return []


def _paths(incomplete: str) -> list[str]:
    folder, slash, last = incomplete.rpartition("/")
    found = []
    with suppress(OSError):
        for entry in sorted(Path(folder + slash).expanduser().iterdir())[:_MOST]:
            if entry.name.startswith(last) and entry.name.isprintable() and (last or not entry.name.startswith(".")):
                found.append(f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}")
    return found
