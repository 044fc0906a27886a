"""`vmi-inside mounts`: what is mounted where, in all mount namespaces."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import click

from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.listing import Filters, like, list_table
from vmi_inside.cli.options import Target, numbers, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _flags(table: Table) -> list[str]:
    """Of the mount; where the file system says otherwise, and where changes go to others, that too."""
    columns = (table.flags.tolist(), table.super_flags.tolist(), table.propagation.tolist())
    rows = zip(*columns, strict=True)
    return [" ".join(filter(None, (own, each if each != "rw" else "", more))) for own, each, more in rows]


_SHOWN = (
    Field("namespace", ("mnt_namespace",), lambda table: [str(each) for each in table.mnt_namespace.tolist()]),
    *plain("id", "parent", "path", "type", "device"), Field("flags", ("flags", "super_flags", "propagation"), _flags),
)  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  vmi-inside mounts web01
  vmi-inside mounts web01 '/var/*' --type ext4,xfs
  vmi-inside mounts web01 --namespace 4026531841 -o path,device,root
  vmi-inside mounts web01 --format json | jq '.[] | select(.type == "overlay")'"""
)
@target_options
@click.argument("path", nargs=-1)
@click.option("--type", "kinds", multiple=True, metavar="NAME,...", help="Of these file systems: ext4, tmpfs, overlay.")
@click.option(
    "--namespace", type=numbers, metavar="NUMBER,...", multiple=True,
    help="In these mount namespaces, by the number that /proc/PID/ns/mnt shows.",
)  # fmt: skip
@output_options
def mounts(
    target: Target,
    path: tuple[str, ...],
    kinds: tuple[str, ...],
    namespace: tuple[tuple[int, ...], ...],
    output: Output,
) -> None:
    """Mounts, those of all mount namespaces.

    They are shown as in /proc/PID/mountinfo. Paths begin at the root of the namespace, which processes in it may not
    see. PATH limits it to mounts there, or like that pattern, in which * stands for slashes too. Flags that a file
    system keeps to itself (mode=, errors=) are not shown. Ends with exit code 1 when something was asked for and
    nothing is there.
    """
    asked = {each.strip() for listed in kinds for each in listed.split(",")}
    numbered = frozenset(chain(*namespace))
    filters: Filters = {
        **({"path": like(path)} if path else {}),
        **({"type": asked.__contains__} if kinds else {}),
        **({"mnt_namespace": numbered.__contains__} if namespace else {}),
    }
    list_table(target, output, "mounts", _SHOWN, filters=filters, what="mount")
