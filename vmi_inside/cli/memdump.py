"""`vmi-inside memdump`: one process's memory as an ELF core."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from vmi_inside.cli import exits, outfile
from vmi_inside.cli.fields import size
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, target_options
from vmi_inside.cli.output import Output
from vmi_inside.cli.progress import progress

#: The kinds of `linux.contents.core_dump.KINDS`, and all of them.
_KINDS: Final = ("heap", "stack", "anon", "file", "all")


def _kinds(text: str) -> frozenset[str]:
    """The type of --regions."""
    asked = frozenset(each.strip().lower() for each in text.split(","))
    wrong = sorted(asked.difference(_KINDS))
    if wrong:
        raise click.BadParameter(f"no kind of regions {wrong[0]!r}; there are {', '.join(_KINDS)}.")
    return frozenset(_KINDS) if "all" in asked else asked


@click.command(
    epilog="""\b
Examples:
  vmi-inside memdump web01 812 -O nginx.core && gdb -c nginx.core
  vmi-inside memdump web01 812 --regions heap,stack
  vmi-inside cat web01 /usr/sbin/nginx -O nginx && gdb nginx core.812"""
)
@target_options
@click.argument("pid", type=int)
@click.option(
    "-O", "--output", "path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Where to; core.PID unless given.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.option(
    "--regions", "kinds", type=_kinds, default="all", show_default=True, metavar="KIND,...",
    help="Which regions' bytes: heap, stack, anon (other anonymous ones), file, all.",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def memdump(target: Target, pid: int, path: Path | None, force: bool, kinds: frozenset[str], quiet: bool) -> None:
    """Dump a process as an ELF core, which gdb opens.

    It holds the process's memory and its threads' registers. The process is not stopped, so memory may change while
    it is read. Pages in swap, and pages of files that are only on the guest's disk, are left out of the core, and
    counted on stderr; the exit code is then 11. A file that is there is not written over, and of one that could not
    be finished nothing is left.
    """
    path = path or Path(f"core.{pid}")
    outfile.check(path, force)
    with target.attach(Output(quiet=quiet)) as guest:
        from vmi_inside.linux.contents.content import WHY
        from vmi_inside.linux.contents.core_dump import write_core

        memory = guest.process_contents(pid)
        with outfile.written(path) as file, progress(f"process {pid}") as told:
            core = write_core(guest.kernel, memory, file, kinds=kinds, progress=told)
    if not quiet:
        for warning in core.warnings:
            say(f"{target.name}: {warning}")
        for state, lost in sorted(core.missing.items()):
            say(f"{target.name}: {lost >> 12} pages ({size(lost)}) are missing: {WHY[state]}")
        threads = "1 thread" if core.threads == 1 else f"{core.threads} threads"
        say(
            f"{target.name}: {size(core.written)} of process {pid} ({memory.name}), {threads}, {core.regions} regions,"
            f" written to {path}"
        )
    if core.missing:
        click.get_current_context().exit(exits.PARTIAL)
