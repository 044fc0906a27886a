"""`vmi-inside guests`: which domains there are, and whether they can be looked into."""

from __future__ import annotations

import click

from vmi_inside.cli.fields import plain
from vmi_inside.cli.filters import keep
from vmi_inside.cli.options import connect_option, output_options
from vmi_inside.cli.output import Output

_SHOWN = plain("id", "name", "kind", "state", "vcpus", "memory", "attachable", "reason")
_DRIVERS = plain("driver", "target", "available", "guests", "reason")


@click.command(epilog="\b\nExamples:\n  vmi-inside guests\n  vmi-inside guests --running -c qemu:///session\n"
               "  vmi-inside guests --format json | jq -r '.[] | select(.attachable) | .name'\n"
               "  vmi-inside guests --drivers")  # fmt: skip
@connect_option
@click.option("--running/--all", default=False, help="Running domains only, or all, which is the default.")
@click.option(
    "--drivers", is_flag=True, help="The ways to a guest instead: which are available, and why others are not."
)
@output_options
def guests(connect: str | None, running: bool, drivers: bool, output: Output) -> None:
    """Domains, and whether each can be looked into.

    All of them are shown, those that are shut off too; the column reason says why one cannot be attached to.
    """
    if drivers:
        from vmi_inside import available

        fields = output.choose(available.Drivers.schema, _DRIVERS)
        output.write(output.ordered(available.drivers(connect)), fields)
        return
    from vmi_inside import guest

    fields = output.choose(guest.Guests.schema, _SHOWN)
    table = output.ordered(guest.guests(connect))
    if running:
        table = keep(table, "state", "running".__eq__)
    output.write(table, fields)
