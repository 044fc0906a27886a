"""`vmi-inside dump`: all of a guest's memory as a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from vmi_inside.cli import exits, outfile
from vmi_inside.cli.control import controlled
from vmi_inside.cli.fields import size
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, target_options
from vmi_inside.cli.output import Output
from vmi_inside.cli.progress import progress

if TYPE_CHECKING:
    from vmi_inside.dumping import Dumped

#: `dumping.FORMATS`.
_FORMATS: Final = ("elf", "raw", "lime")
#: `sink.CHECKSUMS`.
_CHECKSUMS: Final = ("sha256", "blake3", "none")


@click.command(
    epilog="""\b
Examples:
  vmi-inside dump web01 web01.core && crash vmlinux web01.core
  vmi-inside dump web01 web01.core --pause > web01.sha256
  vmi-inside dump web01 web01.core.zst --zstd
  vmi-inside dump file:old.raw new.core"""
)
@target_options
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE")
@click.option(
    "--as", "format_", type=click.Choice(_FORMATS), default="elf", show_default=True,
    help="elf: a core with VMCOREINFO, as crash and drgn want it; raw: memory alone, at its address; lime: LiME's.",
)  # fmt: skip
@click.option("--zstd", "compress", is_flag=True, help="Compress the file, which then is a zstd stream.")
@click.option(
    "--live/--pause", "live", default=True, show_default=True,
    help="Let the guest run meanwhile, or keep it standing, so that the dump is of one moment.",
)  # fmt: skip
@click.option(
    "--registers/--no-registers", default=True, show_default=True,
    help="With --pause, the vCPUs' registers in an ELF core; QEMU's gdb stub reads them.",
)  # fmt: skip
@click.option(
    "--checksum", type=click.Choice(_CHECKSUMS), default="sha256", show_default=True,
    help="What sha256sum -c or b3sum -c checks; BLAKE3 takes a fraction of the time (extra [blake3]).",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.option("--json", "as_json", is_flag=True, help="Tell on stdout what was written as JSON, not as sha256sum does.")
@click.option("-q", "--quiet", is_flag=True, help="No notices on stderr; errors only.")
def dump(
    target: Target, path: Path, format_: str, compress: bool, live: bool, registers: bool, checksum: str, force: bool,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Write all of a guest's memory to a file.

    It is for crash, makedumpfile, drgn, gdb, volatility3 and others.

    The core has the kernel's VMCOREINFO, which the guest need not have told its hypervisor. Pages of zeros are holes in
    the file. Its checksum goes to stdout. A file that is there is not written over, and of one that could not be
    finished nothing is left; the guest is let go on every way out. When some memory could not be read, the exit code
    is 11.
    """
    outfile.check(path, force, binary=False)
    with (
        controlled(target, Output(quiet=quiet), quiet=quiet, writable=False, dry_run=live) as guest,
        progress(f"memory of {target.name}") as told,
    ):
        made = guest.dump(
            path, format=format_, compress=compress, pause=not live, registers=registers, checksum=checksum,
            force=force, progress=told,
        )  # fmt: skip
    if not quiet:
        _tell(target, made)
    if as_json:
        import json

        click.echo(json.dumps(asdict(made)))
    elif made.checksum:
        click.echo(f"{made.checksum}  {path}")
    if made.missing:
        click.get_current_context().exit(exits.PARTIAL)


def _tell(target: Target, made: Dumped) -> None:
    for notice in made.notices:
        say(f"{target.name}: {notice}")
    stood = f", the guest stood for {made.paused:.2f} s" if made.paused else ""
    whose = f", registers of {made.vcpus} vCPUs" if made.vcpus else ""
    say(
        f"{target.name}: {size(made.memory)} of memory ({size(made.zeros)} of it zeros){whose} written to {made.path},"
        f" {size(made.stored)} on disk, in {made.seconds:.1f} s{stood}"
    )
