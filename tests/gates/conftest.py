"""Guests for tests of gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.gates.arena import SHAPES, Arena, arena
from tests.gates.gated import GatedGuest, guest_idle
from tests.lab.guest import LabGuest


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journals' folder, for this test alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture
def arenas(lab_boot: Callable[..., LabGuest]) -> Iterator[Callable[[str], Arena]]:
    """Gives the arena on one kernel."""
    with ExitStack() as exits:
        yield lambda kernel: exits.enter_context(arena(lab_boot(**SHAPES[kernel])))


@pytest.fixture(params=["6.1", "6.12"])
def here(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> Iterator[Arena]:
    with arena(lab_boot(**SHAPES[request.param])) as made:
        yield made


@pytest.fixture
def one_kernel(lab_boot: Callable[..., LabGuest]) -> Iterator[Arena]:
    with arena(lab_boot(**SHAPES["6.1"])) as made:
        yield made


@pytest.fixture
def one_vcpu(lab_boot: Callable[..., LabGuest]) -> Iterator[Arena]:
    with arena(lab_boot(**SHAPES["6.12"])) as made:
        yield made


@pytest.fixture(params=list(SHAPES))
def everywhere(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> Iterator[Arena]:
    with arena(lab_boot(**SHAPES[request.param])) as made:
        yield made


@pytest.fixture
def guest() -> GatedGuest:
    """A made-up one, with a process that is to be gated."""
    made = GatedGuest()
    init = made.task(1, "init", start_boottime=10)
    made.task(4242, "curl", start_boottime=777, parent=1)
    made.run(guest_idle(made), init.task)
    made.finish()
    return made
