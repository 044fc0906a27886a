"""`vmi-inside sysctl`: settings of the guest's kernel."""

from __future__ import annotations

import click

from vmi_inside.cli.control import controlled, quiet_option
from vmi_inside.cli.escape import visible
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, target_options


@click.command(
    epilog="""\b
Examples:
  vmi-inside sysctl web01 kernel.panic
  vmi-inside sysctl web01 kernel.panic=10 vm.swappiness=5"""
)
@target_options
@click.argument("settings", nargs=-1, required=True, metavar="NAME[=VALUE]...")
@quiet_option
def sysctl(target: Target, settings: tuple[str, ...], quiet: bool) -> None:
    """Show settings of the guest's kernel, or set them.

    Show settings of the guest's kernel, or set them; `vmi-inside undo` takes that back.

    Only settings that are a stored value can be set, within the kernel's bounds; one with further effects is refused.
    """
    reading = not any("=" in one for one in settings)
    with controlled(target, quiet=quiet, dry_run=reading) as guest:
        for one in settings:
            name, equals, value = one.partition("=")
            if not equals:
                click.echo(f"{name} = {visible(guest.sysctl(name))}")
                continue
            entry = guest.set_sysctl(name.strip(), value.strip())
            if not quiet:
                say(f"{target.name}: entry {entry.id}: {entry.reason}")
