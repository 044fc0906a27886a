"""`vmi-inside keys`: the kernel's keys and keyrings."""

from __future__ import annotations

import click

from vmi_inside.cli.fields import plain
from vmi_inside.cli.listing import Filters, like, list_table
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

_SHOWN = plain(
    "serial_number", "flags", "usage", "timeout", "permissions", "uid", "gid", "type", "description", "content"
)  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  vmi-inside keys web01
  vmi-inside keys web01 --type asymmetric -o serial_number,description
  vmi-inside keys web01 '.builtin*'"""
)
@target_options
@click.argument("description", nargs=-1)
@click.option("--type", "kinds", multiple=True, metavar="NAME,...", help="Keys of these types: keyring, user, logon.")
@output_options
def keys(target: Target, description: tuple[str, ...], kinds: tuple[str, ...], output: Output) -> None:
    """Keys and keyrings that the kernel keeps.

    They are shown as in /proc/keys, those of all users and namespaces. DESCRIPTION limits it to keys that are called
    so, or like that pattern. The keys' content is not read.
    """
    asked = {each.strip() for listed in kinds for each in listed.split(",")}
    filters: Filters = {
        **({"description": like(description)} if description else {}),
        **({"type": asked.__contains__} if kinds else {}),
    }
    list_table(target, output, "kernel_keys", _SHOWN, filters=filters, what="key")
