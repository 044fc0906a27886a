"""`vmi-inside gdb`: a plain gdb on a guest, with the kernel's names."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmi_inside.cli import outfile
from vmi_inside.cli.control import controlled
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, target_options
from vmi_inside.cli.output import Output
from vmi_inside.errors import Unsupported

if TYPE_CHECKING:
    from vmi_inside.guest import Guest


@click.command(
    epilog="""\b
Examples:
  vmi-inside gdb web01
  vmi-inside gdb web01 --start --run
  vmi-inside gdb web01 --start --run -- -batch -ex 'break vfs_read' -ex continue -ex backtrace
  vmi-inside gdb file:web01.core -O web01.elf"""
)
@target_options
@click.argument("arguments", nargs=-1, metavar="[-- GDB-ARGUMENT...]")
@click.option(
    "-O", "--output", "path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write the symbols to this file; else one is kept for the guest in the cache.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.option("--start", is_flag=True, help="Start QEMU's gdb stub: this stops the guest until gdb lets it run.")
@click.option("--run", is_flag=True, help="Run gdb, not only say how.")
@click.option("--remote", metavar="ADDRESS", help="Where a stub listens already: host:port, or a socket's path.")
@click.option("-q", "--quiet", is_flag=True, help="No notices on stderr; errors only.")
def gdb(
    target: Target, arguments: tuple[str, ...], path: Path | None, force: bool, start: bool, run: bool,
    remote: str | None, quiet: bool,
) -> None:  # fmt: skip
    """Give gdb the names of the kernel and its modules.

    Their symbols and unwind tables go into a file; how gdb is called with it is printed, or done.

    The addresses are those of this boot. Without --start the guest is only read. With it, the guest is stopped, a stub
    is started on a socket of ours, and both are ended with gdb, or with Ctrl-C where gdb is run by hand; the guest then
    goes on, also when this command is killed. Beware of gdb's `kill`: it ends QEMU.
    """
    if start and remote:
        raise click.UsageError("--start starts a stub; --remote is for one that is there.")
    if path is not None:
        outfile.check(path, force, binary=False)
    from vmi_inside import debugging

    with controlled(target, Output(quiet=quiet), quiet=quiet, writable=False, dry_run=not start) as guest:
        try:
            made = debugging.make_symbols(guest.kernel, target.name, path)
        except OSError as error:
            raise click.FileError(str(error.filename or path), error.strerror) from None
        if not quiet:
            for notice in made.written.notices:
                say(f"{target.name}: {notice}")
            say(
                f"{target.name}: {made.written.symbols} symbols, {made.written.modules} modules, written to {made.path}"
            )
        with ExitStack() as held:
            where = held.enter_context(guest.debugging()) if start else remote or _listening(target, guest)
            words = debugging.command(made.path, where or "ADDRESS", arguments)
            if run and not where:
                raise Unsupported(
                    f"{target.name}: QEMU has no gdb stub; --start starts one, --remote tells of one that is there"
                )
            status = _run(words) if run else 0
            if not run:
                click.echo(debugging.shown(words))
                _advise(target, where, start, quiet)
        if status:
            click.get_current_context().exit(status)


def _listening(target: Target, guest: Guest) -> str:
    """What gdb can have of this target as it is: a core, a stub that QEMU was started with."""
    from vmi_inside import debugging

    if target.name.startswith("file:"):
        return target.name
    process = getattr(guest.memory, "process", None)
    return debugging.listening(process.pid) if process is not None else ""


def _advise(target: Target, where: str | None, start: bool, quiet: bool) -> None:
    """What to do with the line that was printed."""
    if start:
        sys.stdout.flush()
        say(f"{target.name}: the guest stands; Ctrl-C ends the stub and lets it go")
        try:
            signal.pause()
        except KeyboardInterrupt:
            return
    elif not where and not quiet:
        say(f"{target.name}: ADDRESS is where QEMU's gdb stub listens; vmi-inside gdb {target.name} --start starts one")


def _run(words: list[str]) -> int:
    """Run gdb in our place at the terminal; gives its exit status."""
    try:
        process = subprocess.Popen(words)
    except FileNotFoundError:
        raise Unsupported("gdb is not installed here; install your distribution's package gdb") from None
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for gdb
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
        if process.poll() is None:
            process.kill()
            process.wait()
