"""`vmi-inside kprobes`: where the kernel is probed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.listing import Filters, like, list_table
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _state(table: Table) -> list[str]:
    """In debugfs's words."""
    columns = zip(*(table.column(name).tolist() for name in ("gone", "enabled", "optimized", "ftrace")), strict=True)
    words = ("gone", "disabled", "optimized", "ftrace")
    return [
        " ".join(word for word, on in zip(words, (gone, not enabled and not gone, jump, hook), strict=True) if on)
        for gone, enabled, jump, hook in columns
    ]


_SHOWN = (
    *plain("probed", "type", "symbol"), Field("state", ("gone", "enabled", "optimized", "ftrace"), _state),
    *plain("handler", "owner", "event"),
)  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  vmi-inside kprobes web01
  vmi-inside kprobes web01 'do_sys_open*'
  vmi-inside kprobes web01 --owner 'evil*' --format json"""
)
@target_options
@click.argument("function", nargs=-1)
@click.option(
    "--owner", "owners", multiple=True, metavar="GLOB", help="Handlers that are the code of modules like this."
)
@output_options
def kprobes(target: Target, function: tuple[str, ...], owners: tuple[str, ...], output: Output) -> None:
    """Where the kernel is probed, and whose code runs there.

    Kprobes and kretprobes, as debugfs's kprobes/list shows them, and whose code they run.

    FUNCTION limits it to probes in functions of that name, or like that pattern. Ends with exit code 1 when something
    was asked for and nothing is there.
    """
    places = [f"{each}{behind}" for each in function for behind in ("", "+*", " [[]*")]
    filters: Filters = {
        **({"symbol": like(places)} if function else {}),
        **({"owner": like(owners)} if owners else {}),
    }
    list_table(target, output, "kprobes", _SHOWN, filters=filters, sort=("probed",), what="kprobe")
