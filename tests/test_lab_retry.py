"""A lab guest that does not come up is started anew, but not for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.guest import BootFailed, Shape
from tests.lab.libvirt import Daemon


@pytest.mark.parametrize(("failures", "comes_up"), [(0, True), (2, True), (3, False)])
def test_a_guest_that_does_not_come_up(monkeypatch: pytest.MonkeyPatch, failures: int, comes_up: bool) -> None:
    tries: list[Shape] = []

    def boot(self: Daemon, shape: Shape, name: str | None) -> str:
        tries.append(shape)
        if len(tries) <= failures:
            raise BootFailed("it faulted")
        return "guest"

    monkeypatch.setattr(Daemon, "_boot", boot)
    daemon = Daemon(Path("/nowhere"), 0)
    if comes_up:
        assert daemon.boot(Shape()) == "guest"
    else:
        with pytest.raises(BootFailed):
            daemon.boot(Shape())
    assert len(tries) == min(failures + 1, 3)
