"""`vmi-inside addresses`: IP addresses of interfaces."""

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


def _address(table: Table) -> list[str]:
    """As ip writes them: 192.0.2.1/24."""
    pairs = zip(table.address.tolist(), table.prefix_length.tolist(), strict=True)
    return [f"{visible(address)}/{bits}" for address, bits in pairs]


_SHOWN = (
    *plain("net_namespace", "interface"), Field("address", ("address", "prefix_length"), _address),
    *plain("broadcast", "point_to_point", "scope", "flags"),
)  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  vmi-inside addresses web01
  vmi-inside addresses web01 -4 --name 'eth*'
  vmi-inside addresses web01 --format json | jq -r '.[] | select(.scope == "global") | .address'"""
)
@target_options
@click.argument("address", nargs=-1)
@click.option("--name", "names", multiple=True, metavar="GLOB", help="Of interfaces whose name is like this.")
@family_option
@namespace_option
@output_options
def addresses(
    target: Target,
    address: tuple[str, ...],
    names: tuple[str, ...],
    ipv4: bool,
    ipv6: bool,
    net: tuple[tuple[int, ...], ...],
    output: Output,
) -> None:
    """IP addresses of network interfaces, of all network namespaces.

    ADDRESS limits it to these, or to those like that pattern. Ends with exit code 1 when something was asked for and
    nothing is there.
    """
    filters: Filters = {
        **({"address": like(address)} if address else {}),
        **({"interface": like(names)} if names else {}),
        **families(ipv4, ipv6),
        **namespaces(net),
    }
    list_table(target, output, "interface_addresses", _SHOWN, filters=filters, what="address")
