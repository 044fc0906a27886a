"""`vmi-inside write`: change bytes of a guest's memory."""

from __future__ import annotations

import click

from vmi_inside.cli.control import controlled, dry_run_option, quiet_option, reason_option
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Target, target_options


def _bytes(_: click.Context, __: click.Parameter, text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no row of bytes like 90 90 or 0f1f4400.") from None


@click.command(
    epilog="""\b
Examples:
  vmi-inside write web01 init_uts_ns.name.nodename --text other --dry-run
  vmi-inside write web01 task_struct.signal->oom_score_adj --pid 812 --int -500
  vmi-inside write web01 0x7ffd1000 --pid 812 --hex '90 90' --expect '75 0a'
  vmi-inside undo web01"""
)
@target_options
@click.argument("where")
@click.option("--hex", "raw", callback=_bytes, metavar="BYTES", help="What to write, byte by byte.")
@click.option("--text", metavar="TEXT", help="Write this text, with a NUL behind it; it must fit where it goes.")
@click.option("--int", "number", type=int, help="Write this integer, little-endian, as large as what stands there.")
@click.option("--size", type=click.IntRange(1, 8), help="How many bytes --int is, where the place does not tell.")
@click.option("--expect", callback=_bytes, metavar="BYTES", help="Write only if these bytes stand there.")
@click.option("-p", "--pid", type=int, help="An address is one of this process; task_struct is its task.")
@click.option("--physical", is_flag=True, help="An address is a physical one.")
@click.option("--code", is_flag=True, help="It is kernel code: take care that it takes effect.")
@reason_option
@dry_run_option
@quiet_option
def write(
    target: Target,
    where: str,
    raw: bytes | None,
    text: str | None,
    number: int | None,
    size: int | None,
    expect: bytes | None,
    pid: int | None,
    physical: bool,
    code: bool,
    reason: str,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Write to a guest's memory.

    `vmi-inside undo` takes it back. WHERE is an address (0x...), a symbol (jiffies_64, _text+0x40), or a member:
    init_uts_ns.name.nodename, with --pid task_struct.comm, task_struct.mm->flags. It is written while the guest
    stands still, whole or not at all.
    """
    if sum(given is not None for given in (raw, text, number)) != 1:
        raise click.UsageError("One of --hex, --text and --int says what to write.")
    if raw == b"":
        raise click.UsageError("There are no bytes to write.")
    from vmi_inside.control.named import Place
    from vmi_inside.control.places import PHYSICAL, process_space

    with controlled(target, quiet=quiet, dry_run=dry_run) as guest:
        plain = where.lower().startswith("0x")
        place = guest.place(where, pid)
        if plain and (pid is not None or physical):
            space = PHYSICAL if physical else process_space(guest.kernel, pid or 0)
            place = Place(place.address, space=space)
        data = _data(raw, text, number, size or place.size, where)
        if place.size and len(data) > place.size:
            raise click.UsageError(f"{where} has room for {place.size} bytes, not {len(data)}.")
        before = guest.read_memory(place, len(data))
        words = f"{where} ({place.address:#x}): {before.hex(' ')} -> {data.hex(' ')}"
        if dry_run:
            if expect is not None and expect != before:
                words += f"; it would be refused, for not {expect.hex(' ')} stands there"
            click.echo(f"would write {words}")
            return
        entry = guest.write_memory(place, data, expect=expect, code=code, reason=reason or f"write {where}")
    if not quiet:
        say(f"{target.name}: entry {entry.id}: wrote {words}")


def _data(raw: bytes | None, text: str | None, number: int | None, size: int, where: str) -> bytes:
    if raw is not None:
        data = raw
    elif text is not None:
        data = text.encode("utf-8", "surrogateescape") + b"\0"
    else:
        assert number is not None
        if size not in (1, 2, 4, 8):
            raise click.UsageError(f"{where} does not tell how large an integer it holds; say so with --size.")
        if not -(1 << 8 * size - 1) <= number < 1 << 8 * size:
            raise click.UsageError(f"{number} does not fit into {size} bytes.")
        data = (number & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    return data
