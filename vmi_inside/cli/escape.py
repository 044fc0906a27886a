r"""Guest text made safe to look at.

A guest chooses its process names, paths and addresses, and may choose escape sequences, newlines, or marks that turn
the direction of text. `visible` shows all of these as `\x1b`, `\n`, `\u202e`. Only what people look at is escaped:
JSON escapes by its own rules, and CSV in a file is exact. A backslash stays as it is, so the text of a table cannot
be turned back with certainty: that is what JSON is for.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

#: Letters and marks by category that show as nothing, or as a blank: fillers, variation selectors, the empty Braille
#: cell (Unicode 15, DerivedCoreProperties.txt, Default_Ignorable_Code_Point). `str.isprintable` knows all the others.
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_SHORT: Final = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def visible(text: str) -> str:
    """The text with everything escaped that a terminal would not show as itself."""
    if text.isprintable() and (text.isascii() or not _INVISIBLE.search(text)):
        return text
    return "".join(
        char if char.isprintable() and not _INVISIBLE.match(char) else _SHORT.get(char) or _escaped(char)
        for char in text
    )


def width(text: str) -> int:
    """Columns that a visible text takes on a terminal: two for East Asian wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _escaped(char: str) -> str:
    number = ord(char)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
