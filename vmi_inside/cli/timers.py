"""`vmi-inside timers`: the timers that wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmi_inside.cli.escape import visible
from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.listing import Filters, like, list_table
from vmi_inside.cli.options import Target, numbers, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _remaining(table: Table) -> list[str]:
    return [f"{each:.3f}" for each in table.remaining.tolist()]


def _function(table: Table) -> list[str]:
    """What is called, and of what merely queues work or wakes a thread, which."""
    rows = zip(table.function.tolist(), table.work.tolist(), table.pid.tolist(), strict=True)
    return [
        visible(f"{function} → {work}" if work else f"{function} → pid {pid}" if pid >= 0 else function)
        for function, work, pid in rows
    ]


_SHOWN = (
    *plain("cpu", "kind", "base"), Field("remaining", make=_remaining),
    Field("function", ("function", "work", "pid"), _function), *plain("owner"),
)  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  vmi-inside timers web01
  vmi-inside timers web01 --function 'tcp_*'
  vmi-inside timers web01 -p 812 -o +expires
  vmi-inside timers web01 --foreign"""
)
@target_options
@click.option("--function", "functions", multiple=True, metavar="GLOB", help="That call such a function.")
@click.option("-p", "--pid", type=numbers, metavar="PID,...", multiple=True, help="That wake these threads.")
@click.option("--foreign", is_flag=True, help="Only those whose function is not of the kernel's own code.")
@output_options
def timers(
    target: Target, functions: tuple[str, ...], pid: tuple[tuple[int, ...], ...], foreign: bool, output: Output
) -> None:
    """Timers that wait, of all CPUs.

    There are high-resolution ones, and those of the timer wheels. The time that remains is in seconds, of the guest's
    clock at its last tick. Ends with exit code 1 when something was asked for and nothing is there.
    """
    fits = like(functions)
    filters: Filters = {
        **({"function": fits} if functions else {}),
        **({"owner": lambda owner: owner not in ("kernel", "init")} if foreign else {}),
    }
    list_table(target, output, "timers", _SHOWN, filters=filters, pid=pid, sort=("remaining",), what="timer")
