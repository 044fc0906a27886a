"""Tables and commands as people and programs get them: nothing that a terminal obeys, and JSON and CSV that parse."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from tests.fuzz.watch import Violation
from vmi_inside.cli.fields import plain
from vmi_inside.cli.output import FORMATS, Output
from vmi_inside.table import Table


def render(table: Table) -> None:
    """Write the table in every format. Raises `Violation` for output that is not what its format promises."""
    for form in FORMATS:
        with captured() as (out, err):
            Output(format=form, columns=("all",)).write(table, plain(*table.columns))
        check(form, out.getvalue(), len(table))
        check_text(err.getvalue())


@contextmanager
def captured() -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """What is written to stdout and stderr, as bytes."""
    out, err = io.BytesIO(), io.BytesIO()
    before = sys.stdout, sys.stderr
    sys.stdout = io.TextIOWrapper(out, encoding="utf-8", newline="")
    sys.stderr = io.TextIOWrapper(err, encoding="utf-8", newline="")
    try:
        with click.Context(click.Command("fuzz")):
            yield out, err
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = before
        for stream in streams:
            stream.detach()


def check(form: str, raw: bytes, rows: int | None = None) -> None:
    """Raise `Violation` for output that does not keep the promises of its format."""
    text = raw.decode("utf-8")
    if form == "table":
        check_text(raw)
    elif form == "json":
        _harmless(text)
        told = json.loads(text)
        if rows is not None and len(told) != rows:
            raise Violation(f"json: {len(told)} rows for {rows}")
    elif form == "jsonl":
        _harmless(text)
        lines = [json.loads(line) for line in text.split("\n") if line]
        if rows is not None and len(lines) != rows:
            raise Violation(f"jsonl: {len(lines)} lines for {rows}")
    else:
        csv.field_size_limit(1 << 30)
        found = list(csv.reader(io.StringIO(text, newline="")))
        if rows is not None and len(found) != rows + 1:
            raise Violation(f"csv: {len(found)} lines for {rows}")


def check_text(raw: bytes) -> None:
    """Raise `Violation` for text that a terminal would obey, rather than show."""
    for line in raw.decode("utf-8").split("\n"):
        if not line.isprintable():
            raise Violation(f"a terminal would obey: {line[:120]!r}")


def _harmless(text: str) -> None:
    if not text.isascii() or not text.replace("\n", "").isprintable():
        raise Violation(f"json: not plain ASCII: {text[:80]!r}")
