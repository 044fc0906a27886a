"""When open connections are looked at again before they are taken to be ended, or left to somebody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vmi_inside.control.gates import aborting
from vmi_inside.control.gates.aborting import Aborted, Aborting, Connections

_REFUSED = 0xFFFF_FFA1  # -EOPNOTSUPP


class Told(Aborting):
    """Sees the connections that it is told, one look after the other, the last one for good; each as (own, shared)."""

    def __init__(self, looks: list[tuple[int, int]], answer: int) -> None:
        self.looks = looks
        self.answer = answer
        self.runs = 0
        self._deferring: Any = self

    def find(self, rule: Any, mark: int) -> Connections:
        own, shared = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        none = np.zeros(own, dtype=np.uint64)
        return Connections(none, none, none, none, none, shared)

    def _calls(self, found: Connections) -> Any:
        return found.sock

    def run(self, find: Callable[[], Any], *_: object) -> list[int]:
        self.runs += 1
        return [self.answer] * len(find())


@pytest.mark.parametrize(
    ("looks", "answer", "runs", "outcome"),
    [
        ([(3, 0), (0, 0)], 0, 1, Aborted(3, 0, 0)),
        ([(0, 2), (0, 2), (2, 0), (2, 0), (0, 0)], 0, 2, Aborted(2, 0, 0)),  # a child begins a program of its own
        ([(1, 1), (0, 1), (0, 1), (1, 0), (1, 0), (0, 0)], 0, 2, Aborted(2, 0, 0)),
        ([(1, 1), (0, 1)], 0, 1, Aborted(1, 0, 1)),  # somebody else holds it for good
        ([(5, 0), (5, 1)], _REFUSED, 1, Aborted(0, 5, 1)),  # nothing would change by asking again
        ([(1, 0)], 0, 16, Aborted(16, 0, 0)),  # new ones without end
    ],
)
def test_what_is_shared_for_a_moment_is_ended_too(
    monkeypatch: pytest.MonkeyPatch, looks: list[tuple[int, int]], answer: int, runs: int, outcome: Aborted
) -> None:
    monkeypatch.setattr(aborting, "_BREATH", 0)
    told = Told(looks, answer)
    assert told.abort(None, 0, "a test") == outcome  # type: ignore[arg-type]
    assert told.runs == runs
