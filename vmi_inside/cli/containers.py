"""`vmi-inside containers`: which containers there are."""

from __future__ import annotations

import click

from vmi_inside.cli.fields import plain
from vmi_inside.cli.listing import Filters, like, list_table
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output

_SHOWN = plain(
    "name", "runtime", "pid", "init", "processes", "hostname", "pid_namespace", "net_namespace", "mnt_namespace"
)


@click.command(
    epilog="""\b
Examples:
  vmi-inside containers web01
  vmi-inside containers web01 --runtime docker -o +id,pod,cgroup_path
  vmi-inside ps web01 -o pid,name,container,unit"""
)
@target_options
@click.option("--runtime", "runtimes", multiple=True, metavar="NAME", help="Of these: docker, podman, lxc ...")
@click.option("--name", "names", multiple=True, metavar="GLOB", help="Containers whose name is like this.")
@output_options
def containers(target: Target, runtimes: tuple[str, ...], names: tuple[str, ...], output: Output) -> None:
    """Containers, by control groups and namespaces.

    Containers that have processes: docker's, Kubernetes', podman's, LXC's, systemd-nspawn's, machines.

    They are told by their control groups' names, v1 and v2. Processes that have a pid namespace of their own, and no
    such name, are one too, of runtime systemd or namespaces. Ends with exit code 1 when something was asked for and
    nothing is there.
    """
    filters: Filters = {
        **({"runtime": set(runtimes).__contains__} if runtimes else {}),
        **({"name": like(names)} if names else {}),
    }
    list_table(target, output, "containers", _SHOWN, filters=filters, what="container")
