"""`vmi-inside read`: bytes at an address."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from vmi_inside.cli import exits, hexdump, outfile
from vmi_inside.cli.gaps import Gaps
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, size, target_options
from vmi_inside.cli.output import Output
from vmi_inside.cli.sink import emit

if TYPE_CHECKING:
    from vmi_inside.guest import Guest

#: Bytes that are read at once.
_STEP: Final = 16 << 20
_SYMBOL: Final = re.compile(r"([A-Za-z_.][\w.$]*)(?:([+-])(0[xX][0-9a-fA-F]+|\d+))?")
_TOP: Final = 1 << 64


def address(guest: Guest, text: str) -> int:
    """An address: decimal, 0x..., or a symbol of the kernel, with +N or -N behind it. Raises `NoSymbol`."""
    found = _SYMBOL.fullmatch(text)
    try:
        if not found:
            value = int(text, 0)
        else:
            offset = int(found[3] or "0", 0)
            value = guest.kernel.symbol(found[1]) + (-offset if found[2] == "-" else offset)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no address like 4096, 0xffffffff81000000 or linux_banner+0x10.", param_hint="'ADDRESS'"
        ) from None
    if not 0 <= value < _TOP:
        raise click.BadParameter(f"{text!r} is no address of 64 bits.", param_hint="'ADDRESS'")
    return value


@click.command(
    epilog="""\b
Examples:
  vmi-inside read web01 linux_banner 128
  vmi-inside read web01 0x7ffc1067d000 4K --pid 812
  vmi-inside read web01 0x100000 1M --physical -O low.bin
  vmi-inside read web01 jiffies_64 8 --format raw | od -t u8"""
)
@target_options
@click.argument("where", metavar="ADDRESS")
@click.argument("length", metavar="SIZE", type=size)
@click.option("-p", "--pid", type=int, metavar="PID", help="An address of this process, not of the kernel.")
@click.option("--physical", is_flag=True, help="A guest-physical address.")
@click.option(
    "--format", "form", type=click.Choice(["hex", "raw"]), help="As hexdump -C, or the bytes; raw with -O, else hex."
)  # fmt: skip
@outfile.file_options
def read(
    target: Target,
    where: str,
    length: int,
    pid: int | None,
    physical: bool,
    form: str | None,
    path: Path | None,
    force: bool,
) -> None:
    """Bytes at an address of the kernel, a process, or RAM.

    ADDRESS is a number (decimal or 0x...) or a symbol of the kernel, with +N or -N behind it; SIZE is in bytes, K, M, G
    are understood. What is not in the guest's memory is named on stderr, and is zeros in raw bytes; the exit code is
    then 11, or 8 where nothing is known.
    """
    if pid is not None and physical:
        raise click.UsageError("--pid and --physical exclude each other.")
    if length <= 0:
        raise click.BadParameter("there is nothing to read.", param_hint="'SIZE'")
    raw = form == "raw" or (form is None and path is not None)
    outfile.check(path, force, binary=raw)
    gaps = Gaps(target.name)
    with target.attach(Output()) as guest:
        start = address(guest, where)
        if start + length > _TOP:
            raise click.BadParameter("the range ends behind the last address.", param_hint="'SIZE'")
        pieces = _pieces(guest, start, length, pid, physical, gaps)
        if path is None and not raw:
            emit(hexdump.lines(pieces))
        else:
            with outfile.written(path) as file:
                if raw:
                    file.writelines(data for _, data, _ in pieces)
                else:
                    file.writelines(line.encode() for line in hexdump.lines(pieces))
    if path is not None:
        say(f"{target.name}: {length} bytes written to {path}")
    gaps.close(exits.UNREADABLE if gaps.size == length else exits.PARTIAL)


def _pieces(
    guest: Guest, start: int, length: int, pid: int | None, physical: bool, gaps: Gaps
) -> Iterator[tuple[int, bytes, str]]:
    """The range in pieces that adjoin: known ones, and others with the reason why they are not."""
    from vmi_inside.linux.contents.content import WHY

    for at in range(start, start + length, _STEP):
        found = guest.content(at, min(_STEP, start + length - at), pid=pid, physical=physical)
        here = at
        for low, high, state in found.gaps():
            if low > here:
                yield here, found.data[here - at : low - at], ""
            gaps.add(low, high, WHY[state])
            yield low, found.data[low - at : high - at], WHY[state]
            here = high
        if here < at + len(found.data):
            yield here, found.data[here - at :], ""
