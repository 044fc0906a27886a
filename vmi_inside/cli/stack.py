"""`vmi-inside stack`: where in the kernel threads wait."""

from __future__ import annotations

import click

from vmi_inside.cli.fields import plain
from vmi_inside.cli.listing import Filters, like, list_table, pid_option
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output


@click.command(
    epilog="""\b
Examples:
  vmi-inside stack web01 -p 812
  vmi-inside stack web01 --symbol 'nfs*' -o tid,name,symbol
  vmi-inside stack web01 --waits --sort symbol
  vmi-inside stack file:web01.core --format jsonl"""
)
@target_options
@click.option("--waits", is_flag=True, help="Only where each thread waits: the innermost frame.")
@click.option("--symbol", "symbols", multiple=True, metavar="GLOB", help="Frames of functions like this: 'do_wait*'.")
@pid_option
@output_options
def stack(
    target: Target, waits: bool, symbols: tuple[str, ...], pid: tuple[tuple[int, ...], ...], output: Output
) -> None:
    """Kernel stacks of threads that do not run.

    Kernel stacks of threads that do not run, innermost frame first, as /proc/PID/stack shows them.

    Ends with exit code 1 when something was asked for and nothing is there.
    """
    filters: Filters = {
        **({"frame": (0).__eq__} if waits else {}),
        **({"symbol": like(symbols)} if symbols else {}),
    }
    shown = plain("pid", "tid", "name", "frame", "symbol")
    list_table(target, output, "process_stack", shown, filters=filters, pid=pid, what="frame")
