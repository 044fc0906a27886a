"""A short run of the campaign of `tests/fuzz`: the same cases each time. The long ones are `python -m tests.fuzz`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.conftest import Boot
from tests.fuzz import commands, contained, guests, hypervisors, lies, parsers
from tests.fuzz.image import Image
from tests.fuzz.watch import Endless, Violation, judge
from vmi_inside.drivers.qemu_layout import LayoutUnknown

SEED = 6


def findings(targets: list[Any], cases: int) -> list[str]:
    found = (judge(one.name, number, one.case) for one in targets for number in range(cases))
    return [f"{each.target} case {each.number}: {each.trace}" for each in found if each]


#: Their examples are answers, each to one question, given over a socket.
ANSWERS = ("gdb-stub", "qmp")


def of_bytes(folder: Path) -> list[parsers.Bytes]:
    return [*parsers.targets(folder, SEED), *hypervisors.targets(folder, SEED)]


def test_parsers(tmp_path: Path) -> None:
    targets = of_bytes(tmp_path)
    assert findings([one for one in targets if one.name not in ANSWERS], 100) == []
    assert findings([one for one in targets if one.name in ANSWERS], 20) == []


def test_good_examples_are_read(tmp_path: Path) -> None:
    """Mutations of what is refused whole would test nothing."""
    for target in of_bytes(tmp_path):
        for example in () if target.name in ANSWERS else target.examples:
            if target.name == "domain-xml" and (b"ENTITY" in example or b"maxMemory" in example):
                with pytest.raises(LayoutUnknown):
                    target.run(example, Random(2))
            else:
                target.run(example, Random(2))


def test_made_up_guests() -> None:
    assert findings(lies.targets(SEED), 12) == []


@pytest.fixture(scope="module")
def image(lab_boot: Boot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    path = tmp_path_factory.mktemp("image") / "6.1-cloud.core"
    with lab_boot().attach() as guest:
        guest.dump(path)
    yield Image(path)
    path.unlink()


@pytest.mark.lab
def test_damaged_guests(image: Image) -> None:
    targets = guests.targets(image, SEED)
    assert findings(targets, 3) == []
    assert findings([contained.Contained(image, SEED)], 12) == []
    whole = {one.name.partition(":")[2]: one for one in targets}
    assert findings(commands.targets(image, SEED, whole), 1) == []
    for one in targets[:10]:
        one.again()


@pytest.mark.parametrize("error", [ValueError("x"), Endless("x"), Violation("x"), RecursionError("x")])
def test_what_is_no_error_of_ours_is_a_finding(error: BaseException) -> None:
    def case(number: int) -> None:
        raise error

    found = judge("target", 3, case)
    assert found is not None
    assert (found.target, found.number) == ("target", 3)
