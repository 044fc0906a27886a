"""Numbers of which each bit has a name, as words: capabilities, signals, flags.

Knows nothing of what the bits mean.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vmi_inside.table import Text, text
from vmi_inside.types import U64


def words(values: U64, name: Callable[[int], str]) -> Text:
    """The names (n,) of the bits that are set in each number, from the lowest up, joined by commas; empty for 0."""
    unique, back = np.unique(values, return_inverse=True)
    return text(",".join(name(bit) for bit in range(64) if value >> bit & 1) for value in unique.tolist())[back]
