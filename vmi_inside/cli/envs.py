"""`vmi-inside envs`: environment variables of processes."""

from __future__ import annotations

import click

from vmi_inside.cli.fields import plain
from vmi_inside.cli.listing import like, list_table, pid_option
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output


@click.command(
    epilog="""\b
Examples:
  vmi-inside envs web01 -p 812
  vmi-inside envs web01 --key 'LD_*'
  vmi-inside envs web01 --key '*TOKEN*' --key '*PASSWORD*' --format jsonl"""
)
@target_options
@click.option("--key", "keys", multiple=True, metavar="GLOB", help="Variables whose name is like this.")
@pid_option
@output_options
def envs(target: Target, keys: tuple[str, ...], pid: tuple[tuple[int, ...], ...], output: Output) -> None:
    """Environment variables, as they were when each process began.

    Ends with exit code 1 when something was asked for and nothing is there.
    """
    list_table(
        target, output, "process_envs", plain("pid", "name", "key", "value"),
        filters={"key": like(keys)} if keys else None, pid=pid, what="variable",
    )  # fmt: skip
