"""The rooms of the house: which module may know which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vmi_inside

ROOT = Path(vmi_inside.__file__).parent
#: Floors from the ground up; rooms of one floor do not know each other, but for what `BESIDE` says.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "types", "elf", "newfile"),
    ("memory", "arch", "scan", "sink"),
    ("drivers", "space"),
    ("profile",),
    ("structs", "ragged", "walk", "maple", "rbtree", "xarray", "table", "kernel"),
    ("linux", "windows"),
    ("control", "corefile"),
    ("tables",),
    ("domains", "snapshot", "dumping", "debugging"),
    ("guest", "saved", "diff", "available", "profiles"),
    ("sql", "rescue"),
    ("bridges",),
    ("cli",),
)
#: The third floor is one room: kernel uses structs, and walk uses ragged.
BESIDE = {"structs", "ragged", "walk", "kernel"}
#: What a room may not know although it lies below.
BLIND = {
    "linux": {"drivers"}, "windows": {"drivers"}, "control": {"drivers"},
    "profile": {"drivers"}, "drivers": {"arch"},
    "domains": {"linux", "windows", "control", "kernel", "profile", "space", "structs", "walk", "ragged",
                "arch", "table", "tables"},
}  # fmt: skip
#: Each of these has one home.
HOMES = {
    "libvirt": "domains", "libvirt_qemu": "domains", "duckdb": "sql", "click": "cli", "rich": "cli", "pyarrow": "table",
    "polars": "table", "volatility3": "bridges", "drgn": "bridges", "yara_x": "scan",
    "_libvmi": "drivers", "libvmi": "drivers",
}  # fmt: skip
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
#: The folders of `linux`, from the ground up as well. What they import of `linux` itself imports no folder.
LINUX: tuple[tuple[str, ...], ...] = (
    ("symbols",),
    ("files",),
    ("memory",),
    ("processes",),
    ("contents", "tracing", "sockets", "network"),
    ("integrity",),
)
LEVEL = {folder: level for level, folders in enumerate(LINUX) for folder in folders}
#: Sockets have addresses, and devices are found in sockets' namespaces.
LINUX_BESIDE = {"sockets", "network"}


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere, in functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
            found.update(arg.value for arg in node.args if isinstance(arg, ast.Constant))
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_knows_only_what_lies_below(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR, f"{room} has no floor"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] in HOMES:
            assert room == HOMES[parts[0]], f"{room} imports {parts[0]}, whose home is {HOMES[parts[0]]}"
        if parts[0] != "vmi_inside" or parts[1] == room or parts[1].startswith("__"):
            continue
        other = parts[1]
        if other not in FLOOR:
            assert room in ("cli", "guest"), f"{room} imports {name} from the whole"
            continue
        assert other not in BLIND.get(room, set()), f"{room} must not know {other}"
        assert FLOOR[other] < FLOOR[room] or {room, other} <= BESIDE, f"{room} imports {other} from above or beside"


def of_linux(path: Path) -> set[str]:
    """What a file imports of `linux`: folders, and files that lie in none."""
    return {name.split(".")[2] for name in imported(path) if name.startswith("vmi_inside.linux.")}


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in ROOT.glob("linux/*/__init__.py")))
def test_folders_of_linux_import_one_way(folder: str) -> None:
    assert folder in LEVEL, f"linux/{folder} has no level"
    for path in sorted((ROOT / "linux" / folder).glob("*.py")):
        for other in of_linux(path) - {folder}:
            if other in LEVEL:
                known = LEVEL[other] < LEVEL[folder] or {other, folder} <= LINUX_BESIDE
                assert known, f"{folder}/{path.name} imports {other} from above or beside"
            else:
                above = of_linux(ROOT / "linux" / f"{other}.py") & LEVEL.keys()
                assert not above, f"{folder}/{path.name} imports {other}, which imports {above}"


def test_there_are_rooms() -> None:
    assert {"errors", "space", "linux", "drivers", "profile"} <= {room_of(path) for path in modules()}


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(' '.join(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    return set(result.stdout.split())


def test_importing_the_package_costs_nothing() -> None:
    heavy = {"numpy", "duckdb", "libvirt", "click", "rich", "pyarrow", "polars", "platformdirs"}
    assert not heavy & loaded_by("import vmi_inside")


def test_attach_needs_numpy_alone() -> None:
    loaded = loaded_by("from vmi_inside import attach")
    assert "numpy" in loaded
    assert not {"libvirt", "click", "rich", "pyarrow", "polars"} & loaded
