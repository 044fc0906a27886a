"""The same questions asked of volatility3 and of vmi-inside, side by side on one memory dump of one guest.

    python -m benchmarks.peers [--rounds N] [--kernel NAME] [--markdown FILE]

Whole commands, from start to exit, in turn. Volatility3 is given a symbol table that `vmi-inside profile export` made
and that it has indexed before, which is the quickest that it can be; making one from a debug package is not counted.
The guest has four-level paging, since with five volatility3 lists nothing. A peer that fails is said to have failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.lab.guest import Shape
from tests.lab.libvirt import Daemon

#: What is asked, volatility3's plugin, our command.
QUESTIONS: Final = (
    ("processes", "linux.pslist", ("ps",)),
    ("threads", "linux.pslist --threads", ("ps", "--threads")),
    ("sockets", "linux.sockstat", ("ss",)),
    ("open files", "linux.lsof", ("lsof",)),
    ("memory maps", "linux.proc.Maps", ("maps",)),
    ("modules", "linux.lsmod", ("lsmod",)),
    ("mounts", "linux.mountinfo", ("mounts",)),
    ("environment", "linux.envars", ("envs",)),
    ("kernel log", "linux.kmsg", ("dmesg",)),
    ("system calls", "linux.check_syscall", ("check", "--only", "syscalls")),
)


def run(command: list[str]) -> tuple[float, int, int, str]:
    """Seconds, exit code, lines on stdout, and the last line on stderr."""
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    took = time.perf_counter() - begin
    said = done.stderr.strip().splitlines()
    return took, done.returncode, len(done.stdout.strip().splitlines()) - 1, said[-1] if said else ""


def main() -> None:
    """Boot, dump, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kernel", default="6.1-cloud")
    parser.add_argument("--workload", default="full")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    programs = Path(sys.executable).parent
    if not (programs / "vol").exists():
        sys.exit("volatility3 is not installed here: pip install volatility3")
    daemon = Daemon.start()
    folder = Path(tempfile.mkdtemp(prefix="vmi-peers-"))
    try:
        guest = daemon.boot(Shape(kernel=options.kernel, cpu="la57-off", workload=options.workload))
        dump = folder / "guest.core"
        guest.domain.coreDumpWithFormat(str(dump), 0, 16)  # VIR_DUMP_MEMORY_ONLY
        guest.destroy()
        (folder / "symbols" / "linux").mkdir(parents=True)
        (folder / "cache").mkdir()
        os.environ["VMI_INSIDE_CACHE"] = str(folder / "profiles")
        ours = [sys.executable, "-m", "vmi_inside.cli"]
        table = folder / "symbols" / "linux" / "guest.json.xz"
        made, code, _, said = run([*ours, "profile", "export", f"file:{dump}", "-o", str(table)])
        if code:
            sys.exit(said)
        theirs = [str(programs / "vol"), "-q", "--offline", "-s", str(folder / "symbols"),
                  "--cache-path", str(folder / "cache"), "-f", str(dump)]  # fmt: skip
        run([*theirs, "linux.pslist"])  # indexes the symbol table
        lines = [
            f"The symbol table was made from the dump in {made:.1f} s.", "",
            "| | volatility3 (s) | rows | vmi-inside (s) | rows | ratio |", "|---|---|---|---|---|---|",
        ]  # fmt: skip
        for what, plugin, command in QUESTIONS:
            timed: dict[str, list[float]] = {"theirs": [], "ours": []}
            rows = {}
            failed = {}
            for _ in range(options.rounds):
                for who, line in (
                    ("theirs", [*theirs, *plugin.split()]),
                    ("ours", [*ours, command[0], f"file:{dump}", *command[1:]]),
                ):
                    took, code, rows[who], said = run(line)
                    timed[who].append(took)
                    if code not in (0, 11):
                        failed[who] = said[:60]
            a, b = statistics.median(timed["theirs"]), statistics.median(timed["ours"])
            shown = {who: f"failed: {failed[who]}" if who in failed else str(rows[who]) for who in rows}
            lines.append(f"| {what} | {a:.2f} | {shown['theirs']} | {b:.2f} | {shown['ours']} | {a / b:.0f} |")
            print(lines[-1], flush=True)
        report = "\n".join(lines)
        print(report)
        if options.markdown:
            options.markdown.write_text(report + "\n")
    finally:
        daemon.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
