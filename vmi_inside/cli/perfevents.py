"""`vmi-inside perfevents`: perf events that processes have opened."""

from __future__ import annotations

import click

from vmi_inside.cli.fields import plain
from vmi_inside.cli.listing import Filters, like, list_table, pid_option
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output


@click.command(
    epilog="""\b
Examples:
  vmi-inside perfevents web01
  vmi-inside perfevents web01 --type 'kprobe,uprobe'
  vmi-inside perfevents web01 -p 812 --format json"""
)
@target_options
@pid_option
@click.option(
    "--type", "types", multiple=True, metavar="GLOB,...", help="Of units like these: cpu, kprobe, software ..."
)
@output_options
def perfevents(target: Target, pid: tuple[tuple[int, ...], ...], types: tuple[str, ...], output: Output) -> None:
    """Perf events that processes have opened.

    Perf events that processes have opened: what counts or samples whom.

    Ends with exit code 1 when something was asked for and nothing is there.
    """
    asked = [each.strip() for listed in types for each in listed.split(",")]
    filters: Filters = {"type": like(asked)} if asked else {}
    list_table(
        target, output, "perf_events", plain("pid", "name", "type", "target", "watched_pid", "cpu", "state", "program"),
        filters=filters, pid=pid, what="perf event",
    )  # fmt: skip
