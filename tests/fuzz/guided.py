"""`python -m tests.fuzz.guided TARGET --seconds 600`: one of the byte targets, led by what of our code its bytes reach.

Needs atheris (extra `fuzz`). What is found is written to a file beside, whose bytes show it again:
`python -m tests.fuzz.guided TARGET --again FILE`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["vmi_inside"]):
    from tests.fuzz import hypervisors, parsers
    from tests.fuzz.watch import MEMORY_LIMIT
    from vmi_inside.errors import VmiError


def main() -> None:
    """Fuzz until the time is over; ends the process."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided")
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--again", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    targets = [*parsers.targets(folder, arguments.seed), *hypervisors.targets(folder, arguments.seed)]
    target = next((one for one in targets if one.name == arguments.target), None)
    if target is None:
        parser.error(f"no target {arguments.target!r}: python -m tests.fuzz --list")

    def one(raw: bytes) -> None:
        with suppress(VmiError):
            target.run(raw, Random(len(raw)))

    if arguments.again is not None:
        one(arguments.again.read_bytes())
        return
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, example in enumerate(target.examples):
        (corpus / str(number)).write_bytes(example)
    words = [sys.argv[0], f"-max_total_time={arguments.seconds}", f"-seed={arguments.seed}", "-max_len=65536",
             f"-rss_limit_mb={(MEMORY_LIMIT >> 20) + 1024}", "-timeout=60", str(corpus)]  # fmt: skip
    atheris.Setup(words, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
