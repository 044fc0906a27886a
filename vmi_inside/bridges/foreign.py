"""Code of other tools, run on our guests: whether it is there, and how it fails.

Knows how to say that a package is missing, and how a failure in somebody else's code becomes one line of ours.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType, TracebackType
from typing import Final, Self

from vmi_inside.errors import ToolFailed, Unsupported, VmiError

#: The first release of each tool that these bridges were tried with.
_NEEDED: Final = {"volatility3": (2, 11), "drgn": (0, 1)}


def require(tool: str) -> ModuleType:
    """The tool's package. Raises `Unsupported` when it is not installed, or too old, naming the extra."""
    try:
        found = import_module(tool)
        release = version(tool)
    except (ImportError, PackageNotFoundError) as error:
        raise Unsupported(f"{tool} is not installed: pip install 'vmi-inside[{tool}]'") from error
    if _numbers(release) < _NEEDED[tool]:
        wanted = ".".join(map(str, _NEEDED[tool]))
        raise Unsupported(f"{tool} {release} is too old, {wanted} is needed: pip install -U 'vmi-inside[{tool}]'")
    return found


class Foreign:
    """A context in which another tool's code runs: what it raises becomes `ToolFailed`, in one line.

    Our own errors, interrupts, exits and closed pipes go through as they are. `inner` are pieces of paths of the code
    that is told of: the line says which of its lines failed.
    """

    def __init__(self, tool: str, inner: Sequence[str] = ()) -> None:
        self.tool = tool
        self.inner = inner

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, (VmiError, BrokenPipeError)):
            return
        frames = traceback.extract_tb(trace)
        own = [frame for frame in frames if any(name in frame.filename for name in self.inner)] or frames[-1:]
        where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
        raise ToolFailed(f"{self.tool} failed: {type(error).__name__}: {error}{where}") from error


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.partition("+")[0].split(".") if part.isdigit())
