"""What `strings` and `yara` look through, chosen by options."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from vmi_inside.cli.listing import pid_option

if TYPE_CHECKING:
    from vmi_inside.cli.options import Command
    from vmi_inside.guest import Guest
    from vmi_inside.linux.contents.streams import Stream


@dataclass(frozen=True, slots=True)
class Scope:
    """All processes, unless something else was asked for."""

    pids: tuple[int, ...] = ()
    kernel: bool = False
    physical: bool = False
    files: bool = False

    def streams(self, guest: Guest) -> Iterator[Stream]:
        """What was chosen."""
        return guest.streams(self.pids or None, kernel=self.kernel, physical=self.physical, files=self.files)

    def size(self, guest: Guest) -> int:
        """Bytes that there are to look through; 0 where that is not known before."""
        return sum(run.size for run in guest.memory.runs) if self.physical else 0


def scope_options(command: Command) -> Command:
    """--pid, --kernel, --all, --files, given to the command as `scope`."""

    @pid_option
    @click.option("--kernel", is_flag=True, help="The kernel's image, modules and vmalloc memory.")
    @click.option("--all", "physical", is_flag=True, help="All of RAM; addresses are physical.")
    @click.option("--files", is_flag=True, help="Files in the page cache; addresses are offsets in them.")
    @functools.wraps(command)
    def wrapped(
        *args: Any, pid: tuple[tuple[int, ...], ...], kernel: bool, physical: bool, files: bool, **kwargs: Any
    ) -> None:
        pids = tuple(dict.fromkeys(chain(*pid)))
        if bool(pids) + kernel + physical + files > 1:
            raise click.UsageError("--pid, --kernel, --all and --files exclude each other.")
        command(*args, scope=Scope(pids, kernel, physical, files), **kwargs)

    return wrapped
