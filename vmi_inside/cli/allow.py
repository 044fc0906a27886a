"""`vmi-inside allow`: take a denial back."""

from __future__ import annotations

import click

from vmi_inside.cli import gating
from vmi_inside.cli.control import controlled, dry_run_option, quiet_option, reason_option
from vmi_inside.cli.options import Target, target_options


@click.command(
    epilog="""\b
Examples:
  vmi-inside allow web01 network --pid 4242
  vmi-inside allow web01 --pid 4242
  vmi-inside allow web01 --all"""
)
@target_options
@gating.operation_argument(required=False)
@gating.subject_options
@click.option("--all", "every", is_flag=True, help="Whatever is denied, to whomever.")
@reason_option
@dry_run_option
@quiet_option
def allow(
    target: Target,
    operation: str | None,
    pid: int | None,
    cgroup: str | None,
    uid: int | None,
    every: bool,
    reason: str,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Allow again what `vmi-inside deny` refused.

    One OPERATION, or all, to a process, a cgroup or a user. An open connection goes on where it stood. When the last
    denial is gone the kernel's code is what it was, byte for byte.
    """
    if every and (operation, pid, cgroup, uid) != (None,) * 4:
        raise click.UsageError("Either --all, or what to allow to whom.")
    if not every:
        gating.one_subject(pid, cgroup, uid)
    with controlled(target, quiet=quiet, dry_run=dry_run) as guest:
        outcome = guest.allow(operation, pid=pid, cgroup=cgroup, uid=uid, reason=reason, dry_run=dry_run)
    gating.told(target, outcome, quiet=quiet)
