"""`vmi-inside ftrace`: who uses ftrace, and which functions are traced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.listing import Filters, like, list_table
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _functions(table: Table) -> list[str]:
    return ["all" if each < 0 else str(each) for each in table.functions.tolist()]


#: What can be listed: its table, what people see of it, the column that a pattern goes by, what one is called.
_KINDS: Final = {
    "users": (
        "ftrace_ops",
        (*plain("callback", "owner", "name", "enabled"), Field("functions", make=_functions, number=True),
         *plain("excluded", "flags", "trampoline")),
        "callback",
        "user of ftrace",
    ),
    "functions": (
        "ftrace_functions",
        plain("probed", "function", "users", "callbacks", "direct", "ipmodify"),
        "function",
        "traced function",
    ),
}  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  vmi-inside ftrace web01
  vmi-inside ftrace web01 functions
  vmi-inside ftrace web01 functions --name 'vfs_*'
  vmi-inside ftrace web01 users --owner 'evil*' --format json"""
)
@target_options
@click.argument("what", type=click.Choice(tuple(_KINDS)), default="users")
@click.option("--name", "names", multiple=True, metavar="GLOB", help="Callbacks, or traced functions, like this.")
@click.option("--owner", "owners", multiple=True, metavar="GLOB", help="Those that are the code of modules like this.")
@output_options
def ftrace(target: Target, what: str, names: tuple[str, ...], owners: tuple[str, ...], output: Output) -> None:
    """Who has functions traced, or which functions are.

    WHAT is users (when nothing is said): whose code is called and how many functions it asked for; or functions: what
    tracefs's enabled_functions shows. Ends with exit code 1 when something was asked for and nothing is there.
    """
    table, shown, column, word = _KINDS[what]
    filters: Filters = {
        **({column: like(names)} if names else {}),
        **({"owner": like(owners)} if owners else {}),
    }
    list_table(target, output, table, shown, filters=filters, what=word)
