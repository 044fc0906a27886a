"""A short soak: we do not grow, and the guest does not complain. `python -m tests.soak` is the long one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.guest import LabGuest
from tests.soak.load import Load
from tests.soak.soak import soak

#: Rounds grow a little at first, as allocators and caches fill.
_GROWTH = 24 << 20


def test_a_short_soak(lab_boot: Callable[..., LabGuest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    lab = lab_boot(workload="none")
    load = Load(lab)
    complaint = r".*(?:WARNING|BUG:|Oops|Call Trace|rcu.*stall).*"
    before = re.findall(complaint, lab.ask("dmesg"))
    try:
        with lab.attach(writable=True) as guest:
            made = soak(guest, load, seconds=8, turn=4)
    finally:
        load.stop()
    assert not made.errors
    assert len(made.samples) >= 2
    first, last = made.samples[0], made.samples[-1]
    assert last.descriptors <= first.descriptors
    assert last.resident - first.resident < _GROWTH
    assert all(spun > 0 and exchanged > 0 for spun, exchanged in made.read)
    assert re.findall(complaint, lab.ask("dmesg")) == before
    made.save(tmp_path / "report")
    assert "| our descriptors |" in (tmp_path / "report" / "soak.md").read_text()
