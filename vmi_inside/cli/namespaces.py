"""`vmi-inside namespaces`: which namespaces each process is in."""

from __future__ import annotations

import click

from vmi_inside.cli.fields import plain
from vmi_inside.cli.listing import list_table, pid_option
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output


@click.command(
    epilog="""\b
Examples:
  vmi-inside namespaces web01
  vmi-inside namespaces web01 -p 1,812 --format json
  vmi-inside namespaces web01 --sort net_namespace -o pid,name,net_namespace"""
)
@target_options
@pid_option
@output_options
def namespaces(target: Target, pid: tuple[tuple[int, ...], ...], output: Output) -> None:
    """Namespaces of processes, as /proc/PID/ns has them.

    Namespaces of processes, by their inode numbers, as /proc/PID/ns has them.

    Beside them the pid by which each process knows itself. Ends with exit code 1 when something was asked for and
    nothing is there.
    """
    shown = plain(
        "pid", "name", "pid_in_namespace", "pid_namespace", "mnt_namespace", "net_namespace", "uts_namespace",
        "ipc_namespace", "cgroup_namespace", "user_namespace", "time_namespace",
    )  # fmt: skip
    list_table(target, output, "process_namespaces", shown, pid=pid, what="process")
