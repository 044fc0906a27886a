"""`vmi-inside regs`: the registers of a guest's vCPUs."""

from __future__ import annotations

import click

from vmi_inside.cli.control import controlled
from vmi_inside.cli.fields import plain
from vmi_inside.cli.options import Target, numbers, output_options, target_options
from vmi_inside.cli.output import Output
from vmi_inside.errors import ControlError


@click.command(
    epilog="""\b
Examples:
  vmi-inside regs web01
  vmi-inside regs web01 --vcpu 0 --format json | jq -r '.[] | select(.register == "rip") | .symbol'"""
)
@target_options
@click.option("--vcpu", "vcpus", type=numbers, multiple=True, metavar="N,...", help="These vCPUs only, from 0.")
@output_options
def regs(target: Target, vcpus: tuple[tuple[int, ...], ...], output: Output) -> None:
    """Registers of all vCPUs.

    Registers of all vCPUs: general, segments and their bases, control.

    The guest is paused for a few milliseconds, for QEMU's gdb stub to read them.
    """
    from vmi_inside.control.registers import Registers, registers

    fields = output.choose(Registers.schema, plain("vcpu", "register", "value", "symbol"))
    which = {one for group in vcpus for one in group}
    with controlled(target, output, writable=False) as guest:
        table = registers(guest.kernel, guest.vcpus, which or None)
    missing = which - set(table.vcpu.tolist())
    if missing:
        raise ControlError(f"{target.name}: it has no vCPU {', '.join(map(str, sorted(missing)))}")
    output.write(output.ordered(table), fields, target.name)
