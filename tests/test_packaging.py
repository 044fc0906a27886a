"""What goes into the wheel: all packages, and all that lies beside them and is read."""

from __future__ import annotations

import configparser
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def packages() -> set[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return set(setup["options"]["packages"].split())


def test_every_folder_with_code_is_packed() -> None:
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "vmi_inside").rglob("*.py")}
    data = {name for name in packages() if name.startswith("vmi_inside.profile_data")}
    assert {".".join(folder.parts) for folder in folders} == packages() - data


def test_profile_data_is_packed() -> None:
    folders = {path.parent.relative_to(ROOT / "profiles") for path in (ROOT / "profiles").rglob("*.json")}
    assert {".".join(("vmi_inside.profile_data", *folder.parts)) for folder in folders} <= packages()


def test_extras_are_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {name.partition(">")[0] for name in project["dependencies"]}
    assert needed == {"numpy", "click", "rich", "platformdirs"}
    every = project["optional-dependencies"]["all"][0]
    assert {"libvirt", "qmp", "kdump", "sql", "yara", "libvmi"} <= set(every.partition("[")[2].rstrip("]").split(","))
