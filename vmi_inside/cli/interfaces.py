"""`vmi-inside interfaces`: network interfaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.listing import Filters, like, list_table
from vmi_inside.cli.network import namespace_option, namespaces
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _promiscuous(table: Table) -> list[str]:
    """Flags in words; PROMISC also where the kernel, not a user, asked for it, as ip does not show."""
    rows = zip(table.flag_names.tolist(), table.promiscuous.tolist(), strict=True)
    return [f"{flags},PROMISC" if on and "PROMISC" not in flags else flags for flags, on in rows]


_SHOWN = (
    *plain("net_namespace", "interface", "state", "kind", "mac", "mtu", "master", "ipackets", "ibytes", "opackets",
           "obytes"),
    Field("flags", ("flag_names", "promiscuous"), _promiscuous),
)  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  vmi-inside interfaces web01
  vmi-inside interfaces web01 --promiscuous
  vmi-inside interfaces web01 --net 4026531840 --name 'eth*' -o +ierrors,idrops
  vmi-inside interfaces web01 --format json | jq '.[] | select(.master == "br0") | .interface'"""
)
@target_options
@click.option("--name", "names", multiple=True, metavar="GLOB", help="Interfaces whose name is like this.")
@click.option("--promiscuous", is_flag=True, help="Only those that take all packets, whoever made them do so.")
@namespace_option
@output_options
def interfaces(
    target: Target, names: tuple[str, ...], promiscuous: bool, net: tuple[tuple[int, ...], ...], output: Output
) -> None:
    """Network interfaces, of all network namespaces.

    Counts that only a driver knows are -1, and the column fault says whose they are. Ends with exit code 1 when
    something was asked for and nothing is there.
    """
    filters: Filters = {
        **({"interface": like(names)} if names else {}),
        **({"promiscuous": bool} if promiscuous else {}),
        **namespaces(net),
    }
    list_table(target, output, "interface_details", _SHOWN, filters=filters, what="interface")
