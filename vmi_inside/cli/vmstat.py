"""`vmi-inside vmstat`: the kernel's counters of memory."""

from __future__ import annotations

import click

from vmi_inside.cli.fields import plain
from vmi_inside.cli.listing import Filters, like, list_table
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output


@click.command(
    epilog="""\b
Examples:
  vmi-inside vmstat web01
  vmi-inside vmstat web01 'pgmaj*' oom_kill 'pswp*'
  vmi-inside vmstat web01 --nonzero --format json"""
)
@target_options
@click.argument("counter", nargs=-1)
@click.option("--nonzero", is_flag=True, help="Only counters that are not 0.")
@output_options
def vmstat(target: Target, counter: tuple[str, ...], nonzero: bool, output: Output) -> None:
    """Counters of memory, as /proc/vmstat lists them.

    Counters of memory and of what was done with it, as /proc/vmstat lists them.

    COUNTER limits it to counters of that name, or like that pattern. Ends with exit code 1 when something was asked for
    and nothing is there.
    """
    filters: Filters = {
        **({"name": like(counter)} if counter else {}),
        **({"value": bool} if nonzero else {}),
    }
    list_table(target, output, "vm_counters", plain("name", "value"), filters=filters, what="counter")
