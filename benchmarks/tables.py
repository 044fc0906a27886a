"""How long each table of a guest with 1,000 processes and 10,000 descriptors takes, and the checks, and a snapshot.

    python -m benchmarks.tables [--rounds N] [--kernel NAME] [--backing anon|memfd]

Prints a Markdown table: median milliseconds in the process, after attaching, rows, and the rounds of reading.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import vmi_inside
from benchmarks.counted import Counted, median
from tests.lab.guest import Shape
from tests.lab.libvirt import Daemon
from vmi_inside.snapshot import Snapshot
from vmi_inside.tables import TABLES

WORKLOAD = "full,sleepers=1000,files=10000"


def counted(seen: vmi_inside.Guest, action: Callable[[], Any]) -> tuple[Any, int]:
    """What it gives, and in how many gathers."""
    memory = Counted(seen.memory)
    seen.kernel.space.memory = memory
    try:
        return action(), memory.gathers
    finally:
        seen.kernel.space.memory = seen.memory


def main() -> None:
    """Boot, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kernel", default="6.1-cloud")
    parser.add_argument("--backing", default="anon")
    options = parser.parse_args()
    daemon = Daemon.start()
    try:
        guest = daemon.boot(Shape(kernel=options.kernel, backing=options.backing, memory=1024, workload=WORKLOAD))
        with guest.attach(pausing=True) as seen:
            print("| | ms | rows | gathers |\n|---|---|---|---|")
            for name, reading in TABLES.items():

                def action(reading: Any = reading) -> Any:
                    return seen.read(reading)

                found, gathers = counted(seen, action)
                print(f"| {name} | {1e3 * median(action, options.rounds):.1f} | {len(found)} | {gathers} |", flush=True)
            found, gathers = counted(seen, seen.check)
            print(f"| check | {1e3 * median(seen.check, 3):.0f} | {len(found)} | {gathers} |", flush=True)
            taken: list[Snapshot] = [seen.snapshot(pause=True) for _ in range(options.rounds)]
            still = 1e3 * statistics.median(each.paused for each in taken)
            rows = sum(len(table) for table in taken[-1].tables.values())
            print(f"| snapshot: the guest stands still for | {still:.1f} | {rows} | |")
    finally:
        daemon.stop()


if __name__ == "__main__":
    main()
