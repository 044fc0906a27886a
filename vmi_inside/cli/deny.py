"""`vmi-inside deny`: refuse an operation to a process, and let it live on."""

from __future__ import annotations

import click

from vmi_inside.cli import gating
from vmi_inside.cli.control import controlled, dry_run_option, quiet_option, reason_option
from vmi_inside.cli.options import Target, target_options


@click.command(
    epilog="""\b
Examples:
  vmi-inside deny web01 network --pid 4242
  vmi-inside deny web01 network --pid 4242 --children --allow 10.0.0.0/8 --allow-loopback
  vmi-inside deny web01 exec --cgroup /system.slice/docker-1f2e.scope
  vmi-inside deny web01 open --pid 4242 --path /etc --path /srv/secret
  vmi-inside deny web01 module --uid 1000 --dry-run
  vmi-inside allow web01 network --pid 4242"""
)
@target_options
@gating.operation_argument()
@gating.subject_options
@click.option("--children", is_flag=True, help="With --pid: its descendants too, also those that are born later.")
@click.option(
    "--allow", "networks", multiple=True, metavar="NETWORK",
    help="network: what it may still talk to, like 10.0.0.0/8 or fd00::/8; raw and packet sockets never.",
)  # fmt: skip
@click.option("--allow-loopback", is_flag=True, help="network: the same for 127.0.0.0/8 and ::1.")
@click.option("--unix", is_flag=True, help="network: unix sockets too.")
@click.option(
    "--abort", is_flag=True,
    help="network: also end its open connections that are refused now (TCP, connected UDP); the far end sees a reset.",
)  # fmt: skip
@click.option(
    "--path", "paths", multiple=True, metavar="PATH",
    help="open: only this file, or this directory and all below, by whatever name.",
)  # fmt: skip
@click.option(
    "--errno", type=click.Choice(("EACCES", "EPERM"), case_sensitive=False), default="EACCES", show_default=True,
    help="What a refused call ends in.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Also process 1, kernel threads, uid 0, the cgroup /.")
@reason_option
@dry_run_option
@quiet_option
def deny(
    target: Target,
    operation: str,
    pid: int | None,
    cgroup: str | None,
    uid: int | None,
    children: bool,
    networks: tuple[str, ...],
    allow_loopback: bool,
    unix: bool,
    abort: bool,
    paths: tuple[str, ...],
    errno: str,
    force: bool,
    reason: str,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Refuse an operation to a process, and let it live on.

    Or to the processes of a cgroup or a user. Nothing is killed, and no connection is closed unless
    --abort is given; then connections that somebody else holds, too, are left alone.

    OPERATION is network (sockets of all families but unix and those that stay inside the kernel; open connections,
    too), exec, open (files, or those below --path), module (loading), ptrace or kill (signals to others). A call that
    waits in the kernel already ends as it would have; the next one is refused. `vmi-inside allow` takes it back,
    `vmi-inside gates` lists what is denied.
    """
    gating.one_subject(pid, cgroup, uid)
    if children and pid is None:
        raise click.UsageError("--children goes with --pid.")
    with controlled(target, quiet=quiet, dry_run=dry_run) as guest:
        outcome = guest.deny(
            operation, pid=pid, children=children, cgroup=cgroup, uid=uid, allow=networks,
            allow_loopback=allow_loopback, unix=unix, abort=abort, paths=paths, errno=errno.upper(), force=force,
            reason=reason, dry_run=dry_run,
        )  # fmt: skip
    gating.told(target, outcome, quiet=quiet)
