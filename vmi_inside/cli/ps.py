"""`vmi-inside ps`: processes and threads."""

from __future__ import annotations

import sys
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from vmi_inside.cli import exits, forest
from vmi_inside.cli.escape import visible
from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.filters import keep
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, numbers, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _command(table: Table) -> list[str]:
    """Command lines as ps has them: in brackets the name of a process that has none."""
    pairs = zip(table.column("cmdline").tolist(), table.column("name").tolist(), strict=True)
    return [visible(line or f"[{name}]") for line, name in pairs]


_CMDLINE = Field("cmdline", ("cmdline", "name"), _command)
_PROCESSES = (*plain("pid", "parent", "uid", "state", "threads", "resident_size", "start_time", "name"), _CMDLINE)
_THREADS = plain("pid", "tid", "state", "nice", "start_time", "user_time", "system_time", "name")


@click.command(
    epilog="""\b
Examples:
  vmi-inside ps web01
  vmi-inside ps web01 --tree --no-kernel
  vmi-inside ps web01 -o +path,cgroup_path --sort -resident_size
  vmi-inside ps web01 --name 'nginx*' --format json | jq '.[].pid'
  vmi-inside ps file:web01.core --threads --pid 1,812"""
)
@target_options
@click.option(
    "--tree", is_flag=True, help="Children below their parents, with names indented; in data, the order only."
)
@click.option("-p", "--pid", type=numbers, metavar="PID,...", multiple=True, help="These processes only.")
@click.option("-u", "--user", type=numbers, multiple=True, metavar="UID,...", help="Processes of these real user ids.")
@click.option("--name", "names", multiple=True, metavar="GLOB", help="Processes whose name is like this.")
@click.option("--kernel/--no-kernel", default=None, help="Kernel threads only, or none of them.")
@click.option("-T", "--threads", is_flag=True, help="A row for each thread.")
@output_options
def ps(
    target: Target,
    tree: bool,
    pid: tuple[tuple[int, ...], ...],
    user: tuple[tuple[int, ...], ...],
    names: tuple[str, ...],
    kernel: bool | None,
    threads: bool,
    output: Output,
) -> None:
    """Processes, or threads.

    Zombies, kernel threads and the processes of containers are included. Ends with exit code 1 when nothing matches
    --pid, --user, --name or --kernel.
    """
    if threads and (tree or user):
        raise click.UsageError(f"--threads has no {'--tree' if tree else '--user'}.")
    if threads:
        from vmi_inside.linux.processes.threads import Threads

        schema, default = Threads.schema, _THREADS
    else:
        from vmi_inside.linux.processes.processes import Processes

        schema, default = Processes.schema, _PROCESSES
    fields = output.choose(schema, default)
    if output.format == "table":
        fields = tuple(_CMDLINE if field.name == "cmdline" else field for field in fields)
    wanted = {"pid": frozenset(chain(*pid)), "uid": frozenset(chain(*user))}
    filters: dict[str, Any] = {name: asked.__contains__ for name, asked in wanted.items() if asked}
    if names:
        filters["name"] = lambda name: any(fnmatchcase(name, each) for each in names)
    if kernel is not None:
        filters["kernel_thread"] = lambda thread: thread is kernel

    with target.attach(output) as guest:
        read = guest.threads if threads else guest.processes
        table: Table = read(columns=output.needs(fields, *filters, *(("pid", "parent") if tree else ())))
    for name, fits in filters.items():
        table = keep(table, name, fits)
    table = output.ordered(table)
    if tree:
        table, drawn, round_at = _tree(table)
        if round_at and not output.quiet:
            say(f"{target.name}: parents go round in a circle at pid {', '.join(map(str, round_at))}")
        named = "name" if any(field.name == "name" for field in fields) else "cmdline"
        fields = tuple(_indented(field, drawn) if field.name == named else field for field in fields)
    output.write(table, fields, target.name)
    if filters and not len(table):
        say(f"{target.name}: no {'thread' if threads else 'process'} matches")
        click.get_current_context().exit(exits.NOTHING)


def _tree(table: Table) -> tuple[Table, list[str], list[int]]:
    """The rows parents first, what is drawn before the name of each, and the pids at which circles begin."""
    import numpy as np

    order, depth, last = forest.grow(table.column("pid").tolist(), table.column("parent").tolist())
    table = table.where(np.array(order, dtype=np.intp))
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    circles = forest.circles(table.column("pid").tolist(), table.column("parent").tolist(), depth)
    return table, forest.branches(depth, last, ascii_only), circles


def _indented(field: Field, drawn: list[str]) -> Field:
    return replace(field, needs=field.columns, make=lambda table: list(map(str.__add__, drawn, field.cells(table))))
