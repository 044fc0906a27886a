"""Guests that lie, as fixtures: a pytest plugin, which a test module names in `pytest_plugins`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

import vmi_inside
from tests.lab.guest import LabGuest
from tests.lies import SHAPE


@pytest.fixture(params=["6.1-cloud", "new-cloud"])
def liar(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> LabGuest:
    return lab_boot(kernel=request.param, **SHAPE)


@pytest.fixture
def seen(liar: LabGuest) -> Iterator[vmi_inside.Guest]:
    with liar.attach() as attached:
        assert attached.check().alarms.to_dicts() == []
        yield attached
        assert attached.check().alarms.to_dicts() == []


@pytest.fixture
def victim(liar: LabGuest) -> Iterator[int]:
    pid = int(liar.ask("sleep 100000 >/dev/null 2>&1 & echo $!").split()[-1])
    time.sleep(0.5)
    yield pid
    liar.ask(f"kill -9 {pid}")
