"""`vmi-inside slabinfo`: the kernel's slab caches."""

from __future__ import annotations

import click

from vmi_inside.cli.fields import plain
from vmi_inside.cli.listing import like, list_table
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

_SHOWN = plain("name", "active_objs", "num_objs", "objsize", "objperslab", "pagesperslab", "slabs", "memory")


@click.command(
    epilog="""\b
Examples:
  vmi-inside slabinfo web01 --sort=-memory
  vmi-inside slabinfo web01 'kmalloc-*'
  vmi-inside slabinfo web01 task_struct --format json"""
)
@target_options
@click.argument("cache", nargs=-1)
@output_options
def slabinfo(target: Target, cache: tuple[str, ...], output: Output) -> None:
    """Slab caches of the kernel, as /proc/slabinfo shows them.

    CACHE limits it to caches of that name, or like that pattern. Ends with exit code 1 when caches were asked for and
    none is there.
    """
    list_table(
        target, output, "slab_caches", _SHOWN,
        filters={"name": like(cache)} if cache else None, what="slab cache",
    )  # fmt: skip
