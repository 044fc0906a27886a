"""`vmi-inside drgn`: drgn scripts on a guest, live, without debug information."""

from __future__ import annotations

from pathlib import Path

import click

from vmi_inside.cli.options import Target, target_options
from vmi_inside.cli.output import Output


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="""\b
Examples:
  vmi-inside drgn web01
  vmi-inside drgn -e 'print(prog["init_task"].comm)' web01
  vmi-inside drgn -e 'for t in for_each_task(): print(t.pid.value_(), t.comm.string_())' web01
  vmi-inside drgn web01 script.py --its-option""",
)
@click.option("-e", "text", metavar="CODE", help="Run this code.")
@target_options
@click.argument("script", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.argument("arguments", nargs=-1, metavar="[ARGUMENT]...", type=click.UNPROCESSED)
def drgn(target: Target, text: str | None, script: Path | None, arguments: tuple[str, ...]) -> None:
    """Run a script of drgn's on the guest, or its shell.

    The guest is `prog`.

    Memory, symbols and types are the guest's own; no debug package is needed. Needs drgn: pip install
    'vmi-inside[drgn]'.
    """
    from vmi_inside.bridges import drgn as bridge

    if text is not None and script is not None:
        raise click.UsageError("-e and a script are one too many.")
    if script is not None and not script.is_file():
        raise click.BadParameter(f"there is no file {script}.", param_hint="SCRIPT")
    with target.attach(Output()) as guest:
        if text is not None:
            bridge.code(guest, text)
        elif script is not None:
            bridge.script(guest, script, arguments)
        else:
            bridge.shell(guest)
