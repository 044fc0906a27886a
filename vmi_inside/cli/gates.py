"""`vmi-inside gates`: what is denied to whom in a guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.listing import list_table
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _whom(table: Table) -> list[str]:
    """In the words of `deny`'s options."""
    rows = zip(table.scope.tolist(), table.pid.tolist(), table.cgroup.tolist(), table.uid.tolist(), strict=True)
    return [
        {"process": f"pid {pid}", "children": f"pid {pid} and children", "uid": f"uid {uid}"}.get(
            scope, f"cgroup {cgroup or '(gone)'}"
        )
        for scope, pid, cgroup, uid in rows
    ]


_SHOWN = (
    *plain("operation"), Field("whom", ("scope", "pid", "cgroup", "uid"), _whom),
    *plain("name", "alive", "refused", "errno", "allow", "paths", "time", "entry"),
)  # fmt: skip


@click.command(epilog="\b\nExamples:\n  vmi-inside gates web01\n  vmi-inside gates file:web01.core --format json")
@target_options
@output_options
def gates(target: Target, output: Output) -> None:
    """What is denied to whom, and how often it was.

    It is what `vmi-inside deny` placed, read from the guest's memory, whoever placed it. `entry` is the change's number
    in the journal of the account that did.
    """
    list_table(target, output, "gates", _SHOWN, what="gate")
