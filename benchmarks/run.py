"""Boots guests of different sizes and measures attaching, tables and whole commands on each.

    python -m benchmarks.run [--rounds 15] [--json FILE]

Prints a Markdown table. Every figure is a median of several rounds; `gathers` counts the batches of reads that a table
takes, which does not depend on the machine. Each result is compared with the guest's own word before its time counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vmi_inside
from tests.lab.guest import LabGuest, Shape
from tests.lab.libvirt import Daemon

FIVE = ("pid", "parent", "name", "uid", "state")
SHAPES = {
    "256 MiB, mapped": Shape(memory=256, backing="memfd", workload="sleepers=1000"),
    "256 MiB, process_vm_readv": Shape(memory=256, backing="anon", workload="sleepers=1000"),
    "4 GiB, mapped": Shape(memory=4096, backing="memfd", workload="sockets=1000"),
    "4 GiB, process_vm_readv": Shape(memory=4096, backing="anon", workload="sockets=1000"),
}


class Counted:
    """A memory that counts the gathers that go through it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.gathers = 0
        self.rows = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def gather(self, pa: Any, out: Any) -> Any:
        self.gathers += 1
        self.rows += len(pa)
        return self._inner.gather(pa, out)


def median(action: Callable[[], object], rounds: int) -> float:
    """Median seconds of `rounds` calls, after one that does not count."""
    action()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def whole_command(arguments: list[str], environment: dict[str, str], rounds: int) -> float:
    """Median wall seconds of a command run anew each time."""
    return median(lambda: subprocess.run(arguments, stdout=subprocess.DEVNULL, env=environment, check=True), rounds)


_PEAK = """
import runpy, sys
try:
    runpy.run_module("vmi_inside.cli", run_name="__main__", alter_sys=True)
finally:
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
"""


def peak_resident(arguments: list[str], environment: dict[str, str]) -> int:
    """KiB that `vmi-inside` with these arguments held at the most, by its own /proc/self/status."""
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=environment, check=True,
    )  # fmt: skip
    return int(done.stderr.split()[-1])


def check(guest: LabGuest, seen: vmi_inside.Guest) -> None:
    """What is measured must be right: the guest's own process list is the judge."""
    inside = {int(word) for word in guest.ask("cd /proc; echo [0-9]*").split()}
    outside = set(seen.processes(columns=("pid",)).pid.tolist())
    missing = [pid for pid in inside - outside if guest.ask(f"test -d /proc/{pid} && echo yes", check=False)]
    if missing:
        raise SystemExit(f"{guest.name}: processes {missing} are not seen from outside")


def measure(label: str, guest: LabGuest, rounds: int) -> dict[str, Any]:
    """All figures of one guest."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "VMI_INSIDE_CACHE": cache}
        os.environ["VMI_INSIDE_CACHE"] = cache

        def cold() -> None:
            for file in Path(cache).rglob("*.profile"):
                file.unlink()
            guest.attach().close()

        figures: dict[str, Any] = {"guest": label, "kernel": guest.shape.kernel}
        figures["attach, nothing cached (ms)"] = 1e3 * median(cold, 5)
        figures["attach, profile cached (ms)"] = 1e3 * median(lambda: guest.attach().close(), rounds)
        with guest.attach() as seen:
            check(guest, seen)
            tables: dict[str, Callable[[], Any]] = {
                "processes, 5 columns": lambda: seen.processes(columns=FIVE),
                "processes, all columns": seen.processes,
                "sockets, all columns": seen.process_open_sockets,
            }
            for name, table in tables.items():
                figures[f"{name} (ms)"] = 1e3 * median(table, rounds)
                figures[f"{name} (rows)"] = len(table())
                counted = Counted(seen.memory)
                seen.kernel.space.memory = counted
                table()
                seen.kernel.space.memory = seen.memory
                figures[f"{name} (gathers)"] = counted.gathers
        command = [sys.executable, "-m", "vmi_inside.cli", "ps", guest.target, "--connect", guest.uri or ""]
        wall = whole_command(command, environment, rounds)
        resident = peak_resident(command[3:], environment)
        figures["whole command `ps` (ms)"] = 1e3 * wall
        figures["whole command `ps`, peak resident (MiB)"] = resident / 1024
    return figures


def markdown(results: list[dict[str, Any]]) -> str:
    """The figures as a table, a guest a column."""
    names = [name for name in results[0] if name != "guest"]
    lines = ["| | " + " | ".join(result["guest"] for result in results) + " |", "|---" * (len(results) + 1) + "|"]
    for name in names:
        cells = [f"{value:.1f}" if isinstance(value, float) else str(value) for value in (r[name] for r in results)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Boot, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help="part of a guest's label")
    options = parser.parse_args()
    daemon = Daemon.start()
    results = []
    try:
        for label, shape in SHAPES.items():
            if options.only and options.only not in label:
                continue
            guest = daemon.boot(shape)
            try:
                results.append(measure(label, guest, options.rounds))
            finally:
                guest.destroy()
    finally:
        daemon.stop()
    print(markdown(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
