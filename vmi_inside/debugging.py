"""A plain gdb on a guest: the symbol file it is given, and how it is called.

Knows gdb's command line, and where QEMU was told to listen when it was started. What is in the file is `symbol_file`'s
knowledge; a stub is started by control.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from vmi_inside.linux.symbols import symbol_file
from vmi_inside.newfile import replacing

if TYPE_CHECKING:
    from vmi_inside.kernel import Kernel


@dataclass(frozen=True, slots=True)
class Symbols:
    """The file that was made, and what is in it."""

    path: Path
    written: symbol_file.Written


def make_symbols(kernel: Kernel, name: str, path: Path | None = None) -> Symbols:
    """Write the symbol file of the kernel that runs, to `path`, or among what is kept for guest `name`. Raises OSError.

    It is good until the guest reboots or loads modules: addresses are those of this boot.
    """
    where = path or _folder() / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[-100:]}.elf"
    where.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replacing(where, private=True) as file:
        written = symbol_file.write_symbols(kernel, file)
    return Symbols(where, written)


def command(symbols: Path, target: str, more: Sequence[str] = ()) -> list[str]:
    """The words that start gdb: on the stub at `target`, a socket's path or `host:port`, or on the core `file:PATH`."""
    core = target.removeprefix("file:") if target.startswith("file:") else ""
    setting = ["set architecture i386:x86-64", "set confirm off"] + ([] if core else [f"target remote {target}"])
    asked = [word for one in setting for word in ("-ex", one)]
    return ["gdb", "-q", *asked, *more, str(symbols), *filter(None, [core])]


def shown(words: Sequence[str]) -> str:
    """The same as one line for a shell."""
    return shlex.join(words)


def listening(pid: int) -> str:
    """Where QEMU's gdb stub listens since QEMU was started (-s, -gdb), as gdb takes it; empty where it does not."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
            words = [os.fsdecode(word) for word in cmdline.read().split(b"\0")[:-1]]
    except OSError:
        return ""
    if "-s" in words:
        return ":1234"
    told = next((value for option, value in pairwise(words) if option == "-gdb"), "")
    found = re.match(r"(?:tcp:([\w.-]*):(\d+)|unix:([^,]+))(?:,|$)", told)
    if not found:
        return ""
    return found[3] or f"{found[1]}:{found[2]}"


def _folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("vmi-inside")) / "gdb"
