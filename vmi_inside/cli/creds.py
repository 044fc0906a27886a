"""`vmi-inside creds`: whose rights processes have, and what limits them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.listing import Filters, list_table, pid_option
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table


def _effective(table: Table) -> list[str]:
    """The effective capabilities; in a word where they are all that there are."""
    from vmi_inside.linux.processes.credentials import CAPABILITIES

    every = (1 << len(CAPABILITIES)) - 1
    pairs = zip(table.effective.tolist(), table.effective_mask.tolist(), strict=True)
    return ["all" if mask & every == every else names for names, mask in pairs]


_SHOWN = (
    *plain("pid", "name", "uid", "euid", "gid", "egid", "groups", "no_new_privs", "seccomp", "label"),
    Field("effective", ("effective", "effective_mask"), _effective),
)  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  vmi-inside creds web01 -p 1,812
  vmi-inside creds web01 --cap sys_admin --cap bpf
  vmi-inside creds web01 --seccomp filter -o +seccomp_filters,bounding
  vmi-inside creds web01 --format json | jq '.[] | select(.ambient != "") | .pid'"""
)
@target_options
@click.option("--cap", "caps", multiple=True, metavar="NAME", help="Processes with this effective capability: net_raw.")
@click.option("--seccomp", type=click.Choice(("disabled", "strict", "filter")), help="Processes in this seccomp mode.")
@pid_option
@output_options
def creds(
    target: Target, caps: tuple[str, ...], seccomp: str | None, pid: tuple[tuple[int, ...], ...], output: Output
) -> None:
    """Ids, groups, capabilities and confinement of processes.

    Credentials of processes: user and group ids, capabilities, seccomp, AppArmor.

    Several --cap must all be there. Ends with exit code 1 when something was asked for and nothing is there.
    """
    from vmi_inside.linux.processes.credentials import CAPABILITIES

    asked = {f"cap_{each.lower().removeprefix('cap_')}" for each in caps}
    unknown = sorted(each for each in asked if each.removeprefix("cap_") not in CAPABILITIES)
    if unknown:
        raise click.BadParameter(
            f"no capability {unknown[0].removeprefix('cap_')!r}. There are: {', '.join(CAPABILITIES)}.",
            param_hint="'--cap'",
        )
    filters: Filters = {
        **({"effective": lambda names: asked <= set(names.split(","))} if asked else {}),
        **({"seccomp": seccomp.__eq__} if seccomp else {}),
    }
    list_table(target, output, "process_credentials", _SHOWN, filters=filters, pid=pid, what="process")
