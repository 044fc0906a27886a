"""`vmi-inside profile`: what was learned of a kernel, for other tools."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from vmi_inside import __version__
from vmi_inside.cli import exits
from vmi_inside.cli.escape import visible
from vmi_inside.cli.fields import Field, Fields
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output
from vmi_inside.newfile import replacing

if TYPE_CHECKING:
    from vmi_inside.guest import Guest


def _gzip(raw: bytes) -> bytes:
    import gzip

    return gzip.compress(raw, 6)


def _xz(raw: bytes) -> bytes:
    import lzma

    return lzma.compress(raw, preset=1)


#: How a file is packed, by the end of its name: those that volatility3 opens.
_PACKERS: Final[dict[str, Callable[[bytes], bytes]]] = {".gz": _gzip, ".xz": _xz}


def _isf(guest: Guest, _: Path | None) -> Made:
    from vmi_inside.linux.symbols.symbol_tables import symbol_tables
    from vmi_inside.profile.isf import isf

    table = isf(guest.kernel.profile, __version__, symbol_tables(guest.kernel))
    return _json(table), f"{len(table['user_types'])} types and {len(table['symbols'])} symbols"


def _rekall(guest: Guest, _: Path | None) -> Made:
    from vmi_inside.profile.isf import isf
    from vmi_inside.profile.rekall import rekall

    made = rekall(isf(guest.kernel.profile, __version__), guest.kernel.profile.release)
    return _json(made), f"{len(made['$STRUCTS'])} types and {len(made['$CONSTANTS'])} symbols"


def _libvmi(guest: Guest, beside: Path | None) -> Made:
    from vmi_inside.profile.rekall import libvmi, system_map

    known = guest.kernel.profile
    assert beside is not None
    _write(beside, "".join(f"{line}\n" for line in system_map(known)).encode("utf-8", "replace"))
    entry = libvmi(known, guest.kernel.space.root, guest.name, "sysmap", str(beside.absolute()))
    return entry.encode(), f"an entry for libvmi.conf, and {beside.name} beside it,"


def _plain(guest: Guest, _: Path | None) -> Made:
    from vmi_inside.profile.plain import plain

    made = plain(guest.kernel.profile)
    return _json(made), f"{len(made['structs'])} types and {len(made['symbols'])} symbols"


def _json(made: dict[str, Any]) -> bytes:
    import json

    return json.dumps(made, separators=(",", ":")).encode() + b"\n"


Made = tuple[bytes, str]
#: What a profile can be written as, and how: the file, and what there is in it for people.
_FORMATS: Final[dict[str, Callable[[Guest, Path | None], Made]]] = {
    "isf": _isf, "rekall": _rekall, "libvmi": _libvmi, "json": _plain,
}  # fmt: skip


@click.group(
    epilog="""\b
Examples:
  vmi-inside profile export web01 -o symbols/linux/web01.json.xz
  vmi-inside profile show web01 task_struct
  vmi-inside profile list"""
)
def profile() -> None:
    """What was learned of a guest's kernel, for other tools."""


@profile.command(
    epilog="""\b
Examples:
  vmi-inside profile export web01 -o symbols/linux/web01.json.xz
  vol -s symbols -f web01.core linux.pslist
  vmi-inside profile export web01 --as rekall -o web01.rekall.json
  vmi-inside profile export web01 --as libvmi -o web01.conf"""
)
@target_options
@click.option(
    "--as",
    "kind",
    type=click.Choice(list(_FORMATS)),
    default="isf",
    show_default=True,
    help="isf: volatility3's; rekall: Rekall's and LibVMI's JSON; libvmi: an entry for libvmi.conf, with a System.map "
    "beside it; json: plain.",
)
@click.option(
    "-o",
    "--output",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where to; .xz and .gz are packed. Else to stdout.",
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def export(target: Target, kind: str, path: Path | None, force: bool) -> None:
    """What the guest's own memory says of its kernel, in the form that another tool reads.

    No debug package is needed: it takes a second or two. Volatility3 finds its form by the kernel's banner when it lies
    in a folder `linux` of one of its symbol folders.
    """
    beside = None if path is None or kind != "libvmi" else path.with_name(f"{path.name}.System.map")
    if kind == "libvmi" and beside is None:
        raise click.UsageError("two files are made, the entry and the System.map that it names: name one with -o.")
    for one in (path, beside):
        if one is not None and one.exists() and not force:
            raise click.UsageError(f"{one} is there already; --force writes over it.")
    with target.attach(Output()) as guest:
        raw, what = _FORMATS[kind](guest, beside)
    if path is None:
        sys.stdout.buffer.write(raw)
        return
    _write(path, raw)
    say(f"{target.name}: {what} written to {path}")


@profile.command(
    "show",
    epilog="""\b
Examples:
  vmi-inside profile show web01 task_struct
  vmi-inside profile show web01 pid_type""",
)
@target_options
@click.argument("names", nargs=-1, required=True, metavar="TYPE...")
def show(target: Target, names: tuple[str, ...]) -> None:
    """Structs, unions and enums of the guest's kernel with offsets and sizes in bytes, as pahole prints them."""
    from vmi_inside.profile.declare import printed

    with target.attach(Output()) as guest:
        for name in names:
            for line in printed(guest.kernel.profile.types, name):
                click.echo(visible(line))


@profile.command(
    epilog="""\b
Examples:
  vmi-inside profile check web01 web01.json.xz
  vmi-inside profile check web01 System.map-6.1,vmlinux""",
)
@target_options
@click.argument("files", metavar="FILE,...")
def check(target: Target, files: str) -> None:
    """Whether a profile fits the kernel that the guest runs; if not, which kernel each of them is.

    A profile that fits is one that --profile of every command takes.
    """
    with replace(target, profile=files).attach(Output()) as guest:
        known = guest.kernel.profile
        say(f"{files} fits {target.name}: {known.release}, build id {known.build_id or 'unknown'}")


_KEPT: Final[Fields] = (Field("release"), Field("build_id"), Field("size"), Field("path"))


@profile.command(
    "list",
    epilog="""\b
Examples:
  vmi-inside profile list
  vmi-inside profile list --sort -size""",
)
@output_options
def listed(output: Output) -> None:
    """The profiles that are kept on disk, so that a kernel is learned but once."""
    from vmi_inside.profiles import profiles

    found = profiles()
    fields = output.choose(found.columns, _KEPT)
    output.write(output.ordered(found), fields)


@profile.command(
    epilog="""\b
Examples:
  vmi-inside profile remove bb603a91
  vmi-inside profile remove 6.1.0-50-cloud-amd64"""
)
@click.argument("which", metavar="BUILD")
def remove(which: str) -> None:
    """Take kept profiles away: those whose build id begins with BUILD, or of that release.

    Nothing is lost by it: the kernel is learned anew when it is met again.
    """
    from vmi_inside import profiles

    try:
        gone = profiles.remove(which)
    except OSError as error:
        raise click.FileError(str(error.filename), error.strerror) from None
    if not gone:
        say(f"no profile is kept of {which}; vmi-inside profile list shows those that are")
        raise click.exceptions.Exit(exits.NOTHING)
    for one in gone:
        say(f"removed the profile of {one.release or 'an unknown kernel'}, build id {one.build_id}")


def _write(path: Path, raw: bytes) -> None:
    try:
        with replacing(path) as file:
            file.write(_PACKERS.get(path.suffix, bytes)(raw))
    except OSError as error:
        raise click.FileError(str(path), error.strerror) from None
