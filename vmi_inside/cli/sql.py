"""`vmi-inside sql`: questions in SQL, about one guest or several."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmi_inside.cli import complete
from vmi_inside.cli.diff import KEPT
from vmi_inside.cli.fields import plain
from vmi_inside.cli.options import Target, connect_option, output_options, profile_option
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.sql import Source
    from vmi_inside.table import Table


@click.command(
    epilog="""\b
Examples:
  vmi-inside sql web01 "select name, count(*) n from processes group by name order by n desc"
  vmi-inside sql web01 "select p.name, s.local_port from processes p
      join process_open_sockets s using (pid) where s.state = 'LISTEN'"
  vmi-inside sql web01 db01 "select guest, pid, name from processes where uid = 0 and not kernel_thread"
  vmi-inside sql file:web01.core - < question.sql
  vmi-inside sql .tables
  vmi-inside sql '.schema processes'"""
)
@click.argument("names", nargs=-1, metavar="[TARGET]...", shell_complete=complete.targets)
@click.argument("text", metavar="QUERY")
@connect_option
@profile_option
@output_options
def sql(names: tuple[str, ...], text: str, connect: str | None, profile_file: str | None, output: Output) -> None:
    """Ask guests' tables in SQL (DuckDB's).

    QUERY is a SELECT; - reads it from stdin. Its tables are those that `.tables` lists, with a column `guest` before
    their own; only what the query names is read, all of one guest in one reading.
    """
    from vmi_inside import sql as asked

    if text == "-":
        text = sys.stdin.read()
    if text.startswith("."):
        _told(text, output)
        return
    if not names:
        raise click.UsageError("Missing argument 'TARGET...': which guest is to be asked?")
    with ExitStack() as stack:
        targets = [Target(name, connect, profile=profile_file) for name in names]
        found = asked.query([_source(each, output, stack) for each in targets], text)
    fields = output.choose(found.columns, plain(*found.columns))
    output.write(output.ordered(found), fields)


def _source(target: Target, output: Output, stack: ExitStack) -> Source:
    """A guest, or a snapshot that was kept."""
    if target.name.startswith(KEPT):
        from vmi_inside import saved

        return saved.load(Path(target.name.removeprefix(KEPT)))
    return stack.enter_context(target.attach(output))


def _told(text: str, output: Output) -> None:
    """What `.tables` and `.schema` show."""
    from vmi_inside import sql as asked

    word, *names = text.split()
    if word not in (".tables", ".schema") or (word == ".tables" and names):
        raise click.BadParameter(f"{text!r}; there are .tables and .schema [TABLE].", param_hint="'QUERY'")
    found: Table = asked.tables() if word == ".tables" else asked.schema(*names)
    shown = [name for name in found.columns if name != "fault"]
    output.write(output.ordered(found), output.choose(shown, plain(*shown)))
