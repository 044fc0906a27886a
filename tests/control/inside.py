"""What lab guests are asked in tests of control, and what is done in them."""

from __future__ import annotations

import re
from pathlib import Path

import vmi_inside
from tests.lab.guest import LabGuest


def nodename(guest: vmi_inside.Guest) -> int:
    uts = guest.kernel.struct("uts_namespace")
    return guest.kernel.symbol("init_uts_ns") + uts.member("name.nodename").offset


def ticks(lab: LabGuest) -> bool:
    """Whether the guest runs: it answers."""
    return lab.ask("echo yes", timeout=20).strip() == "yes"


def uid(lab: LabGuest) -> str:
    return lab.ask("id -u").strip()


def sleeper(lab: LabGuest) -> int:
    """A process that sleeps; its parent waits for it, and `status` tells what it saw."""
    lab.ask("rm -f /tmp/pid /tmp/status")
    lab.ask("(sleep 1000 & echo $! >/tmp/pid~; mv /tmp/pid~ /tmp/pid; wait $!; echo $? >/tmp/status~;"
            " mv /tmp/status~ /tmp/status) </dev/null >/dev/null 2>&1 &")  # fmt: skip
    return int(lab.ask("while [ ! -e /tmp/pid ]; do :; done; cat /tmp/pid"))


def status(lab: LabGuest) -> str:
    """The status that the sleeper's parent got from wait(2), as a shell tells it."""
    return lab.ask("while [ ! -e /tmp/status ]; do sleep .02; done; cat /tmp/status").strip()


def healthy(lab: LabGuest) -> bool:
    """Whether the guest's kernel has nothing to complain about."""
    return not re.search(r"BUG|Oops|WARNING|Call Trace|stall|lockup|hung", lab.ask("dmesg"))


def agent(uri: str, name: str, command: str) -> None:
    """Ask a guest something from another process."""
    from tests.lab.libvirt import Daemon

    Daemon(Path(uri.partition("socket=")[2]).parents[1], 0).guest(name).ask(command)
