"""volatility3's own plugins on a guest, as it is now: `run`, the `vol` command in this process.

Knows how to start volatility3's command line and where it would leave things behind. What it is given of the guest is
in `volatility3_parts`. volatility3 is under the Volatility Software License: it is imported when asked for, and
nothing of it is part of this package.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmi_inside.bridges.foreign import Foreign, require
from vmi_inside.errors import ToolFailed

if TYPE_CHECKING:
    from vmi_inside.guest import Guest

#: For volatility3's own `vol`: `vol -p FOLDER -f vmi-inside://web01 linux.pslist`.
PLUGINS: Final = Path(__file__).parent / "volatility3_plugins"
_TOOL: Final = "volatility3"


def run(guest: Guest | None, arguments: Sequence[str]) -> None:
    """volatility3's command line with these arguments: its options, a plugin, the plugin's own options.

    It prints to stdout and stderr itself. Without a guest it can only tell of itself (`--help`). Raises `Unsupported`
    when volatility3 is not installed, and `ToolFailed` when the plugin fails; wrong usage ends in SystemExit(2).
    """
    with tempfile.TemporaryDirectory(prefix="vmi-inside-") as scratch, _environment({"XDG_CACHE_HOME": scratch}):
        require(_TOOL)
        # What it keeps on disk are other memory images' symbols: here there are none, and there shall be none.
        given = ["--quiet", "--offline", "--cache-path", scratch]
        parts = import_module("vmi_inside.bridges.volatility3_parts")
        location = f"{parts.SCHEME}//{guest.name if guest else ''}"
        if guest is not None:
            parts.guests[location] = guest
            given += ["--single-location", location]
        try:
            with _arguments([*given, *arguments]), Foreign(_TOOL, ("/plugins/", "/extensions/")):
                import_module("volatility3.cli").CommandLine().run()
        except SystemExit as done:
            if done.code in (0, None):
                return
            if done.code == 1:  # it has said why
                raise ToolFailed("volatility3 could not run the plugin: what it said stands above") from None
            raise
        finally:
            parts.guests.pop(location, None)


@contextmanager
def _arguments(words: Sequence[str]) -> Iterator[None]:
    """volatility3 reads its arguments from `sys.argv`."""
    before = sys.argv
    sys.argv = ["vol", *words]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    """volatility3 makes a folder for its cache when it is imported, where the environment says."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
