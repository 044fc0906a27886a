"""The loop: every table, the checks, a snapshot, and a gate placed and removed, again and again; with rests between.

Knows what is measured: our memory, descriptors and time a round, and what the guest gets done with and without us.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import vmi_inside
from tests.soak.load import Load
from vmi_inside.errors import VmiError
from vmi_inside.tables import TABLES

#: Seconds for which the guest is left alone, and read, in turn.
TURN: Final = 20.0

_LEAST: Final = 2  # rounds: a first and a last one


@dataclass(slots=True)
class Sample:
    """One round of reading: seconds from the start, how long it took, our memory (bytes) and open descriptors."""

    at: float
    seconds: float
    resident: int
    descriptors: int
    deny: float  # ms that the guest stood still
    allow: float


@dataclass(slots=True)
class Soak:
    """What was measured. `alone` and `read` are the guest's turns: computing and exchanges a second, each."""

    kernel: str
    samples: list[Sample] = field(default_factory=list)
    alone: list[tuple[float, float]] = field(default_factory=list)
    read: list[tuple[float, float]] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    slowest: dict[str, float] = field(default_factory=dict)  # median ms of each table

    def thirds(self, value: Callable[[Sample], float]) -> tuple[float, float]:
        """The median of the first third of the rounds, but for the very first one, and of the last third."""
        rounds = self.samples[1:] or self.samples
        part = max(len(rounds) // 3, 1)
        return statistics.median(map(value, rounds[:part])), statistics.median(map(value, rounds[-part:]))

    def markdown(self) -> str:
        """As a table."""
        lines = [f"Kernel {self.kernel}, {len(self.samples)} rounds in {self.samples[-1].at:.0f} s.", "",
                 "| What | First third | Last third |", "|---|---|---|"]  # fmt: skip
        for name, value in (
            ("a round, s", lambda one: one.seconds), ("our memory, MiB", lambda one: one.resident / (1 << 20)),
            ("our descriptors", lambda one: one.descriptors), ("pause of a deny, ms", lambda one: one.deny),
            ("pause of an allow, ms", lambda one: one.allow),
        ):  # fmt: skip
            first, last = self.thirds(value)
            lines.append(f"| {name} | {first:.2f} | {last:.2f} |")
        lines += ["", "| The guest gets done, a second | Left alone | While it is read | Ratio |", "|---|---|---|---|"]
        for at, name in enumerate(("turns of a computing loop", "exchanges over TCP and UDP")):
            alone, read = (statistics.median(one[at] for one in turns) for turns in (self.alone, self.read))
            lines.append(f"| {name} | {alone:.0f} | {read:.0f} | {read / alone if alone else 0:.2f} |")
        if self.errors:
            lines += ["", "Errors: " + "; ".join(f"{count} x {text}" for text, count in self.errors.items())]
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """`soak.json` and `soak.md` there."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "soak.json").write_text(json.dumps(asdict(self), indent=1))
        (folder / "soak.md").write_text(self.markdown() + "\n")


def soak(guest: vmi_inside.Guest, load: Load, seconds: float, turn: float = TURN, *, pace: float = 0.0) -> Soak:
    """Run it for so long. `pace` is how long is waited between rounds."""
    made = Soak(guest.kernel.profile.release)
    took: dict[str, list[float]] = {}
    started = time.monotonic()
    pid = next(row.pid for row in guest.processes(columns=("pid", "name")) if row.name == "busy")
    while time.monotonic() - started < seconds or not made.read or len(made.samples) < _LEAST:
        made.alone.append(_during(load, lambda: time.sleep(turn)))

        def reading() -> None:
            until = time.monotonic() + turn
            while time.monotonic() < until:
                made.samples.append(_round(guest, pid, started, made.errors, took))
                time.sleep(pace)

        made.read.append(_during(load, reading))
    made.slowest = {name: statistics.median(ms) for name, ms in took.items()}
    return made


def _during(load: Load, work: Callable[[], None]) -> tuple[float, float]:
    before, began = load.done(), time.monotonic()
    work()
    after, ended = load.done(), time.monotonic()
    spun, exchanged = ((b - a) / (ended - began) for a, b in zip(before, after, strict=True))
    return spun, exchanged


def _round(
    guest: vmi_inside.Guest, pid: int, started: float, errors: dict[str, int], took: dict[str, list[float]]
) -> Sample:
    began = time.monotonic()

    def tried(name: str, work: Callable[[], Any]) -> Any:
        at = time.perf_counter()
        try:
            return work()
        except VmiError as error:
            told = f"{name}: {error}"[:160]
            errors[told] = errors.get(told, 0) + 1
            return None
        finally:
            took.setdefault(name, []).append((time.perf_counter() - at) * 1e3)

    for name in TABLES:
        tried(name, getattr(guest, name))
    tried("info", guest.info)
    tried("check", guest.check)
    tried("snapshot", guest.snapshot)
    deny = tried("deny", lambda: guest.deny("network", pid=pid, children=True))
    allow = tried("allow", lambda: guest.allow("network", pid=pid))
    return Sample(
        time.monotonic() - started, time.monotonic() - began, resident(), len(os.listdir("/proc/self/fd")),
        deny.seconds * 1e3 if deny else 0.0, allow.seconds * 1e3 if allow else 0.0,
    )  # fmt: skip


def resident() -> int:
    """Our memory that is ours alone, in bytes: what of guest RAM is mapped in is not counted."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))
