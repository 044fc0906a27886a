"""`vmi-inside dmesg`: the kernel's log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from vmi_inside.cli.escape import visible
from vmi_inside.cli.fields import moment, plain
from vmi_inside.cli.filters import keep
from vmi_inside.cli.listing import list_table
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, output_options, target_options
from vmi_inside.cli.output import Output
from vmi_inside.cli.sink import emit

if TYPE_CHECKING:
    from vmi_inside.guest import Guest
    from vmi_inside.linux.kernel_log import KernelLog
    from vmi_inside.table import Table

_LEVELS: Final = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
_SHOWN: Final = plain("time", "level", "facility", "caller", "text")
_LINE: Final = ("sequence", "time", "level", "facility", "text", "finished", "fault")


def levels(text: str) -> frozenset[str]:
    """The type of --level: `err,warn`; `err+` for err and what is worse, `+err` for err and what is less bad."""
    found: set[str] = set()
    for part in text.lower().split(","):
        name = part.strip("+ ")
        if name not in _LEVELS:
            raise click.BadParameter(f"{part!r} is no level. There are: {', '.join(_LEVELS)}.")
        at = _LEVELS.index(name)
        found.update(_LEVELS[: at + 1] if part.endswith("+") else ())
        found.update(_LEVELS[at:] if part.startswith("+") else ())
        found.add(name)
    return frozenset(found)


@click.command(
    epilog="""\b
Examples:
  vmi-inside dmesg web01
  vmi-inside dmesg web01 -T --level warn+
  vmi-inside dmesg web01 --follow
  vmi-inside dmesg file:web01.core | tail
  vmi-inside dmesg web01 --format json | jq '.[] | select(.subsystem == "pci")'"""
)
@target_options
@click.option("-w", "--follow", is_flag=True, help="Then wait, and show what is logged next, until Ctrl-C.")
@click.option("-W", "--follow-new", is_flag=True, help="As --follow, without what is there already.")
@click.option(
    "-l", "--level", "wanted", type=levels, metavar="LEVEL,...",
    help="These levels only; err+ is err and all that is worse, +err all that is not.",
)  # fmt: skip
@click.option(
    "-T",
    "--human",
    "--ctime",
    "human",
    is_flag=True,
    help="Dates, by the guest's clock, instead of seconds since boot.",
)
@click.option("-x", "--decode", is_flag=True, help="Facility and level in words before each line.")
@click.option(
    "--interval", type=click.FloatRange(0.05, 3600), default=0.5, show_default=True, metavar="SECONDS",
    help="How often --follow looks.",
)  # fmt: skip
@output_options
def dmesg(
    target: Target,
    follow: bool,
    follow_new: bool,
    wanted: frozenset[str] | None,
    human: bool,
    decode: bool,
    interval: float,
    output: Output,
) -> None:
    """The kernel's log, as dmesg shows it.

    It is read from the ring in the guest's memory: what was cleared with dmesg -C is still there. People see lines;
    with -o they see a table, with --format data. A line of several lines has its time before each.
    """
    lines = output.format == "table" and not output.columns and not output.sort
    if not lines and not (follow or follow_new):
        filters = {"level": wanted.__contains__} if wanted else None
        list_table(target, output, "kernel_log", _SHOWN, filters=filters, what="message")
        return
    if not lines and output.format != "jsonl":
        raise click.UsageError("--follow writes lines as they come: leave out -o and --sort, or use --format jsonl")
    from vmi_inside.linux.kernel_log import KernelLog

    fields = output.choose(KernelLog.schema, _SHOWN)
    names = _LINE if lines else output.needs(fields, *_LINE)
    with target.attach(output) as guest:
        boot = int(guest.kernel_info(["boot_time"]).boot_time[0]) if human else None
        for read in _readings(guest, list(names), follow or follow_new, follow_new, interval):
            table = read if wanted is None else keep(read, "level", wanted.__contains__)
            if lines:
                emit(_lines(table, boot, decode))
                for note in () if output.quiet else table.notes:
                    say(f"{target.name}: {note}")
            elif len(table):
                output.write(table, fields, target.name)


def _readings(guest: Guest, names: list[str], follow: bool, new: bool, interval: float) -> Iterator[KernelLog]:
    """All that is there; then, for who follows, what comes."""
    table = guest.kernel_log(names)
    if not follow:
        yield table
        return
    after = -1
    while True:
        table = _settled(table)
        if len(table):
            after = int(table.sequence[-1])
            if not new:
                yield table
        new = False
        time.sleep(interval)
        table = guest.kernel_log(names, after=after)


def _settled(table: KernelLog) -> KernelLog:
    """The rows up to the first that is still being written: what comes behind it is shown when that one is whole."""
    number, finished = table.sequence.tolist(), table.finished.tolist()
    count = 0
    while count < len(number) and finished[count] and number[count] == number[0] + count:
        count += 1
    return table.where(slice(0, count))


def _lines(table: Table, boot: int | None, decode: bool) -> Iterator[str]:
    for row in table:
        when = _since_boot(row.time) if boot is None else moment(boot + int(row.time))
        words = f"{row.facility:<6}:{row.level:<6}: " if decode else ""
        text = f"{row.text} ({row.fault})" if row.fault else row.text
        for line in text.split("\n"):
            yield f"{words}[{when}] {visible(line.expandtabs())}\n"


def _since_boot(seconds: float) -> str:
    """As dmesg writes it: microseconds, not rounded. What is lost of nanoseconds in a float is less than the tenth."""
    whole, rest = divmod(int(seconds * 1e6 + 1e-4), 10**6)
    return f"{whole:5}.{rest:06}"
