"""What a lab guest's /proc says, and what differs from it for good."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.lab.guest import LabGuest
from vmi_inside.table import Table


def whole(table: Table) -> Table:
    """A table in which nothing is marked."""
    assert table.notes == ()
    assert set(table.fault.tolist()) <= {""}
    return table


def lasting(guest: LabGuest, differences: Callable[[], dict[Any, object]]) -> dict[Any, object]:
    """What differs, and still does when both sides are asked again: a guest lives on while it is compared.

    The agent and its shell, which live only while they answer, are left out; keys begin with a pid, or are one.
    """
    agent = int(guest.ask("echo $PPID"))
    first = differences()
    again = differences() if first else {}
    both = first.keys() & again.keys()
    return {key: again[key] for key in both if (key[0] if isinstance(key, tuple) else key) != agent}


def status(guest: LabGuest) -> dict[int, dict[str, str]]:
    """/proc/PID/status, by pid and name."""
    found: dict[int, dict[str, str]] = {}
    for line in guest.ask("cd /proc; grep -aH : [0-9]*/status 2>/dev/null; true", timeout=120).splitlines():
        match = re.match(r"(\d+)/status:(\w+):\s*(.*)", line)
        if match:
            found.setdefault(int(match[1]), {}).setdefault(match[2], match[3].rstrip())
    return {pid: told for pid, told in found.items() if "CapAmb" in told}


def lines(guest: LabGuest, name: str) -> dict[int, str]:
    """The first line of a file of /proc/PID, by pid."""
    told = guest.ask(f"cd /proc; grep -aHm1 '' [0-9]*/{name} 2>/dev/null; true", timeout=120)
    found = (re.match(rf"(\d+)/{name}:(.*)", line) for line in told.splitlines())
    return {int(match[1]): match[2].rstrip("\0") for match in found if match}
