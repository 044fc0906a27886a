"""What the commands about the network have in common: which network namespace is meant."""

from __future__ import annotations

from itertools import chain

import click

from vmi_inside.cli.listing import Filters
from vmi_inside.cli.options import Command, numbers


def namespace_option(command: Command) -> Command:
    """--net, given to the command as `net`."""
    return click.option(
        "--net", type=numbers, metavar="INODE,...", multiple=True,
        help="These network namespaces only: the number that `ls -l /proc/PID/ns/net` shows in the guest.",
    )(command)  # fmt: skip


def namespaces(net: tuple[tuple[int, ...], ...]) -> Filters:
    """The filter for what `namespace_option` gave."""
    asked = frozenset(chain(*net))
    return {"net_namespace": asked.__contains__} if asked else {}


def family_option(command: Command) -> Command:
    """-4 and -6, given to the command as `ipv4` and `ipv6`."""
    command = click.option("-6", "--ipv6", is_flag=True, help="IPv6.")(command)
    return click.option("-4", "--ipv4", is_flag=True, help="IPv4.")(command)


def families(ipv4: bool, ipv6: bool) -> Filters:
    """The filter for what `family_option` gave."""
    asked = {*(["inet"] if ipv4 else []), *(["inet6"] if ipv6 else [])}
    return {"family": asked.__contains__} if asked else {}
