"""`vmi-inside meminfo`: the memory of the whole system."""

from __future__ import annotations

from itertools import chain

import click

from vmi_inside.cli.fields import plain, sizes
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

#: What is no number of bytes.
_COUNTS = ("huge_pages_total", "huge_pages_free", "huge_pages_reserved", "huge_pages_surplus", "fault")


@click.command(
    epilog="""\b
Examples:
  vmi-inside meminfo web01
  vmi-inside meminfo web01 -o memory_total,memory_available
  vmi-inside meminfo web01 --format json | jq '.[0].s_unreclaim'"""
)
@target_options
@output_options
def meminfo(target: Target, output: Output) -> None:
    """What memory is used for, as /proc/meminfo shows it.

    What the system's memory is used for, as /proc/meminfo shows it.

    Sizes have units for people (K is 1024 bytes); columns that -o names, JSON and CSV are exact bytes.
    """
    from vmi_inside.tables import TABLES

    reading = TABLES["memory_info"]
    schema = reading.table.schema
    shown = chain.from_iterable(plain(name) if name in _COUNTS else sizes(name) for name in schema)
    fields = output.choose(schema, tuple(shown))
    with target.attach(output) as guest:
        table = guest.read(reading, output.needs(fields, "fault"))
    output.record(table, fields)
