"""vmi-inside and its peers, side by side on live guests: `benchmarks/run`.

Boots guests of several sizes, one after the other. On each, every contestant is asked the same questions, in turn, in
several rounds: in a process of its own (figures after attaching), and as a whole command. An answer that is wrong, held
against the guest's own word, has no time. Writes FOLDER/benchmark.md, benchmark.json and benchmark.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.contestants import COMMANDS, CONTESTANTS
from benchmarks.judge import wrong
from benchmarks.report import markdown
from benchmarks.scene import KIB, SHAPES, Scene, clean, prepare, truth
from tests.lab.debuginfo import debug_vmlinux
from tests.lab.guest import LabGuest
from tests.lab.libvirt import Daemon

_SLOW = 30.0  # seconds: a whole command that takes longer is run once


def run(command: list[str], environment: dict[str, str]) -> tuple[float, int, int]:
    """Wall seconds, exit code, and the most memory that the process held, in KiB."""
    with tempfile.TemporaryFile() as out:  # as into a pipe: nobody waits for a terminal
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        return took, process.returncode, usage.ru_maxrss


def measure(
    label: str, guest: LabGuest, rounds: int, folder: Path, vmlinux: Path | None, names: list[str]
) -> dict[str, Any]:
    """All figures of one guest."""
    scene, preparing = prepare(label, guest, folder, vmlinux)
    # The machine may forbid Python to keep what it compiles: then a checkout would be compiled for every command.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["VMI_INSIDE_CACHE"] = str(folder / "profiles")
    figures: dict[str, dict[str, Any]] = {name: {} for name in names}
    before = truth(guest)
    answers: dict[str, list[Any]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            if name == "vmi-inside":  # every round once with nothing prepared
                clean(folder / "profiles")
                cold = worker(name, scene, environment, 1)
                figures[name].setdefault("attach, nothing prepared", []).append(cold["attach"])
            slow = any(
                sum(answer.get("seconds", ())) > _SLOW
                for row in answers[name]
                for answer in row.get("answers", {}).values()
            )
            if not slow:
                answers[name].append(worker(name, scene, environment))
            for question in COMMANDS:
                whole(name, question, scene, environment, figures[name])
        print(f"{label}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    after = truth(guest)
    for name, rows in answers.items():
        gather(figures[name], rows, before, after, guest, scene)
    dumps(guest, scene, environment, rounds, figures)
    return {"guest": label, "kernel": guest.shape.kernel, "prepared": preparing, "figures": figures,
            "processes": len(before["processes"])}  # fmt: skip


def worker(name: str, scene: Scene, environment: dict[str, str], rounds: int = 7) -> dict[str, Any]:
    """What a contestant says in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.worker", name, str(Path(scene.folder) / "scene.json")]
    told = Path(scene.folder) / "told.json"
    told.unlink(missing_ok=True)
    _, code, _ = run([*command, "--rounds", str(rounds), "--to", str(told)], environment)
    return json.loads(told.read_text()) if told.exists() else {"failed": f"ended with exit code {code}"}


def whole(name: str, question: str, scene: Scene, environment: dict[str, str], figures: dict[str, Any]) -> None:
    """Time a whole command, of a contestant that answers the question at all."""
    if any(isinstance(one, float) and one > _SLOW for one in figures.get(f"whole command, {question}", ())):
        return
    kind = import_module(CONTESTANTS[name]).Contestant
    try:
        kind(scene)
    except Exception:
        return
    command = kind.command(scene, question)
    if command is None:
        if not hasattr(kind, {"open files": "files"}.get(question, question)):
            return
        scene_file = str(Path(scene.folder) / "scene.json")
        command = [sys.executable, "-m", "benchmarks.worker", name, scene_file, "--question", question]
    took, code, most = run(command, environment)
    figures.setdefault(f"whole command, {question}", []).append(took if code == 0 else f"failed: exit code {code}")
    figures.setdefault(f"whole command, {question}, MiB", []).append(most / 1024)


def gather(figures: dict[str, Any], rows: list[Any], before: Any, after: Any, guest: LabGuest, scene: Scene) -> None:
    """Put what one contestant said in all rounds together, and judge it."""
    for row in rows:
        if "answers" not in row:
            figures["said"] = row.get("failed") or row.get("absent")
            continue
        figures.setdefault("attach", []).append(row["attach"])
        figures.setdefault("process, MiB", []).append(row["peak"] / 1024)
        for question, answer in row["answers"].items():
            if "seconds" not in answer:
                figures[question] = [f"failed: {answer['failed']}" if "failed" in answer else "-"]
                continue

            def peek(size: int, turn: int = answer["turn"]) -> bytes:
                data: bytes = guest.domain.memoryPeek(scene.text + turn * 4 * KIB, size, 1)  # VIR_MEMORY_VIRTUAL
                return data

            fault = wrong(question, answer["found"], before, after, peek)
            if fault:
                figures[question] = [f"wrong: {fault}"]
            elif not isinstance(figures.get(question, [0.0])[0], str):
                figures.setdefault(question, []).extend(answer["seconds"])


def dumps(
    guest: LabGuest, scene: Scene, environment: dict[str, str], rounds: int, figures: dict[str, dict[str, Any]]
) -> None:
    """A dump of the running guest: ours, and libvirt's own for comparison."""
    file = Path(scene.folder) / "guest.core"
    ours = [sys.executable, "-m", "vmi_inside.cli", "dump", scene.domain, str(file), "--connect", scene.uri, "-q"]
    mine, theirs = figures["vmi-inside"], figures.setdefault("libvirt", {})
    for _ in range(rounds):
        for row, more in (("dump, SHA-256", ()), ("dump", ("--checksum", "none"))):
            took, code, most = run([*ours, *more], environment)
            mine.setdefault(row, []).append(took if code == 0 else f"failed: exit code {code}")
            mine.setdefault("dump, MiB", []).append(most / 1024)
            file.unlink(missing_ok=True)
        begin = time.perf_counter()
        guest.domain.coreDumpWithFormat(str(file), 0, 2 | 16)  # VIR_DUMP_LIVE, VIR_DUMP_MEMORY_ONLY
        theirs.setdefault("dump", []).append(time.perf_counter() - begin)
        file.unlink(missing_ok=True)


def main() -> None:
    """Boot, measure, write."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="part of a guest's label: " + "; ".join(SHAPES))
    parser.add_argument("--output", type=Path, default=Path("build/benchmark"), metavar="FOLDER")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS), help="some of %(default)s; vmi-inside always")
    parser.add_argument("--no-debug-package", action="store_true", help="without drgn: 280 MB less to fetch")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="vmi-benchmark-"))
    results = []
    daemon = Daemon.start()
    try:
        for number, (label, shape) in enumerate(SHAPES.items()):
            if options.only not in label:
                continue
            vmlinux = None if options.no_debug_package else debug_vmlinux(shape.kernel)
            guest = daemon.boot(shape)
            try:
                names = [name for name in CONTESTANTS if name in ("vmi-inside", *options.contestants.split(","))]
                results.append(measure(label, guest, options.rounds, scratch / str(number), vmlinux, names))
            finally:
                guest.destroy()
            (options.output / "benchmark.json").write_text(json.dumps(results, indent=1))
            (options.output / "benchmark.md").write_text(markdown(results))
    finally:
        daemon.stop()
        clean(scratch)
    print(markdown(results))
    from benchmarks.picture import draw

    draw(results, options.output / "benchmark.svg")


if __name__ == "__main__":
    main()
