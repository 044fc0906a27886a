"""The command line, run on a lab guest as somebody would run it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.lab.guest import LabGuest

_ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]
"""`run` of one guest."""


def run(
    lab: LabGuest, name: str, *words: object, code: int | None = 0, target: str = ""
) -> subprocess.CompletedProcess[str]:
    """What `vmi-inside NAME TARGET WORDS...` said, the target being the guest. Its exit code must be `code`, if any."""
    done = subprocess.run(
        [sys.executable, "-m", "vmi_inside.cli", name, target or lab.name, "-c", lab.uri or "", *map(str, words)],
        cwd=_ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert code is None or done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done
