"""`vmi-inside routes`: routing tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmi_inside.cli.escape import visible
from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.listing import Filters, like, list_table
from vmi_inside.cli.network import families, family_option, namespace_option, namespaces
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _destination(table: Table) -> list[str]:
    """As ip writes them: default, 192.0.2.0/24, 192.0.2.1."""
    pairs = zip(table.destination.tolist(), table.netmask.tolist(), strict=True)
    return ["default" if not bits else _network(visible(to), bits) for to, bits in pairs]


def _network(address: str, bits: int) -> str:
    return address if bits == (128 if ":" in address else 32) else f"{address}/{bits}"


_SHOWN = (
    *plain("net_namespace", "table", "type"), Field("destination", ("destination", "netmask"), _destination),
    *plain("gateway", "interface", "source", "metric", "protocol", "scope"),
)  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  vmi-inside routes web01
  vmi-inside routes web01 --table main -4
  vmi-inside routes web01 --format json | jq '.[] | select(.netmask == 0) | .gateway'
  vmi-inside routes web01 --table 1000 -o +mtu,weight,nexthop_id"""
)
@target_options
@click.option(
    "--table", "tables", multiple=True, metavar="NAME", help="Of this routing table: main, local, default, a number."
)
@family_option
@namespace_option
@output_options
def routes(
    target: Target,
    tables: tuple[str, ...],
    ipv4: bool,
    ipv6: bool,
    net: tuple[tuple[int, ...], ...],
    output: Output,
) -> None:
    """Routes of all routing tables, of all network namespaces.

    A route with several next hops has a row for each. Ends with exit code 1 when something was asked for and nothing is
    there.
    """
    filters: Filters = {
        **({"table": like(tables)} if tables else {}),
        **families(ipv4, ipv6),
        **namespaces(net),
    }
    list_table(target, output, "routes", _SHOWN, filters=filters, what="route")
