"""`vmi-inside block`: disks and partitions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmi_inside.cli.fields import Field, plain, size
from vmi_inside.cli.listing import like, list_table
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _size(table: Table) -> list[str]:
    return [size(each) for each in table.bytes.tolist()]


_SHOWN = (
    *plain("name", "number", "kind"), Field("size", ("bytes",), _size),
    *plain("read_only", "removable", "type", "uuid", "backing"),
)  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  vmi-inside block web01
  vmi-inside block web01 'vd*' -o +partition_uuid,start
  vmi-inside block web01 --format json | jq '.[] | select(.backing != "") | [.name, .backing]'"""
)
@target_options
@click.argument("device", nargs=-1)
@output_options
def block(target: Target, device: tuple[str, ...], output: Output) -> None:
    """Block devices: disks and partitions, as lsblk shows them.

    DEVICE limits it to devices of that name, or like that pattern. The type and UUID are those of the file system that
    is mounted from a device.
    """
    names = tuple(each.removeprefix("/dev/") for each in device)
    list_table(
        target, output, "block_devices", _SHOWN, filters={"name": like(names)} if names else None, sort=("name",),
        what="block device",
    )  # fmt: skip
