"""See and control what runs inside virtual machines, from the hypervisor's side.

import vmi_inside

with vmi_inside.attach("web01") as guest:
    for process in guest.processes():
        print(process.pid, process.name)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmi_inside import errors
from vmi_inside.errors import VmiError

if TYPE_CHECKING:
    from vmi_inside import sql
    from vmi_inside.guest import Guest, Notice, attach
    from vmi_inside.table import Table

__version__ = "0.1.0"
__all__ = ["Guest", "Notice", "Table", "VmiError", "__version__", "attach", "errors", "sql"]

_LAZY = {"Guest": "guest", "Notice": "guest", "attach": "guest", "Table": "table"}


def __getattr__(name: str) -> Any:
    """Load the parts that need NumPy when they are first used."""
    from importlib import import_module

    if name == "sql":
        return import_module("vmi_inside.sql")
    if name not in _LAZY:
        raise AttributeError(f"module 'vmi_inside' has no attribute {name!r}")
    return getattr(import_module(f"vmi_inside.{_LAZY[name]}"), name)
