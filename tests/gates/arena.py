"""A lab guest in which processes exercise, and what is told of them: who lost what, who noticed.

`workload exercise` does a little of everything and counts how each of it goes; see tests/lab/workload/exercise.c.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

import vmi_inside
from tests.kernel_text import kernel_text
from tests.lab.guest import LabGuest
from vmi_inside.control.gates.standing import Site
from vmi_inside.linux.symbols.gated import AREA_SIZE
from vmi_inside.types import PAGE_SIZE

NETWORK = ("tcp4", "tcp6", "udp4", "udp6", "make", "sendfile", "splice")
LOCAL = ("unix", "pipe", "files", "open", "exec", "kill", "self", "trace", "memory", "thread")
EACCES, EPERM = 13, 1
Counts = dict[str, tuple[int, int, int, int]]  # went well, refused, errno of the last refusal, came back wrong
SHAPES = {
    "6.1": {"workload": "none"},
    "6.12": {"kernel": "6.12-cloud", "cpu": "la57-off", "backing": "memfd", "vcpus": 1, "workload": "none"},
    "new": {"kernel": "new-cloud"},
    "5.10": {"kernel": "5.10-cloud"},
}


class Arena:
    """A lab guest in which processes exercise, attached so that it can be changed."""

    def __init__(self, lab: LabGuest, guest: vmi_inside.Guest) -> None:
        self.lab = lab
        self.guest = guest
        lab.ask("pidof -s echo >/dev/null || (workload echo 7100 >/dev/null 2>&1 &); sleep 0.3", check=False)

    def start(self, name: str, *, ip: str = "127.0.0.1", uid: int = 0, through: str = "") -> int:
        """Let a process of that name exercise; its pid, once its connections stand."""
        self.lab.ask(
            f"killall -9 {name} 2>/dev/null; rm -f /run/exercise/{name}; "
            f"({through} workload exercise {name} {ip} 7100 {uid} >/dev/null 2>&1 &)"
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            counts = self.counts(name)
            if counts and all(counts[kind][0] > 1 for kind in ("tcp4", "udp4", "open", "splice")):
                return self.pid(name)
            time.sleep(0.2)
        raise AssertionError(f"{name} does not come to exercise: {self.counts(name)}")

    def pid(self, name: str) -> int:
        """That of the process of that name, once it has taken it."""
        for _ in range(100):
            found = [row.pid for row in self.guest.processes(columns=("pid", "name")) if row.name == name]
            if found:
                return int(found[0])
            time.sleep(0.1)
        raise AssertionError(f"no process comes to be called {name}")

    def counts(self, name: str) -> Counts:
        lines = self.lab.ask(f"cat /run/exercise/{name} 2>/dev/null", check=False).splitlines()
        return {line.split()[0]: tuple(map(int, line.split()[1:])) for line in lines if line}  # type: ignore[misc]

    def during(self, *names: str, seconds: float = 1.0) -> list[Counts]:
        """How it went meanwhile. What was under way when we began to look is not counted."""
        time.sleep(0.3)
        before = [self.counts(name) for name in names]
        time.sleep(seconds)
        return [
            {
                kind: (now[0] - was[kind][0], now[1] - was[kind][1], now[2], now[3])
                for kind, now in self.counts(name).items()
            }
            for name, was in zip(names, before, strict=True)
        ]

    def descriptors(self, pid: int) -> dict[str, str]:
        """The descriptors that stay open, and what they are: sockets by inode."""
        told = self.lab.ask(f"for i in 1 2 3 4; do ls -l /proc/{pid}/fd; sleep 0.1; done", check=False)
        return {fd: what for (fd, what), seen in Counter(re.findall(r"(\d+) -> (\S+)", told)).items() if seen == 4}

    def text(self) -> np.ndarray:
        """The kernel's text, but for what the kernel itself patches."""
        return kernel_text(self.guest.kernel)

    def complaints(self) -> list[str]:
        said = self.lab.ask("dmesg")
        return re.findall(r".*(?:WARNING|BUG|Oops|Call Trace|rcu.*stall|ftrace).*", said)

    def room_is_padding(self) -> bool:
        site = Site(self.guest.kernel)
        return self.guest.kernel.space.read(site.base, AREA_SIZE) == b"\xcc" * AREA_SIZE

    def text_is_padding_for_calls(self) -> bool:
        """Whether nothing stands where code for calls that may sleep does."""
        base = Site(self.guest.kernel).base
        return self.guest.kernel.space.read(base - 3 * PAGE_SIZE, 3 * PAGE_SIZE) == b"\xcc" * (3 * PAGE_SIZE)


@contextmanager
def arena(lab: LabGuest) -> Iterator[Arena]:
    with lab.attach(writable=True) as guest:
        made = Arena(lab, guest)
        before, complaints = made.text(), made.complaints()
        try:
            yield made
        finally:
            if len(guest.gates()):
                guest.allow()
            ours = "one two boxed one.child one.orphan receiver sharer"
            lab.ask(f"killall -9 {ours} 2>/dev/null; rm -rf /run/exercise /run/receiver", check=False)
        changed = np.flatnonzero(made.text() != before)
        assert not len(changed), [guest.kernel.profile.symbol_at(guest.kernel.symbol("_stext") + at) for at in changed]
        assert made.room_is_padding()
        assert made.complaints() == complaints


def refused(counts: Counts, kinds: tuple[str, ...], errno: int = EACCES) -> None:
    for kind in kinds:
        went, said_no, last, wrong = counts[kind]
        assert (went, last, wrong) == (0, errno, 0), (kind, counts[kind])
        assert said_no > 0, kind


def went_on(counts: Counts, kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        went, said_no, _, wrong = counts[kind]
        assert (said_no, wrong) == (0, 0), (kind, counts[kind])
        assert went > 0, kind
