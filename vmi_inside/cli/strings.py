"""`vmi-inside strings`: printable strings in the guest's memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import click

from vmi_inside.cli import exits
from vmi_inside.cli.escape import visible
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, target_options
from vmi_inside.cli.output import Output
from vmi_inside.cli.scope import Scope, scope_options
from vmi_inside.cli.sink import emit

if TYPE_CHECKING:
    from vmi_inside.linux.contents.streams import Stream
    from vmi_inside.scan.strings import String

    Found = Iterator[tuple[Stream, String]]


def _encodings(text: str) -> tuple[str, ...]:
    """The type of --encoding."""
    from vmi_inside.scan.strings import ENCODINGS

    asked = tuple(dict.fromkeys(each.strip().lower() for each in text.split(",")))
    for each in asked:
        if each not in ENCODINGS:
            raise click.BadParameter(f"no encoding {each!r}; there are {', '.join(ENCODINGS)}.")
    return asked


@click.command(
    epilog="""\b
Examples:
  vmi-inside strings web01 -p 812 --min 8 | grep -i password
  vmi-inside strings web01 --all --encoding utf16 --limit 1000
  vmi-inside strings web01 --kernel | less
  vmi-inside strings web01 --files --format jsonl | jq -r 'select(.path | startswith("/etc/")) | .text'"""
)
@target_options
@scope_options
@click.option(
    "--min", "minimum", type=click.IntRange(1, 4096), default=4, show_default=True, help="Characters at least."
)
@click.option("--encoding", "encodings", type=_encodings, default="ascii,utf16", show_default=True, metavar="NAME,...",
              help="ascii, utf16 (little endian).")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="No more than so many.")
@click.option("--format", "form", type=click.Choice(["text", "jsonl"]), default="text", show_default=True,
              help="jsonl: one object a line, with the region's or the file's path.")  # fmt: skip
def strings(
    target: Target, scope: Scope, minimum: int, encodings: tuple[str, ...], limit: int | None, form: str
) -> None:
    """Printable strings in memory, with their addresses.

    These are strings in the memory of processes, of the kernel, in RAM, or in cached files. Processes' memory
    unless something else is asked for; a line begins with the process's pid then. A string longer than 4096
    characters is given in parts. Ends with exit code 1 when there is none.
    """
    with target.attach(Output()) as guest:
        found = guest.strings(scope.streams(guest), minimum, encodings)
        counted = _Counted(found if limit is None else islice(found, limit))
        emit(_json(counted) if form == "jsonl" else _text(counted))
    if not counted.count:
        say(f"{target.name}: no strings")
        click.get_current_context().exit(exits.NOTHING)
    if counted.count == limit:
        say(f"{target.name}: cut after {limit} strings")


class _Counted:
    """Counts what goes by."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self.count = 0

    def __iter__(self) -> Found:
        for each in self._found:
            self.count += 1
            yield each


def _text(found: _Counted) -> Iterator[str]:
    for stream, each in found:
        whose = f"{stream.pid} " if stream.pid else f"{visible(stream.path)} " if stream.kind == "file" else ""
        yield f"{whose}{each.address:x} {visible(each.text)}\n"


def _json(found: _Counted) -> Iterator[str]:
    for stream, each in found:
        row = {
            "kind": stream.kind, "pid": stream.pid, "name": stream.name, "path": stream.path, "address": each.address,
            "encoding": each.encoding, "text": each.text,
        }  # fmt: skip
        yield json.dumps(row) + "\n"
