"""`python -m tests.fuzz`: a campaign of so many seconds, its findings, and what it did.

    python -m tests.fuzz --seconds 600                        everything; real guests where there are images
    python -m tests.fuzz --make-images                        boot the lab's guests and dump them, for the above
    python -m tests.fuzz --target btf --seed 7 --case 1234    one case again, its error with a traceback

Each target gets the same processor time. Ends with 1 when anything was found.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Protocol

from tests.fuzz import commands, contained, guests, hypervisors, lies, parsers
from tests.fuzz.image import Image
from tests.fuzz.watch import Finding, bounded, judge, limit_address_space
from vmi_inside.errors import VmiError

IMAGES: Final = Path(__file__).resolve().parents[2] / ".cache" / "fuzz"
_TURN: Final = 0.5  # seconds of processor time that a target has before the next


class Target(Protocol):
    """Cases by number."""

    @property
    def name(self) -> str: ...

    def case(self, number: int) -> None: ...


def main() -> int:
    """Run a campaign; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Hostile bytes for all that reads them.")
    parser.add_argument("--seconds", type=float, default=60, help="how long; default %(default)s")
    parser.add_argument(
        "--target", action="append", default=[], metavar="GLOB", help="only these, as --list names them"
    )
    parser.add_argument("--seed", type=int, help="of all cases; another one each time unless given")
    parser.add_argument("--case", type=int, help="this case alone, as a finding names it")
    parser.add_argument("--image", action="append", type=Path, default=[], help=f"an ELF core; else {IMAGES}/*.core")
    parser.add_argument("--list", action="store_true", help="the targets that there are")
    parser.add_argument("--make-images", action="store_true", help="boot guests of the lab, and dump them")
    arguments = parser.parse_args()
    if arguments.make_images:
        return make_images()
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    limit_address_space()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        found = chosen(arguments.target, seed, arguments.image or sorted(IMAGES.glob("*.core")), Path(folder))
        if arguments.list:
            print("\n".join(one.name for one in found))
            return 0
        if arguments.case is not None:
            return again(found, arguments.case)
        print(f"seed {seed}, {len(found)} targets", flush=True)
        findings = campaign(found, arguments.seconds)
    return 1 if findings else 0


def again(targets: list[Target], number: int) -> int:
    """One case of each once more: its error comes with a traceback, also where it is one that a case may end in."""
    with bounded():
        for one in targets:
            try:
                one.case(number)
            except VmiError as error:
                traceback.print_exc()
                print(f"{one.name}: no finding: a case may end in a {type(error).__name__}", flush=True)
            else:
                print(f"{one.name}: no finding", flush=True)
    return 0


def chosen(wanted: list[str], seed: int, images: Iterable[Path], folder: Path) -> list[Target]:
    """The targets like `wanted`, or all."""

    def fits(name: str) -> bool:
        return not wanted or any(fnmatchcase(name, each) for each in wanted)

    of_bytes = [*parsers.targets(folder, seed), *hypervisors.targets(folder, seed)]
    found: list[Target] = [one for one in of_bytes if fits(one.name)]
    if not wanted or any(each.startswith(("made-up", "*")) for each in wanted):
        found += [one for one in lies.targets(seed) if fits(one.name)]
    for path in images:
        if wanted and not any(each.startswith((path.name.removesuffix(".core"), "*")) for each in wanted):
            continue
        image = Image(path)
        whole = {one.name.partition(":")[2]: one for one in guests.targets(image, seed)}
        found += [one for one in whole.values() if fits(one.name)]
        found += [one for one in (contained.Contained(image, seed),) if fits(one.name)]
        found += [one for one in commands.targets(image, seed, whole) if fits(one.name)]
    return found


def campaign(targets: list[Target], seconds: float, start: int = 0) -> list[Finding]:
    """Run all targets in turn for so long; tells what it finds, each cause once."""
    end = time.monotonic() + seconds
    next_case = dict.fromkeys((one.name for one in targets), start)
    findings: dict[str, Finding] = {}
    causes: Counter[str] = Counter()
    while time.monotonic() < end:
        for one in targets:
            began = time.process_time()
            while time.process_time() - began < _TURN and time.monotonic() < end:
                finding = judge(one.name, next_case[one.name], one.case)
                next_case[one.name] += 1
                if finding is None:
                    continue
                causes[finding.where] += 1
                if findings.setdefault(finding.where, finding) is finding:
                    print(
                        f"--- {finding.target} --case {finding.number}: {finding.what[:200]}\n{finding.trace}",
                        flush=True,
                    )
    report(targets, next_case, causes)
    return list(findings.values())


def report(targets: list[Target], cases: dict[str, int], causes: Counter[str]) -> None:
    """What was done: cases, errors by type, rows lost without a word, rounds and bytes at the most."""
    for one in targets:
        words = f"{one.name}: {cases[one.name]} cases"
        if isinstance(one, guests.DamagedGuest):
            errors = ", ".join(f"{len(numbers)} {name}" for name, numbers in sorted(one.errors.items()))
            words += f"; {errors or 'no errors'}; {len(one.lost)} lost rows unsaid {one.lost[:5]}"
            words += f"; {one.rounds} rounds whole, at most {one.most_rounds}; {one.most_moved >> 20} MiB at most"
        print(words)
    print(f"{sum(cases.values())} cases, {len(causes)} causes")
    for where, count in causes.most_common():
        print(f"{count:6} {where}")


def make_images() -> int:
    """Dump a guest of an old kernel and one of the newest."""
    from tests.lab.__main__ import kept
    from tests.lab.guest import Shape

    IMAGES.mkdir(parents=True, exist_ok=True)
    for kernel in ("6.1-cloud", "new-cloud"):
        with kept(Shape(kernel=kernel)).attach() as guest:
            made = guest.dump(IMAGES / f"{kernel}.core", force=True)
        print(f"{made.path}: {made.size >> 20} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
