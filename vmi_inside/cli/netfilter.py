"""`vmi-inside netfilter`: netfilter's hooks."""

from __future__ import annotations

import click

from vmi_inside.cli.fields import plain
from vmi_inside.cli.listing import Filters, like, list_table
from vmi_inside.cli.network import namespace_option, namespaces
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

_HOOKS = plain(
    "net_namespace", "family", "hook", "priority", "interface", "function", "module", "kind", "chain"
)  # fmt: skip
_TABLES = plain("net_namespace", "family", "table", "hooks", "entries", "module")


@click.command(
    epilog="""\b
Examples:
  vmi-inside netfilter web01
  vmi-inside netfilter web01 --module nf_tables
  vmi-inside netfilter web01 --hook prerouting --hook ingress -o +pointer
  vmi-inside netfilter web01 --tables
  vmi-inside netfilter web01 --format json | jq '.[] | select(.module == "")'"""
)
@target_options
@click.option("--hook", "hooks", multiple=True, metavar="NAME", help="On this hook: prerouting, input, ingress ...")
@click.option("--module", "modules", multiple=True, metavar="GLOB", help="Functions of modules like this.")
@click.option("--tables", is_flag=True, help="Tables of legacy iptables in place of hooks.")
@namespace_option
@output_options
def netfilter(
    target: Target,
    hooks: tuple[str, ...],
    modules: tuple[str, ...],
    tables: bool,
    net: tuple[tuple[int, ...], ...],
    output: Output,
) -> None:
    """Functions on netfilter's hooks, of all network namespaces.

    They stand in the order in which packets meet them. A function that is nobody's code is marked: no module that the
    kernel lists has it. Ends with exit code 1 when something was asked for and nothing is there.
    """
    if tables and hooks:
        raise click.UsageError("--hook is of hooks, --tables shows tables.")
    filters: Filters = {
        **({"hook": like(each.upper() for each in hooks)} if hooks else {}),
        **({"module": like(modules)} if modules else {}),
        **namespaces(net),
    }
    if tables:
        list_table(target, output, "xtables", _TABLES, filters=filters, what="table")
    else:
        list_table(target, output, "netfilter_hooks", _HOOKS, filters=filters, what="hook")
