"""Where a kernel function can be hooked from outside: the 5-byte NOP that the compiler left at its entry for tracing.

Knows what may stand there (arch/x86/kernel/ftrace.c, arch/x86/kernel/alternative.c, 5.10 to 7.2): an `endbr64`, or
what a kernel that sealed it wrote over it, and then the NOP; or the call of a tracer, or somebody else's jump. Which
functions matter, and what the jump leads to, are left to others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from vmi_inside.errors import MemoryFault
from vmi_inside.kernel import Kernel
from vmi_inside.types import MASK64

#: `endbr64`, and what the kernel writes over those that nobody may branch to (gen_endbr_poison).
_LANDINGS: Final = (b"\xf3\x0f\x1e\xfa", b"\x66\x0f\x1f\x00", b"\x0f\x1f\x40\xd6")
#: NOPs of 5 bytes in one instruction: ideal_nops until 5.12, x86_nops since.
NOPS: Final = (b"\x0f\x1f\x44\x00\x00", b"\x66\x66\x66\x66\x90")
SIZE: Final = 5
_CALL, _JUMP, _TRAP = 0xE8, 0xE9, 0xCC

State = Literal["free", "traced", "jump", "probed", "other"]


@dataclass(frozen=True, slots=True)
class Entry:
    """The entry of a function: `at` is where the 5 bytes are that can change, `found` what stands there.

    `state` is free (a NOP), traced (a call: ftrace's), jump (to `target`), probed (a breakpoint), or other.
    """

    symbol: str
    at: int
    found: bytes
    state: State
    target: int = 0

    @property
    def behind(self) -> int:
        """Where the function goes on."""
        return self.at + SIZE

    def words(self) -> str:
        """What keeps it from being hooked, for people; empty when nothing does."""
        return {
            "free": "",
            "traced": f"{self.symbol} is being traced (a call to {self.target:#x} stands at its entry)",
            "jump": f"{self.symbol} begins with somebody's jump to {self.target:#x}",
            "probed": f"{self.symbol} has a breakpoint at its entry (a kprobe?)",
            "other": f"{self.symbol} has no NOP at its entry ({self.found.hex(' ')})",
        }[self.state]


def find_entry(kernel: Kernel, *symbols: str) -> Entry | None:
    """The entry of the first of these functions that the kernel has; None where it has none, or cannot be read."""
    for symbol in symbols:
        function = kernel.profile.find_symbol(symbol)
        if function is not None:
            try:
                raw = kernel.space.read(function, len(_LANDINGS[0]) + SIZE)
            except MemoryFault:
                return None
            skipped = len(_LANDINGS[0]) if raw.startswith(_LANDINGS) else 0
            return _entry(symbol, function + skipped, raw[skipped : skipped + SIZE])
    return None


def _entry(symbol: str, at: int, found: bytes) -> Entry:
    if found in NOPS:
        return Entry(symbol, at, found, "free")
    if found[0] == _TRAP:
        return Entry(symbol, at, found, "probed")
    if found[0] in (_CALL, _JUMP):
        target = (at + SIZE + int.from_bytes(found[1:], "little", signed=True)) & MASK64
        return Entry(symbol, at, found, "traced" if found[0] == _CALL else "jump", target)
    return Entry(symbol, at, found, "other")
