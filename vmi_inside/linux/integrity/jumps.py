"""The first instructions of functions, and where they lead: jumps, calls, breakpoints, and what hooks use for jumps.

Knows x86-64's encodings of these few. Whether a jump is honest is the detectors' matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.types import I64, U8, U64, Mask

#: Bytes of a function that are looked at.
LENGTH: Final = 40
#: What a function may begin with and does nothing: the landing pad of indirect branches, sealed or not, and the place
#: for tracing while nobody traces.
_NOTHING: Final = tuple(
    bytes.fromhex(one) for one in ("f30f1efa", "660f1f00", "0f1f40d6", "0f1f440000", "6666666690", "0f1f00", "6690")
)
#: First bytes of what is looked for.
_LEAVING: Final = np.isin(np.arange(256), [0xE8, 0xE9, 0xEB, 0xCC, 0x68, 0x48, 0x49, 0xFF])


@dataclass(frozen=True, slots=True)
class Jumps:
    """What stands at the entries of functions: `row` (m,) of the function, `kind`, `target` (0 where it has none)."""

    row: np.ndarray[tuple[int], np.dtype[np.intp]]
    kind: np.ndarray[tuple[int], np.dtype[np.object_]]
    target: U64


def jumps(start: int, text: U8, offset: I64) -> Jumps:
    """The jumps, calls and breakpoints at the entries of functions: `offset` (n,) of each in the text at `start`.

    Behind the last one lie at least `LENGTH` bytes more.
    """
    words: U64 = np.ndarray((len(text) - 7,), "<u8", text, 0, (1,))  # one at every byte
    here = offset.copy()
    for _ in range(3):
        word = words[here]
        skip = np.zeros(len(here), dtype=np.int64)
        for nothing in _NOTHING:
            mask = (1 << 8 * len(nothing)) - 1
            skip[word & np.uint64(mask) == np.uint64(int.from_bytes(nothing, "little"))] = len(nothing)
        if not skip.any():
            break
        here += skip
    rows = np.flatnonzero(_LEAVING[text[here]])
    head: U8 = text[here[rows][:, None] + np.arange(16)[None, :]]
    at = np.uint64(start) + here[rows].astype(np.uint64)
    found: list[tuple[str, Mask, U64]] = []
    far = at + np.uint64(5) + _signed(head[:, 1:5], "<i4")
    found.append(("jump", head[:, 0] == 0xE9, far))
    found.append(("call", head[:, 0] == 0xE8, far))
    found.append(("short jump", head[:, 0] == 0xEB, at + np.uint64(2) + _signed(head[:, 1:2], "<i1")))
    found.append(("breakpoint", head[:, 0] == 0xCC, np.zeros(len(at), dtype=np.uint64)))
    pushed = _signed(head[:, 1:5], "<i4")
    found.append(("push and return", (head[:, 0] == 0x68) & (head[:, 5] == 0xC3), pushed))
    built = (pushed & np.uint64(0xFFFF_FFFF)) | (_signed(head[:, 9:13], "<i4") << np.uint64(32))
    halves = (head[:, 0] == 0x68) & (head[:, 5:9] == np.frombuffer(b"\xc7\x44\x24\x04", np.uint8)).all(axis=1)
    found.append(("push and return", halves & (head[:, 13] == 0xC3), built))
    # mov imm64 to a register, then a jump to it, or a push of it and a return.
    absolute = ((head[:, 0] & 0xFE) == 0x48) & ((head[:, 1] & 0xF8) == 0xB8)
    leaves = (head[:, 10] == 0xFF) | ((head[:, 10] == 0x41) & (head[:, 11] == 0xFF)) | (
        ((head[:, 10] & 0xF8) == 0x50) & (head[:, 11] == 0xC3)
    ) | ((head[:, 10] == 0x41) & ((head[:, 11] & 0xF8) == 0x50) & (head[:, 12] == 0xC3))  # fmt: skip
    found.append(("jump through a register", absolute & leaves, np.ascontiguousarray(head[:, 2:10]).view("<u8")[:, 0]))
    memory = (head[:, 0] == 0xFF) & (head[:, 1] == 0x25)
    found.append(("jump through memory", memory, at + np.uint64(6) + _signed(head[:, 2:6], "<i4")))
    row = np.concatenate([rows[which] for _, which, _ in found])
    kind = np.concatenate([np.full(int(which.sum()), name, dtype=object) for name, which, _ in found])
    target = np.concatenate([where[which] for _, which, where in found])
    return Jumps(row, kind, target)


def _signed(raw: U8, kind: str) -> U64:
    """Little-endian signed numbers (n,) as addends of addresses."""
    value: U64 = np.ascontiguousarray(raw).view(kind)[:, 0].astype(np.int64).view(np.uint64)
    return value
