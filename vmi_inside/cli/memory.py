"""`vmi-inside memory`: what processes' memory consists of."""

from __future__ import annotations

from dataclasses import replace

import click

from vmi_inside.cli.fields import plain, sizes
from vmi_inside.cli.listing import like, list_table, pid_option
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

_SHOWN = (
    *plain("pid"),
    *sizes("resident_size", "anon", "file", "shmem", "swap", "total_size", "data", "stack", "page_tables"),
    *plain("name"),
)


@click.command(
    epilog="""\b
Examples:
  vmi-inside memory web01
  vmi-inside memory web01 --pss
  vmi-inside memory web01 -p 1,812 -o pid,name,peak_resident,peak_size
  vmi-inside memory web01 --name 'nginx*' --format json"""
)
@target_options
@pid_option
@click.option("--name", "names", multiple=True, metavar="GLOB", help="Processes whose name is like this.")
@click.option(
    "--pss", is_flag=True,
    help="Walk the page tables: pages each divided by how many share them (pss), pages of nobody else's (uss).",
)  # fmt: skip
@output_options
def memory(target: Target, pid: tuple[tuple[int, ...], ...], names: tuple[str, ...], pss: bool, output: Output) -> None:
    """What processes' memory consists of, the largest first.

    Columns are what /proc/PID/status says: resident pages of anonymous memory, files, shared memory; swap; sizes. With
    --pss also what /proc/PID/smaps_rollup says.
    """
    from vmi_inside.linux.memory.process_memory import PLAIN

    if not pss and not output.columns and output.format != "table":
        output = replace(output, columns=(",".join(PLAIN),))
    shown = (*_SHOWN[:1], *sizes("pss", "uss", "mapped"), *_SHOWN[1:]) if pss else _SHOWN
    list_table(
        target, output, "process_memory", shown,
        filters={"name": like(names)} if names else None, pid=pid, sort=("-pss" if pss else "-resident_size",),
        what="process",
    )  # fmt: skip
