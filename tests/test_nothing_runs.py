"""Nothing runs because guest memory said so: where the package could run programs or code, and nowhere else."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "vmi_inside"

#: Files that start a process, and what: fixed words of our own, or what the user asked for.
PROGRAMS = {
    "guest.py": "our own rescue process",
    "control/pausing.py": "types only: the rescue process is handed in",
    "control/controls.py": "types only",
    "cli/gdb.py": "gdb, at the user's word",
    "drivers/libvmi.py": "a look whether LibVMI's package loads",
}
#: Modules that are imported by a name that is not written at the import: all from tables of ours.
IMPORTS = {
    "__init__.py", "tables.py", "available.py", "cli/app.py", "cli/complete.py", "profile/image.py", "drivers/kdump.py",
    "drivers/libvmi.py", "bridges/foreign.py", "bridges/volatility3.py", "bridges/drgn.py",
}  # fmt: skip
#: What makes code or objects of bytes.
CODE = {"eval", "exec", "compile", "__import__"}
#: drgn's command runs a script that its user names.
SCRIPTS = {"bridges/drgn.py"}
UNPICKLERS = {"pickle", "marshal", "shelve", "dill", "yaml", "code", "runpy"}


def calls(tree: ast.AST) -> set[str]:
    """Names that are called without a module in front."""
    return {each.func.id for each in ast.walk(tree) if isinstance(each, ast.Call) and isinstance(each.func, ast.Name)}


def modules(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for each in ast.walk(tree):
        if isinstance(each, ast.Import):
            found |= {name.name.partition(".")[0] for name in each.names}
        elif isinstance(each, ast.ImportFrom) and each.module:
            found.add(each.module.partition(".")[0])
    return found


def attributes(tree: ast.AST) -> set[str]:
    return {
        f"{each.value.id}.{each.attr}"
        for each in ast.walk(tree)
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name)
    }


def sources() -> list[tuple[str, ast.AST]]:
    return [(str(path.relative_to(ROOT)), ast.parse(path.read_text())) for path in sorted(ROOT.rglob("*.py"))]


def test_programs_are_started_in_known_places_only() -> None:
    starting = {name for name, tree in sources() if "subprocess" in modules(tree)}
    assert starting == set(PROGRAMS)
    for name, tree in sources():
        used = attributes(tree)
        assert not used & {"os.system", "os.popen", "os.posix_spawn", "os.fork", "asyncio.create_subprocess_exec"}, name
        assert not {one for one in used if one.startswith(("os.exec", "os.spawn"))}, name


def test_no_code_is_made_of_bytes() -> None:
    for name, tree in sources():
        if name in SCRIPTS:
            continue
        assert not calls(tree) & CODE, name
        assert not modules(tree) & UNPICKLERS, name


def test_modules_are_imported_by_names_of_ours() -> None:
    importing = {
        name
        for name, tree in sources()
        if "import_module" in calls(tree) or {"importlib.import_module", "importlib.util"} & attributes(tree)
    }
    assert importing <= IMPORTS
