"""`python -m tests.soak --minutes 60`: the soak; writes `soak.json` and `soak.md`."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path

from tests.lab.guest import Shape
from tests.lab.libvirt import Daemon
from tests.soak.load import Load
from tests.soak.soak import soak


def main() -> int:
    """Run it, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--kernel", default="6.1-cloud")
    parser.add_argument("--pace", type=float, default=0.0, help="seconds between rounds")
    parser.add_argument("--output", type=Path, default=Path("soak"))
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    daemon = Daemon.start()
    try:
        with tempfile.TemporaryDirectory(prefix="vmi-soak-") as folder:
            os.environ["XDG_STATE_HOME"] = folder
            lab = daemon.boot(Shape(kernel=asked.kernel))
            load = Load(lab)
            with lab.attach(writable=True) as guest:
                made = soak(guest, load, asked.minutes * 60, pace=asked.pace)
            load.stop()
            complaints = re.findall(r".*(?:WARNING|BUG:|Oops|Call Trace|rcu.*stall).*", lab.ask("dmesg"))
    finally:
        daemon.stop()
    made.save(asked.output)
    print(made.markdown())
    print("\nThe guest's log:", "\n".join(complaints) or "nothing")
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main())
