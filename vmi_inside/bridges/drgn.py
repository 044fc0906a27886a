"""A guest as a `drgn.Program`: memory, symbols and types are ours, no debug information is needed.

Knows how the parts are put together; they are in `drgn_parts` and `drgn_types`, and drgn is imported when it is asked
for.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vmi_inside.bridges.foreign import Foreign, require

if TYPE_CHECKING:
    from vmi_inside.guest import Guest

_NAME: Final = "vmi-inside"
_TOOL: Final = "drgn"


def program(guest: Guest, *, live: bool = True) -> Any:
    """The guest as a `drgn.Program`: `program(guest)["init_task"]`; drgn's helpers for Linux take it.

    Reads go to the guest each time; it stays valid as long as the guest is attached. `live` says that the guest runs.
    What has no type in the kernel's BTF, nor in our table of globals, is a symbol but no object. Raises `Unsupported`
    when drgn is not installed.
    """
    drgn = require(_TOOL)
    parts = import_module("vmi_inside.bridges.drgn_parts")
    types = import_module("vmi_inside.bridges.drgn_types")
    information = parts.vmcoreinfo(guest)
    made = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    memory = parts.Memory(guest)
    for run in guest.memory.runs:
        made.add_memory_segment(run.start, run.size, memory.physical, True)
    made.set_linux_kernel_custom(information, live)
    start = parts.KERNEL_HALF
    made.add_memory_segment(start, (1 << 64) - 1 - start, memory.virtual, False)
    known = types.TypesOfAll(made, guest.kernel)
    made.register_type_finder(_NAME, known.find, enable_index=0)
    made.register_object_finder(_NAME, parts.Objects(made, guest, known.kernel).find, enable_index=0)
    made.register_symbol_finder(_NAME, parts.Symbols(guest).find, enable_index=0)
    # It unwinds stacks by the kernel's own tables (ORC) only in what it calls modules, of which the kernel is one.
    with suppress(LookupError, ValueError, drgn.FaultError):  # a damaged list of modules: stacks are guessed at
        made.create_loaded_modules()
        end = guest.kernel.profile.find_symbol("_end")
        if end is not None:  # it would take the range from a file
            made.main_module().address_range = guest.kernel.profile.origin, end
    return made


def script(guest: Guest, path: Path, arguments: Sequence[str] = ()) -> None:
    """Run a drgn script, with `prog` as the guest. Raises `ToolFailed` when it fails; SystemExit goes through."""
    made = program(guest)
    before = sys.argv, list(sys.path)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    try:
        with Foreign(str(path), (str(path),)):
            import_module(_TOOL).set_default_prog(made)
            runpy.run_path(str(path), {"prog": made}, "__main__")
    finally:
        sys.argv = before[0]
        sys.path[:] = before[1]


def code(guest: Guest, text: str) -> None:
    """Run a piece of code with what drgn's own shell has at hand. Raises `ToolFailed`."""
    made = program(guest)
    with Foreign(_TOOL, ("<code>",)):
        import_module(_TOOL).set_default_prog(made)
        names = import_module("drgn.cli").default_globals(made)
        # The user's own code, as in Python's -c.
        exec(compile(text, "<code>", "exec"), {**names, "prog": made})  # noqa: S102


def shell(guest: Guest) -> None:
    """drgn's interactive shell on the guest. What is typed there and fails is shown as Python shows it."""
    made = program(guest)
    before = sys.excepthook
    sys.excepthook = sys.__excepthook__
    try:
        with Foreign(_TOOL):
            import_module("drgn.cli").run_interactive(made)
    finally:
        sys.excepthook = before
