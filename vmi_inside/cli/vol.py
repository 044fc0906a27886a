"""`vmi-inside vol`: volatility3's plugins on a guest, live."""

from __future__ import annotations

import click

from vmi_inside.cli.options import Target, target_options
from vmi_inside.cli.output import Output


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="""\b
Examples:
  vmi-inside vol web01 linux.pslist
  vmi-inside vol web01 linux.proc.Maps --pid 1
  vmi-inside vol web01 -r json linux.lsof
  vmi-inside vol --raw-split 3G file:web01.raw linux.pstree""",
)
@target_options
@click.argument("arguments", nargs=-1, required=True, metavar="PLUGIN [ARGUMENT]...", type=click.UNPROCESSED)
def vol(target: Target, arguments: tuple[str, ...]) -> None:
    """Run a plugin of volatility3 on the guest as it is now.

    No symbol file is needed and none is kept. What stands behind TARGET is volatility3's own command line: its options
    (-r json, -r csv, -vv), the plugin, the plugin's options. Needs volatility3: pip install 'vmi-inside[volatility3]'.
    """
    from vmi_inside.bridges import volatility3

    with target.attach(Output()) as guest:
        volatility3.run(guest, arguments)
