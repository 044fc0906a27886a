"""Which registers a gdb stub has, from its target description (GDB manual, Target Descriptions).

Knows the text of the files that a stub gives, and believes in nothing of it. Asking for them is left to `gdbstub`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_FILES_LIMIT: Final = 16
_REGISTER_LIMIT: Final = 1024


@dataclass(frozen=True, slots=True)
class Register:
    """A register: its name, the number that sets it, its size in bytes."""

    name: str
    number: int
    size: int


def describe(feature: Callable[[str], str]) -> tuple[Register, ...]:
    """The registers in the order of the `g` packet; `feature` gives a file by its name. Raises ValueError."""
    layout: list[Register] = []
    files, seen = ["target.xml"], 0
    while files and seen < _FILES_LIMIT:
        seen += 1
        text = re.sub(r"<!--.*?-->", "", feature(files.pop(0)), flags=re.S)
        # No XML parser: QEMU writes `xi:include` with a prefix that is bound nowhere.
        for tag, rest in re.findall(r"<(xi:include|reg)\b([^<>]{0,400})>", text):
            told = dict(re.findall(r"([\w-]+)\s*=\s*[\"']([^\"'<>]*)[\"']", rest))
            if tag != "reg":
                files.append(told.get("href", ""))
                continue
            number = told.get("regnum", str(layout[-1].number + 1 if layout else 0))
            bits = told.get("bitsize", "")
            if not (_plain(number) and _plain(bits) and int(bits) >= 8):
                raise ValueError(f"describes a register badly: {rest[:80]}")
            layout.append(Register(told.get("name", ""), int(number), int(bits) // 8))
    if not 0 < len(layout) <= _REGISTER_LIMIT:
        raise ValueError(f"describes {len(layout)} registers")
    return tuple(layout)


def _plain(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,5}", text))
