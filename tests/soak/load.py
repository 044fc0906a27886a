"""Load in a guest that counts what it gets done: a loop of computing, and one that does a little of everything.

Knows shell and `workload exercise`; see tests/lab/workload/exercise.c.
"""

from __future__ import annotations

import time
from typing import Final

from tests.lab.guest import LabGuest

#: What `exercise` counts that goes through the network.
NETWORK: Final = ("tcp4", "tcp6", "udp4", "udp6")
_SPIN: Final = (
    "(exec sh -c 'i=0; while :; do i=$((i+1)); case $i in *000) echo $i >/run/spun; esac; done') "
    ">/dev/null 2>&1 </dev/null & echo $! >/run/spinner"
)


class Load:
    """Started with the object, ended by `stop`."""

    def __init__(self, lab: LabGuest) -> None:
        self._lab = lab
        lab.ask("pidof -s echo >/dev/null || (workload echo 7100 >/dev/null 2>&1 </dev/null &); sleep 0.3", check=False)
        lab.ask("(workload exercise busy 127.0.0.1 7100 0 >/dev/null 2>&1 </dev/null &)")
        lab.ask(_SPIN)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not all(self.done()):
            time.sleep(0.2)

    def done(self) -> tuple[float, float]:
        """Turns of the computing loop, and network exchanges, by now."""
        for _ in range(20):  # a file is empty for a moment whenever it is written
            told = self._lab.ask("cat /run/spun /run/exercise/busy 2>/dev/null", check=False).splitlines()
            if len(told) > len(NETWORK) and told[0].isdigit():
                break
        spun = int(told[0]) if told and told[0].isdigit() else 0
        counts = {line.split()[0]: int(line.split()[1]) for line in told[1:] if len(line.split()) > 1}
        return float(spun), float(sum(counts.get(name, 0) for name in NETWORK))

    def stop(self) -> None:
        """End it."""
        self._lab.ask("kill $(cat /run/spinner); killall busy; rm -rf /run/exercise /run/spun", check=False)
