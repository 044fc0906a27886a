"""`python -m tests.faults`: the campaign, `--minutes` or `--rounds` long; ends with 1 when anything was wrong."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.campaign import COMMANDS, Campaign
from tests.faults.faults import FAULTS
from tests.faults.world import World
from tests.lab.guest import Shape
from tests.lab.libvirt import Daemon


def main() -> int:
    """Run it, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=1 << 30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--kernel", default="6.1-cloud")
    parser.add_argument("--command", action="append", choices=tuple(COMMANDS), default=[])
    parser.add_argument("--fault", action="append", choices=tuple(FAULTS), default=[])
    parser.add_argument("--output", type=Path, help="write the table there, too")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    daemon = Daemon.start()
    try:
        with tempfile.TemporaryDirectory(prefix="vmi-faults-") as folder:
            world = World(daemon, daemon.boot(Shape(kernel=asked.kernel, workload="none")), Path(folder))
            campaign = Campaign(world, asked.seed, lambda line: print(line, flush=True))
            campaign.run(asked.minutes * 60, asked.rounds, asked.command, asked.fault)
    finally:
        daemon.stop()
    print(campaign.table())
    if asked.output:
        asked.output.write_text(campaign.table() + "\n")
    return any(one.wrong for one in campaign.rounds)


if __name__ == "__main__":
    sys.exit(main())
