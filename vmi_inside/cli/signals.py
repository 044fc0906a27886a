"""`vmi-inside signals`: what signals processes wait for, block and catch, and who traces whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.listing import Filters, list_table, pid_option
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table

_EVERY = (1 << 64) - 1


def _set(name: str) -> Field:
    """A set of signals; in a word where they are all that there are."""

    def cells(table: Table) -> list[str]:
        pairs = zip(table.column(name).tolist(), table.column(f"{name}_mask").tolist(), strict=True)
        return ["all" if mask == _EVERY else names for names, mask in pairs]

    return Field(name, (name, f"{name}_mask"), cells)


_SHOWN = (
    *plain("pid", "name"), *map(_set, ("pending", "shared", "blocked", "ignored", "caught")),
    *plain("stop_signal", "tracer"),
)  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  vmi-inside signals web01 -p 812
  vmi-inside signals web01 --traced -o pid,name,tracer,ptrace,stop_signal
  vmi-inside signals web01 -o pid,caught_mask --format csv"""
)
@target_options
@click.option("--traced", is_flag=True, help="Only processes that another one traces.")
@pid_option
@output_options
def signals(target: Target, traced: bool, pid: tuple[tuple[int, ...], ...], output: Output) -> None:
    """Signals of processes, and who traces whom.

    Signals that processes have pending, block, ignore and catch; what stopped them; who traces them.

    PENDING is for a process's first thread, SHARED for any of its threads. Ends with exit code 1 when something was
    asked for and nothing is there.
    """
    filters: Filters = {"tracer": bool} if traced else {}
    list_table(target, output, "process_signals", _SHOWN, filters=filters, pid=pid, what="process")
