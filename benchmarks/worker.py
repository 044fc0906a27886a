"""One contestant in a process of its own: `python -m benchmarks.worker NAME SCENE.json [--question Q] [--rounds N]`.

With `--question` it answers once and prints the rows, which is what a script for that tool would do. Without, it
answers every question several times and prints JSON: seconds to attach, seconds of each answer, and what was found.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.contestants import CONTESTANTS, QUESTIONS, Absent
from benchmarks.scene import Scene

_LEAST, _MOST = 0.1, 200  # seconds for one question, and rounds
_ENOUGH = 3.0  # seconds that one question may take in one process


def peak() -> int:
    """KiB that this process held at the most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    return 0


def portable(found: Any) -> Any:
    """What JSON can carry; bytes as their SHA-256."""
    if isinstance(found, bytes):
        return hashlib.sha256(found).hexdigest()
    return sorted(found) if isinstance(found, set) else found


def ask(contestant: Any, question: str, rounds: int) -> dict[str, Any]:
    """Seconds of each round, and the last answer."""
    method = getattr(contestant, QUESTIONS[question], None)
    if method is None:
        return {"absent": "its documentation has no way to ask"}
    seconds: list[float] = []
    try:
        begin = time.perf_counter()
        answer = method()  # the first one warms up, and counts only when it takes long
        if (first := time.perf_counter() - begin) > _ENOUGH:
            seconds.append(first)
        # What is quick is asked more often: the first rounds bring memory into the process, and into caches.
        while (len(seconds) < rounds or (sum(seconds) < _LEAST and len(seconds) < _MOST)) and (
            not seconds or sum(seconds) < _ENOUGH
        ):
            begin = time.perf_counter()
            answer = method()
            seconds.append(time.perf_counter() - begin)
        found = portable(contestant.plain(question, answer))
        return {"seconds": seconds, "found": found, "turn": contestant.scene.turn}
    except Exception as error:  # a peer may fail in any way, and is said to have failed
        return {"failed": f"{type(error).__name__}: {error}"[:200]}


def main() -> None:
    """Attach, ask, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--question", choices=QUESTIONS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--to", type=Path, default=Path("/dev/stdout"), help="where JSON goes: tools print, too")
    options = parser.parse_args()
    scene = Scene.load(options.scene)
    kind = import_module(CONTESTANTS[options.name]).Contestant
    try:
        contestant = kind(scene)
        begin = time.perf_counter()
        contestant.attach()
        attached = time.perf_counter() - begin
    except Absent as error:
        options.to.write_text(json.dumps({"absent": str(error)}))
        return
    except Exception as error:  # as above
        options.to.write_text(json.dumps({"failed": f"{type(error).__name__}: {error}"[:200]}))
        return
    if options.question:
        for row in getattr(contestant, QUESTIONS[options.question])():
            print(*row)
        return
    answers = {question: ask(contestant, question, options.rounds) for question in QUESTIONS}
    options.to.write_text(json.dumps({"attach": attached, "answers": answers, "peak": peak()}))


if __name__ == "__main__":
    main()
