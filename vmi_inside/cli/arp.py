"""`vmi-inside arp`: neighbours on the link."""

from __future__ import annotations

import click

from vmi_inside.cli.fields import plain
from vmi_inside.cli.listing import Filters, like, list_table
from vmi_inside.cli.network import families, family_option, namespace_option, namespaces
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output


@click.command(
    epilog="""\b
Examples:
  vmi-inside arp web01
  vmi-inside arp web01 -4 --name eth0
  vmi-inside arp web01 '192.0.2.*' --format json
  vmi-inside arp web01 --permanent"""
)
@target_options
@click.argument("address", nargs=-1)
@click.option("--name", "names", multiple=True, metavar="GLOB", help="On interfaces whose name is like this.")
@click.option("--permanent", is_flag=True, help="Only those that somebody wrote down, rather than learned.")
@family_option
@namespace_option
@output_options
def arp(
    target: Target,
    address: tuple[str, ...],
    names: tuple[str, ...],
    permanent: bool,
    ipv4: bool,
    ipv6: bool,
    net: tuple[tuple[int, ...], ...],
    output: Output,
) -> None:
    """Neighbours on the link: the ARP cache, and IPv6's.

    ADDRESS limits it to these, or to those like that pattern. PROXY are addresses for which the guest answers in
    another's place. Ends with exit code 1 when something was asked for and nothing is there.
    """
    filters: Filters = {
        **({"address": like(address)} if address else {}),
        **({"interface": like(names)} if names else {}),
        **({"permanent": bool} if permanent else {}),
        **families(ipv4, ipv6),
        **namespaces(net),
    }
    list_table(
        target, output, "arp_cache", plain("net_namespace", "address", "interface", "mac", "state", "flags"),
        filters=filters, sort=("net_namespace", "family", "interface", "address"), what="neighbour",
    )  # fmt: skip
