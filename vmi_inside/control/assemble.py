"""A small x86_64 assembler: the few instructions that code of ours is made of, at the address where they will run.

Knows encodings (Intel SDM, volume 2) and labels. What the code does is left to `deferred` and `gates`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Numbers of the registers, as the encodings have them.
REGISTERS: Final = {
    name: number
    for number, name in enumerate(
        ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
    )
}
#: Condition codes of `jcc`.
CONDITIONS: Final = {"b": 2, "ae": 3, "e": 4, "ne": 5, "be": 6, "a": 7, "s": 8, "ns": 9, "l": 12, "ge": 13}
#: `op r/m, imm` by the digit in ModRM; `op r, r/m` is eight times the digit, plus 3.
_ARITHMETIC: Final = {"add": 0, "or": 1, "and": 4, "sub": 5, "xor": 6, "cmp": 7}
_REX_W: Final = 8
_PLAIN: Final = {"ret": b"\xc3\xcc", "cli": b"\xfa", "pushfq": b"\x9c", "popfq": b"\x9d", "int3": b"\xcc",
                 "pause": b"\xf3\x90", "rdtsc": b"\x0f\x31", "endbr64": b"\xf3\x0f\x1e\xfa"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class At:
    """Memory: `[base + offset]`; without a base the address itself, as a sign-extended 32-bit number."""

    base: str | None
    offset: int = 0


class Assembler:
    """Code that grows instruction by instruction; `finish` fills in the distances to labels."""

    def __init__(self, origin: int) -> None:
        self.origin = origin
        self._code = bytearray()
        self._labels: dict[str, int] = {}
        self._open: list[tuple[int, str]] = []  # where a distance of 4 bytes goes, and to which label

    @property
    def here(self) -> int:
        """The address of the next instruction."""
        return self.origin + len(self._code)

    def label(self, name: str) -> None:
        """Name the next instruction."""
        if name in self._labels:
            raise ValueError(f"label {name!r} stands twice")
        self._labels[name] = self.here

    def finish(self) -> bytes:
        """The code, all distances known. Raises `KeyError` for a label that stands nowhere."""
        for at, name in self._open:
            self._code[at : at + 4] = distance(self.origin + at + 4, self._labels[name])
        self._open.clear()
        return bytes(self._code)

    def address(self, label: str) -> int:
        """Where a label stands."""
        return self._labels[label]

    def align(self, size: int) -> None:
        """Fill up with `int3` to a multiple of `size`."""
        self._code += b"\xcc" * (-self.here % size)

    # -- moving -----------------------------------------------------------------------------------------------------

    def push(self, *registers: str) -> None:
        """Push registers, the first first."""
        for name in registers:
            self._short(0x50, REGISTERS[name])

    def pop(self, *registers: str) -> None:
        """Pop registers, the first first."""
        for name in registers:
            self._short(0x58, REGISTERS[name])

    def load(self, to: str, source: At, size: int = 8) -> None:
        """`to` = the unsigned number of `size` bytes at `source`."""
        opcode = {8: b"\x8b", 4: b"\x8b", 2: b"\x0f\xb7", 1: b"\x0f\xb6"}[size]
        self._memory(opcode, REGISTERS[to], source, wide=size == 8)

    def store(self, to: At, register: str, size: int = 8) -> None:
        """The lower `size` bytes, 8 or 4, of a register go to memory."""
        self._memory(b"\x89", REGISTERS[register], to, wide=size == 8)

    def exchange_if_equal(self, at: At, register: str) -> None:
        """`lock cmpxchg`: where the 64-bit number at `at` is rax, it becomes the register; or else rax becomes it."""
        self._code += b"\xf0"
        self._memory(b"\x0f\xb1", REGISTERS[register], at, wide=True)

    def load_gs(self, to: str, address: int) -> None:
        """`to` = the 64-bit number at gs:`address`, an address or offset that fits 32 signed bits."""
        self._code += b"\x65"
        self._memory(b"\x8b", REGISTERS[to], At(None, address), wide=True)

    def move(self, to: str, source: str | int) -> None:
        """`to` = a register, or a number: whatever takes fewest bytes."""
        number = REGISTERS[to]
        if isinstance(source, str):
            self._registers(b"\x89", REGISTERS[source], number, wide=True)
        elif 0 <= source < 1 << 32:
            self._short(0xB8, number)
            self._code += source.to_bytes(4, "little")
        else:
            wide = (source & (1 << 64) - 1).to_bytes(8, "little")
            self._code += bytes([0x48 | number >> 3, 0xB8 | number & 7]) + wide

    def sign_extend(self, register: str) -> None:
        """The upper half of a register becomes the sign of its lower half (`movsxd`)."""
        self._registers(b"\x63", REGISTERS[register], REGISTERS[register], wide=True)

    # -- reckoning --------------------------------------------------------------------------------------------------

    def reckon(self, what: str, to: str, source: str | int | At, size: int = 8) -> None:
        """`add or and sub xor cmp` of a register with a register, a number of 32 signed bits, or memory."""
        number, digit = REGISTERS[to], _ARITHMETIC[what]
        if isinstance(source, At):
            self._memory(bytes([8 * digit + 3]), number, source, wide=size == 8)
        elif isinstance(source, str):
            self._registers(bytes([8 * digit + 1]), REGISTERS[source], number, wide=size == 8)
        else:
            self._registers(b"\x81", digit, number, wide=size == 8)
            self._code += (source & 0xFFFF_FFFF).to_bytes(4, "little")

    def compare_memory(self, at: At, value: int, size: int) -> None:
        """`cmp` of memory of 1, 4 or 8 bytes with a number of 8 or 32 signed bits."""
        self._memory(b"\x80" if size == 1 else b"\x81", _ARITHMETIC["cmp"], at, wide=size == 8)
        self._code += (value & ((1 << 8 * min(size, 4)) - 1)).to_bytes(min(size, 4), "little")

    def test_memory(self, at: At, register: str) -> None:
        """`test dword at, register`."""
        self._memory(b"\x85", REGISTERS[register], at, wide=False)

    def test(self, register: str, value: int | None = None) -> None:
        """`test` of a register with itself, all 64 bits, or of its lower 32 with a number."""
        number = REGISTERS[register]
        if value is None:
            self._registers(b"\x85", number, number, wide=True)
        else:
            self._registers(b"\xf7", 0, number, wide=False)
            self._code += value.to_bytes(4, "little")

    def test_bit(self, word: At, register: str) -> None:
        """Carry = bit `register`, counted modulo 64, of the 64-bit number at `word`, by way of rcx."""
        self.load("rcx", word)
        self._registers(b"\x0f\xa3", REGISTERS[register], REGISTERS["rcx"], wide=True)

    def shift_left(self, register: str, bits: int) -> None:
        """`shl register, bits`."""
        self._registers(b"\xc1", 4, REGISTERS[register], wide=True)
        self._code += bytes([bits])

    def count_up(self, at: At) -> None:
        """`lock inc qword at`."""
        self._code += b"\xf0"
        self._memory(b"\xff", 0, at, wide=True)

    # -- going elsewhere --------------------------------------------------------------------------------------------

    def jump(self, to: str | int) -> None:
        """`jmp`, to a label or an address within 2 GiB."""
        self._code += b"\xe9"
        self._distance(to)

    def jump_if(self, condition: str, to: str | int) -> None:
        """`jcc`, to a label or an address within 2 GiB."""
        self._code += bytes([0x0F, 0x80 | CONDITIONS[condition]])
        self._distance(to)

    def call(self, to: str | int) -> None:
        """`call`, to a label or an address within 2 GiB."""
        self._code += b"\xe8"
        self._distance(to)

    def plain(self, name: str) -> None:
        """An instruction without operands."""
        self._code += _PLAIN[name]

    # -- encoding ---------------------------------------------------------------------------------------------------

    def _distance(self, to: str | int) -> None:
        if isinstance(to, str):
            self._open.append((len(self._code), to))
            self._code += bytes(4)
        else:
            self._code += distance(self.here + 4, to)

    def _short(self, opcode: int, register: int) -> None:
        """An instruction whose opcode has the register in its lower bits."""
        if register > 7:
            self._code.append(0x41)
        self._code.append(opcode | register & 7)

    def _registers(self, opcode: bytes, reg: int, rm: int, *, wide: bool) -> None:
        self._rex(reg, rm, wide)
        self._code += opcode + bytes([0xC0 | (reg & 7) << 3 | rm & 7])

    def _memory(self, opcode: bytes, reg: int, at: At, *, wide: bool) -> None:
        if not -(1 << 31) <= _signed(at.offset) < 1 << 31:
            raise ValueError(f"{at.offset:#x} does not fit 32 signed bits")
        offset = (at.offset & 0xFFFF_FFFF).to_bytes(4, "little")
        base = REGISTERS[at.base] if at.base else 0
        self._rex(reg, base, wide)
        if at.base is None:  # a SIB byte without base and index: the address alone
            self._code += opcode + bytes([(reg & 7) << 3 | 4, 0x25]) + offset
        elif base & 7 == 4:  # rsp and r12 are only reached through a SIB byte
            self._code += opcode + bytes([0x80 | (reg & 7) << 3 | 4, 0x24]) + offset
        else:
            self._code += opcode + bytes([0x80 | (reg & 7) << 3 | base & 7]) + offset

    def _rex(self, reg: int, rm: int, wide: bool) -> None:
        rex = (_REX_W if wide else 0) | (reg >> 3) << 2 | rm >> 3
        if rex:
            self._code.append(0x40 | rex)


def distance(behind: int, to: int) -> bytes:
    """The 4 bytes that a jump whose end is at `behind` has for its target. Raises `ValueError` when it is too far."""
    far = _signed(to - behind)
    if not -(1 << 31) <= far < 1 << 31:
        raise ValueError(f"{to:#x} is too far from {behind:#x}")
    return (far & 0xFFFF_FFFF).to_bytes(4, "little")


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
