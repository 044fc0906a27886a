"""`vmi-inside mounts`: what is mounted where, in all mount namespaces."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING

import click

from vmi_inside.cli.fields import Field, plain, size
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


def _bytes(count: str, less: str = "") -> Callable[[Table], list[str]]:
    """So many blocks, less so many, as bytes; `-` where the file system does not say."""

    def cells(table: Table) -> list[str]:
        kept = table.column(less) if less else 0 * table.blocks_size
        left = ((table.column(count) - kept) * table.blocks_size).tolist()
        return [size(max(each, 0)) if known else "-" for each, known in zip(left, table.blocks > 0, strict=True)]

    return cells


def _percent(table: Table) -> list[str]:
    """Of what everybody may use, as df rounds it: up."""
    used = (table.blocks - table.blocks_free).tolist()
    rows = zip(used, table.blocks_available.tolist(), strict=True)
    return [f"{-(-100 * taken // (taken + free))}%" if taken + free > 0 else "-" for taken, free in rows]


def _number(name: str) -> Callable[[Table], list[str]]:
    return lambda table: [str(each) if each >= 0 else "-" for each in table.column(name).tolist()]


_USAGE = (
    *plain("path", "type", "device"), Field("size", ("blocks", "blocks_size"), _bytes("blocks")),
    Field("used", ("blocks", "blocks_free", "blocks_size"), _bytes("blocks", "blocks_free")),
    Field("available", ("blocks", "blocks_available", "blocks_size"), _bytes("blocks_available")),
    Field("use", ("blocks", "blocks_free", "blocks_available"), _percent),
    Field("inodes", ("inodes",), _number("inodes")), Field("inodes_free", ("inodes_free",), _number("inodes_free")),
)  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  vmi-inside mounts web01
  vmi-inside mounts web01 --usage
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
@click.option("--usage", is_flag=True, help="How large and how full they are, as df: of tmpfs and ext4.")
@output_options
def mounts(
    target: Target,
    path: tuple[str, ...],
    kinds: tuple[str, ...],
    namespace: tuple[tuple[int, ...], ...],
    usage: bool,
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
    list_table(target, output, "mounts", _USAGE if usage else _SHOWN, filters=filters, what="mount")
