"""What is to be written into a guest for gates, before it is: the bytes, and what they are.

Plain data: how it comes about is told by `standing` and `marks`, and `placing` writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmi_inside.control.places import KERNEL

#: What the journal calls a change of gates.
KIND: Final = "gate"


@dataclass(frozen=True, slots=True)
class Change:
    """Bytes to change: where, from what, to what; and what is there, for people.

    `moving` says that the guest may have changed them since. `space` says for how long the address means something;
    see `places`.
    """

    address: int
    old: bytes
    new: bytes
    what: str
    moving: bool = False
    space: str = KERNEL


@dataclass(frozen=True, slots=True)
class Plan:
    """All that must be written: `records` first when rules come, last when they go; `code` as code.

    `inside` says that gates stand already: somebody may be in their code.
    """

    records: tuple[Change, ...]
    code: tuple[Change, ...]
    inside: bool
    notes: tuple[str, ...] = ()
