"""Arguments and options that several commands have: the target, how to reach it, and how to write what was found."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from vmi_inside.cli import complete, messages
from vmi_inside.cli.output import FORMATS, Output

if TYPE_CHECKING:
    from vmi_inside.guest import Guest

Command = Callable[..., None]

#: Bytes of mapped guest RAM that a command keeps resident: it reads once, and stays small beside any guest.
RESIDENT_LIMIT = 32 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """What to attach to, and how."""

    name: str
    connect: str | None = None
    raw_split: int | None = None
    profile: str | None = None

    def attach(self, output: Output, *, writable: bool = False, pausing: bool = False) -> Guest:
        """The guest, attached, read-only unless `writable`. Use as a context manager.

        What is to be said about attaching goes to stderr.
        """
        import warnings

        from vmi_inside import guest

        messages.about(self.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", guest.Notice)  # they are in the guest's notices, too
            consent = {name: True for name, given in (("writable", writable), ("pausing", pausing)) if given}
            found = guest.attach(
                self.name,
                connect=self.connect,
                raw_split=self.raw_split,
                resident_limit=RESIDENT_LIMIT,
                profile=self.profile,
                **consent,
            )
        output.attached(found)
        return found


def numbers(text: str) -> tuple[int, ...]:
    """The type of options that take numbers with commas between them: `1,2,3`."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number, and no list of numbers like 1,2,3.") from None


def size(text: str) -> int:
    """The type of options that take bytes: decimal, 0x..., or with K, M, G for 1024, its square, its cube."""
    unit = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper(), 0)
    try:
        return int(text[:-1] if unit else text, 0) << unit
    except ValueError:
        raise click.BadParameter(f"{text!r} is no size like 3221225472, 0xc0000000 or 3G.") from None


def connect_option(command: Command) -> Command:
    """-c/--connect."""
    return click.option(
        "-c", "--connect", metavar="URI",
        help="The libvirt to ask; else, as in virsh, $VIRSH_DEFAULT_CONNECT_URI or $LIBVIRT_DEFAULT_URI.",
    )(command)  # fmt: skip


def profile_option(command: Command) -> Command:
    """--profile, given to the command as `profile_file`."""
    return click.option(
        "--profile", "profile_file", metavar="FILE,...",
        help="For a kernel whose memory does not tell: ISF, Rekall's JSON, a System.map, BTF, or a vmlinux with BTF.",
    )(command)  # fmt: skip


def target_options(command: Command) -> Command:
    """TARGET, --connect, --raw-split and --profile, given to the command as `target`."""

    @click.argument("name", metavar="TARGET", shell_complete=complete.targets)
    @connect_option
    @click.option(
        "--raw-split", type=size, metavar="SIZE",
        help="Raw dumps only: how much RAM lies below 4 GiB; the rest of the file is RAM from 4 GiB up.",
    )  # fmt: skip
    @profile_option
    @functools.wraps(command)
    def wrapped(
        *args: Any, name: str, connect: str | None, raw_split: int | None, profile_file: str | None, **kwargs: Any
    ) -> None:
        command(*args, target=Target(name, connect, raw_split, profile_file), **kwargs)

    return wrapped


def output_options(command: Command) -> Command:
    """The options on output, given to the command as `output`."""

    @click.option(
        "--format", "format_", type=click.Choice(FORMATS), default="table", show_default=True,
        help="json is one array of objects, jsonl one object a line; like csv, they have all columns and exact values.",
    )  # fmt: skip
    @click.option(
        "-o", "--columns", multiple=True, metavar="COL,...", shell_complete=complete.columns,
        help="Show these columns; +COL,... adds to the default ones; 'all' is all.",
    )  # fmt: skip
    @click.option(
        "--sort", multiple=True, metavar="COL,...", shell_complete=complete.columns,
        help="Sort by these columns; -COL downwards.",
    )  # fmt: skip
    @click.option("--headers/--no-headers", default=True, help="Headers of tables and csv; on unless said otherwise.")
    @click.option("--wide", is_flag=True, help="Do not cut lines at the terminal's edge.")
    @click.option("-q", "--quiet", is_flag=True, help="No notices on stderr; errors only.")
    @click.option("-v", "--verbose", is_flag=True, help="Say on stderr how the guest is read.")
    @messages.debug_option
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        format_: str,
        columns: tuple[str, ...],
        sort: tuple[str, ...],
        headers: bool,
        wide: bool,
        quiet: bool,
        verbose: bool,
        **kwargs: Any,
    ) -> None:
        command(*args, output=Output(format_, columns, sort, headers, wide, quiet, verbose), **kwargs)

    return wrapped
