"""`vmi-inside lsof`: open files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.listing import Filters, like, list_table, pid_option
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _descriptor(table: Table) -> list[str]:
    """As lsof shows them: `3u`, `cwd`."""
    return [f"{each}{access}" for each, access in zip(table.descriptor.tolist(), table.access.tolist(), strict=True)]


_SHOWN = (
    *plain("name", "pid"), Field("fd", ("descriptor", "access"), _descriptor),
    *plain("type", "device", "size", "inode", "path"),
)  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  vmi-inside lsof web01
  vmi-inside lsof web01 -p 1,812 -o +flags,offset
  vmi-inside lsof web01 --deleted
  vmi-inside lsof web01 /var/log/nginx/access.log '/tmp/*'
  vmi-inside lsof web01 --type memfd --format json"""
)
@target_options
@click.argument("path", nargs=-1)
@pid_option
@click.option(
    "--type", "kinds", multiple=True, metavar="NAME,...",
    help="Of these kinds: reg dir chr blk fifo sock memfd ns eventfd epoll timerfd signalfd inotify pidfd bpf ...",
)  # fmt: skip
@click.option("--deleted", is_flag=True, help="Only what no name leads to: unlinked, or never named (memfd).")
@output_options
def lsof(
    target: Target,
    path: tuple[str, ...],
    pid: tuple[tuple[int, ...], ...],
    kinds: tuple[str, ...],
    deleted: bool,
    output: Output,
) -> None:
    """Open files of processes, and what else they hold.

    Beside descriptors there are working directories (cwd), roots (rtd) and executables (txt).

    PATH limits it to files of that path, or like that pattern, in which * stands for slashes too. A deleted file is
    found by the path that it had. Letters behind a descriptor say whether it is open for reading (r), writing (w), or
    both (u). Ends with exit code 1 when something was asked for and nothing is there.
    """
    asked = {each.strip().lower() for listed in kinds for each in listed.split(",")}
    filters: Filters = {
        **({"path": like((*path, *(f"{each} (deleted)" for each in path)))} if path else {}),
        **({"type": asked.__contains__} if kinds else {}),
        **({"deleted": bool} if deleted else {}),
    }
    list_table(target, output, "process_open_files", _SHOWN, filters=filters, pid=pid, what="open file")
