"""`vmi-inside nftables`: packet filters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmi_inside.cli.escape import visible
from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.listing import Filters, like, list_table
from vmi_inside.cli.network import namespace_option, namespaces
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _table(table: Table) -> list[str]:
    """The table's name; that it sleeps is said."""
    pairs = zip(table.table.tolist(), table.dormant.tolist(), strict=True)
    return [f"{visible(name)} (dormant)" if dormant else visible(name) for name, dormant in pairs]


def _priority(table: Table) -> list[str]:
    """Priorities of base chains; others have none."""
    return [
        str(number) if hook else "" for number, hook in zip(table.priority.tolist(), table.hook.tolist(), strict=True)
    ]


_CHAINS = (
    *plain("net_namespace", "family"), Field("table", ("table", "dormant"), _table), *plain("chain", "type", "hook"),
    Field("priority", ("priority", "hook"), _priority), *plain("policy", "interface", "rules"),
)  # fmt: skip
_SETS = plain("net_namespace", "family", "table", "name", "flags", "key_length", "data_length", "elements")


@click.command(
    epilog="""\b
Examples:
  vmi-inside nftables web01
  vmi-inside nftables web01 --table filter
  vmi-inside nftables web01 --sets
  vmi-inside nftables web01 --format json | jq '.[] | select(.policy == "drop") | .chain'"""
)
@target_options
@click.option("--table", "tables", multiple=True, metavar="GLOB", help="Of tables whose name is like this.")
@click.option("--sets", is_flag=True, help="Sets and maps in place of chains.")
@namespace_option
@output_options
def nftables(
    target: Target, tables: tuple[str, ...], sets: bool, net: tuple[tuple[int, ...], ...], output: Output
) -> None:
    """Tables and chains of nftables, of all network namespaces.

    What the rules say is not shown, but how many there are. Ends with exit code 1 when something was asked for and
    nothing is there.
    """
    filters: Filters = {**({"table": like(tables)} if tables else {}), **namespaces(net)}
    if sets:
        list_table(target, output, "nftables_sets", _SETS, filters=filters, what="set")
    else:
        list_table(target, output, "nftables", _CHAINS, filters=filters, what="chain")
