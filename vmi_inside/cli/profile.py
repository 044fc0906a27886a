"""`vmi-inside profile`: what was learned of a kernel, for other tools."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from vmi_inside import __version__
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, target_options
from vmi_inside.cli.output import Output
from vmi_inside.newfile import replacing


def _gzip(raw: bytes) -> bytes:
    import gzip

    return gzip.compress(raw, 6)


def _xz(raw: bytes) -> bytes:
    import lzma

    return lzma.compress(raw, preset=1)


#: How a file is packed, by the end of its name: those that volatility3 opens.
_PACKERS: Final[dict[str, Callable[[bytes], bytes]]] = {".gz": _gzip, ".xz": _xz}


@click.group(
    epilog="""\b
Examples:
  vmi-inside profile export web01 -o symbols/linux/web01.json.xz"""
)
def profile() -> None:
    """What was learned of a guest's kernel, for other tools."""


@profile.command(
    epilog="""\b
Examples:
  vmi-inside profile export web01 -o symbols/linux/web01.json.xz
  vol -s symbols -f web01.core linux.pslist"""
)
@target_options
@click.option("--as", "kind", type=click.Choice(["isf"]), default="isf", show_default=True, help="isf: volatility3's.")
@click.option(
    "-o", "--output", "path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Where to; .xz and .gz are packed. Else to stdout.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def export(target: Target, kind: str, path: Path | None, force: bool) -> None:
    """A symbol table made from the guest's own memory, for volatility3.

    No debug package is needed: it takes a second or two. Volatility3 finds it by the kernel's banner when it lies in a
    folder `linux` of one of its symbol folders.
    """
    import json

    from vmi_inside.profile.isf import isf

    if path is not None and path.exists() and not force:
        raise click.UsageError(f"{path} is there already; --force writes over it.")
    with target.attach(Output()) as guest:
        table = isf(guest.kernel.profile, __version__)
    raw = json.dumps(table, separators=(",", ":")).encode()
    if path is None:
        sys.stdout.buffer.write(raw + b"\n")
        return
    try:
        with replacing(path) as file:
            file.write(_PACKERS.get(path.suffix, bytes)(raw))
    except OSError as error:
        raise click.FileError(str(path), error.strerror) from None
    say(f"{target.name}: {len(table['user_types'])} types and {len(table['symbols'])} symbols written to {path}")
