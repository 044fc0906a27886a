"""The text of a guest's kernel, to be compared byte for byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmi_inside.kernel import Kernel


def kernel_text(kernel: Kernel) -> NDArray[np.uint8]:
    """All of it, with zeros where the kernel itself patches it while it runs (struct jump_entry)."""
    start, end = kernel.symbol("_stext"), kernel.symbol("_etext")
    text = np.frombuffer(kernel.space.read(start, end - start), dtype=np.uint8).copy()
    first, last = kernel.symbol("__start___jump_table"), kernel.symbol("__stop___jump_table")
    entries = np.frombuffer(kernel.space.read(first, last - first), dtype="<i4").reshape(-1, 4)
    place = (first - start) + 16 * np.arange(len(entries)) + entries[:, 0]  # `code` is relative to itself
    for at in place[(place >= 0) & (place < len(text))].tolist():
        text[at : at + 5] = 0
    return text
