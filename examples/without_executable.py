"""Processes whose executable was deleted or never was a file: often an update, sometimes an intruder.

Prints JSON; the exit code is 1 when there are any.

    python examples/without_executable.py web01
"""

import json
import sys

import vmi_inside

with vmi_inside.attach(sys.argv[1]) as guest:
    processes = guest.processes(columns=("pid", "parent", "name", "path", "cmdline", "uid", "start_time", "fault"))
    suspicious = [row for row in processes.to_dicts() if row["path"].endswith(" (deleted)")]
    json.dump(suspicious, sys.stdout, indent=2)
    print()
sys.exit(1 if suspicious else 0)
