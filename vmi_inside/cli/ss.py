"""`vmi-inside ss`: sockets, and who holds them."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

import click

from vmi_inside.cli import exits
from vmi_inside.cli.escape import visible
from vmi_inside.cli.fields import Field, plain
from vmi_inside.cli.filters import keep
from vmi_inside.cli.messages import say
from vmi_inside.cli.options import Command, Target, numbers, output_options, target_options
from vmi_inside.cli.output import Output

if TYPE_CHECKING:
    from vmi_inside.table import Table

_IDLE: Final = ("LISTEN", "UNCONN", "CLOSE")
#: The options for protocols: short form, the protocols that each stands for, and what it is called.
_KINDS: Final = {
    "tcp": ("-t", ("tcp", "mptcp"), "TCP."), "udp": ("-u", ("udp", "udplite"), "UDP."),
    "raw": ("-w", ("raw", "icmp"), "Raw and ICMP."), "unix": ("-x", ("unix",), "Unix."),
    "packet": ("-0", ("packet",), "Packet."), "netlink": (None, ("netlink",), "Netlink."),
    "vsock": (None, ("vsock",), "Vsock."),
}  # fmt: skip
_FIRST: Final = ("tcp", "mptcp", "udp", "udplite", "icmp", "raw", "sctp", "dccp", "vsock", "packet", "unix", "netlink")
#: ss's own spelling, and the kernel's.
_STATES: Final = {
    "established": ("ESTABLISHED",), "syn-sent": ("SYN_SENT",), "syn-recv": ("SYN_RECV",), "fin-wait-1": ("FIN_WAIT1",),
    "fin-wait-2": ("FIN_WAIT2",), "time-wait": ("TIME_WAIT",), "closed": ("CLOSE", "UNCONN"), "unconn": ("UNCONN",),
    "close-wait": ("CLOSE_WAIT",), "last-ack": ("LAST_ACK",), "listening": ("LISTEN",), "closing": ("CLOSING",),
    "bound": ("BOUND",),
}  # fmt: skip
_SPELLED: Final = {
    "estab": "established", "fin-wait1": "fin-wait-1", "fin-wait2": "fin-wait-2", "close": "closed",
    "listen": "listening",
}  # fmt: skip


def _end(side: str, table: Table) -> list[str]:
    """One end of each socket, in ss's manner: `1.2.3.4:80`, `[::1]:80`, a unix socket's path, `*` for any."""
    names = ("family", f"{side}_address", f"{side}_port", "path")
    return [
        visible(_unix(path, side) if family == "unix" else _joined(family, address, port))
        for family, address, port, path in zip(*(table.column(name).tolist() for name in names), strict=True)
    ]


def _unix(path: str, side: str) -> str:
    return path if path and side == "local" else "*"


def _joined(family: str, address: str, port: int) -> str:
    if not address and port <= 0:
        return "*"
    return f"{f'[{address}]' if family == 'inet6' else address or '*'}:{port or '*'}"


def _holder(table: Table) -> list[str]:
    """`name[pid] fd`, or `-` when no process holds the socket."""
    rows = zip(*(table.column(name).tolist() for name in ("name", "pid", "fd")), strict=True)
    return ["-" if pid < 0 else f"{visible(name)}[{pid}] {fd}" for name, pid, fd in rows]


def _side(side: str) -> Field:
    return Field(side, ("family", f"{side}_address", f"{side}_port", "path"), lambda table: _end(side, table))


_SHOWN = (
    *plain("protocol", "state", "rx_queue", "tx_queue"),
    _side("local"), _side("remote"), Field("process", ("name", "pid", "fd"), _holder),
)  # fmt: skip


def _states(text: str) -> tuple[str, ...]:
    """The states that a state in ss's or the kernel's spelling stands for, as the library spells them."""
    name = text.strip().lower().replace("_", "-")
    found = _STATES.get(_SPELLED.get(name, name))
    if found is None:
        raise click.BadParameter(f"no state {text!r}; there are {', '.join(_STATES)}.")
    return found


def _kind_options(command: Command) -> Command:
    for kind, (short, _, words) in reversed(_KINDS.items()):
        command = click.option(*filter(None, (short, f"--{kind}")), is_flag=True, help=words)(command)
    return command


@click.command(
    epilog="""\b
Examples:
  vmi-inside ss web01
  vmi-inside ss web01 -tln
  vmi-inside ss web01 --state time-wait --format json
  vmi-inside ss web01 --pid -1 -o +inode,net_namespace
  vmi-inside ss file:web01.core -tu --sort -tx_queue"""
)
@target_options
@click.option("-l", "--listening", is_flag=True, help="Only sockets that wait: listening, or without a peer.")
@_kind_options
@click.option("-4", "--ipv4", is_flag=True, help="IPv4.")
@click.option("-6", "--ipv6", is_flag=True, help="IPv6.")
@click.option("--state", type=_states, metavar="NAME", multiple=True, help="In this state: established, time-wait ...")
@click.option("--pid", type=numbers, metavar="PID,...", multiple=True, help="Held by these processes, or -1: by none.")
@click.option(  # fingers that know ss type -tulpn
    "-a", "--all", "-n", "--numeric", "-p", "--processes", is_flag=True, expose_value=False,
    help="Taken as in ss, but change nothing: all sockets are shown, with numbers and processes.",
)  # fmt: skip
@output_options
def ss(
    target: Target,
    listening: bool,
    ipv4: bool,
    ipv6: bool,
    state: tuple[tuple[str, ...], ...],
    pid: tuple[tuple[int, ...], ...],
    output: Output,
    **kinds: bool,
) -> None:
    """Sockets, and the processes that hold them.

    Unlike ss, everything is shown unless something is asked for: listening or not, of every family and network
    namespace, also sockets that no process holds (TIME_WAIT, orphans, the kernel's own). A socket that several
    descriptors hold has a row for each. Ends with exit code 1 when nothing matches --pid.
    """
    from vmi_inside.linux.sockets.table import OpenSockets

    fields = output.choose(OpenSockets.schema, _SHOWN)
    with target.attach(output) as guest:
        table: Table = guest.process_open_sockets(
            columns=output.needs(fields, "family", "protocol", "state", "local_port", "pid", "fd")
        )
    protocols = {name for kind, asked in kinds.items() if asked for name in _KINDS[kind][1]}
    states, holders = set(chain(*state)), set(chain(*pid))
    if protocols:
        table = keep(table, "protocol", protocols.__contains__)
    if ipv4 or ipv6:
        versions = {"inet": ipv4, "inet6": ipv6}
        # -4 and -6 speak of internet sockets; others stay only when they were asked for by name.
        table = keep(table, "family", lambda family: versions.get(family, bool(protocols)))
    if listening:
        table = keep(table, "state", _IDLE.__contains__)
    if states:
        table = keep(table, "state", states.__contains__)
    if holders:
        table = keep(table, "pid", holders.__contains__)
    output.write(_ordered(table, output), fields, target.name)
    if pid and not len(table):
        say(f"{target.name}: no such socket is held by process {', '.join(map(str, sorted(holders)))}")
        click.get_current_context().exit(exits.NOTHING)


def _ordered(table: Table, output: Output) -> Table:
    """As asked, or the internet's protocols first, each by port."""
    import numpy as np

    table = output.ordered(table, "local_port", "pid", "fd")
    if output.sort:
        return table
    rank = {name: at for at, name in enumerate(_FIRST)}
    ranks = np.array([rank.get(name, len(rank)) for name in table.column("protocol").tolist()], dtype=np.intp)
    return table.where(np.argsort(ranks, kind="stable"))
