"""The wheel, built from the sdist, where nothing else is: no libvirt, no QEMU, no extras. Dumps work there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.guest import LabGuest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, code: int = 0) -> str:
    """What a command says, run from a folder where no checkout is in the way, with a PATH that has no QEMU."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VMI_"))}
    done = subprocess.run(
        command, cwd="/", env={**environment, "PATH": "/nowhere"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that has the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "-q")
    # As the sdist does: only what is packed can be installed.
    build = "import setuptools.build_meta as backend, sys; print(backend.build_sdist(sys.argv[1]))"
    run(*pip, "install", "setuptools>=77")
    subprocess.run([python, "-c", build, folder], cwd=ROOT, check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    run(*pip, "wheel", "--no-deps", "-w", folder, sdist)
    run(*pip, "uninstall", "-y", "setuptools")
    (wheel,) = folder.glob("*.whl")
    run(*pip, "install", wheel)
    return python.parent


def test_dumps_are_read_where_nothing_else_is_installed(installed: Path, lab_guest: LabGuest, tmp_path: Path) -> None:
    dump = tmp_path / "guest.core"
    with lab_guest.attach() as guest:
        before = set(guest.processes(columns=("pid",)).pid.tolist())
        guest.dump(dump)
        after = set(guest.processes(columns=("pid",)).pid.tolist())
    listed = json.loads(run(installed / "vmi-inside", "ps", f"file:{dump}", "--format", "json", "-q"))
    assert before & after <= {row["pid"] for row in listed}
    assert json.loads(run(installed / "vmi-inside", "ss", f"file:{dump}", "--format", "json", "-q"))
    run(installed / "vmi-inside", "check", f"file:{dump}")


def test_what_is_not_installed_is_named(installed: Path) -> None:
    assert "pip install 'vmi-inside[libvirt]'" in run(installed / "vmi-inside", "ps", "web01", code=9)
