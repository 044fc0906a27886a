"""The notes of a dump: what stands beside the memory, in ELF's note format (kdump files use it too).

Knows NT_PRSTATUS, QEMU's CPU state and VMCOREINFO, read and written. Where the notes lie is told by `elfcore` and
`kdump`, and by `corefile` for dumps of ours.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from vmi_inside import elf

NT_PRSTATUS: Final = 1
LARGEST: Final = 16 << 20  # bytes of notes that are looked at: 8,192 CPUs of QEMU's notes are 7 MiB
_HEAD: Final = struct.Struct("<III")

# struct elf_prstatus (include/linux/elfcore.h): the number of the process, here of the CPU, in its first 112 bytes;
# then struct user_regs_struct (arch/x86/include/asm/user_64.h); no fpu.
_PRSTATUS: Final = struct.Struct("<112x27Q8x")
_PRSTATUS_WRITTEN: Final = struct.Struct("<32xi76x27Q8x")
_PRSTATUS_NAMES: Final = (  # noqa: SIM905
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs rflags rsp ss fs_base gs_base ds es fs "
    "gs"
).split()

# struct QEMUCPUState, version 1 (QEMU target/i386/arch_dump.c; the same from 1.1 to 9.x): general registers, ten
# segments of (selector, limit, flags, padding, base), cr0 to cr4, and since 2.11 kernel_gs_base.
_QEMU: Final = struct.Struct("<II18Q" + 10 * "IIIIQ" + "5Q")
_QEMU_GENERAL: Final = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags".split()  # noqa: SIM905
_QEMU_SEGMENTS: Final = "cs ds es fs gs ss ldt tr gdt idt".split()  # noqa: SIM905
_QEMU_CONTROL: Final = tuple(f"cr{number}" for number in range(5))
_QEMU_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Note:
    """One note: `name` is its owner (CORE, QEMU, VMCOREINFO), `type` the owner's number for it."""

    name: str
    type: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Notes:
    """All notes of a dump, in the file's order. `damaged` tells that they do not end where they should."""

    all: tuple[Note, ...] = ()
    damaged: bool = False

    @classmethod
    def parse(cls, data: bytes) -> Notes:
        """The notes in `data`, up to the first that is not whole."""
        found: list[Note] = []
        at = 0
        while at + _HEAD.size <= len(data):
            name_size, size, kind = _HEAD.unpack_from(data, at)
            start = at + _HEAD.size + (name_size + 3 & ~3)
            if start + size > len(data):
                break
            name = data[at + _HEAD.size : at + _HEAD.size + name_size].rstrip(b"\0").decode("ascii", "replace")
            found.append(Note(name, kind, data[start : start + size]))
            at = start + (size + 3 & ~3)
        return cls(tuple(found), damaged=any(data[at:]))

    @property
    def vmcoreinfo(self) -> str | None:
        """The kernel's VMCOREINFO text, as the dump's writer had it: QEMU where the guest told it (`-device vmcoreinfo`
        and the module qemu_fw_cfg), a crash kernel always. Hearsay, to be verified, like everything in a dump."""
        texts = (note.data for note in self.all if note.name == "VMCOREINFO")
        return next((text.decode("ascii", "replace").rstrip("\0") for text in texts), None)

    @property
    def registers(self) -> tuple[Mapping[str, int], ...]:
        """Registers of each x86_64 CPU by name (`rip`, `cr3`, `gs_base`, ...), in order.

        From QEMU's notes, where there are any: these alone have control registers. Otherwise from NT_PRSTATUS.
        """
        return tuple(self._qemu()) or tuple(self._prstatus())

    def _qemu(self) -> Iterator[Mapping[str, int]]:
        for note in self.all:
            if note.name != "QEMU" or note.type or len(note.data) < _QEMU.size:
                continue
            version, _, *words = _QEMU.unpack_from(note.data)
            if version != _QEMU_VERSION:
                continue
            state = dict(zip(_QEMU_GENERAL, words, strict=False))
            for name, at in zip(_QEMU_SEGMENTS, range(18, 68, 5), strict=True):
                state[name], state[f"{name}_base"] = words[at], words[at + 4]
            state |= dict(zip(_QEMU_CONTROL, words[68:], strict=True))
            if len(note.data) >= _QEMU.size + 8:
                (state["kernel_gs_base"],) = struct.unpack_from("<Q", note.data, _QEMU.size)
            yield state

    def _prstatus(self) -> Iterator[Mapping[str, int]]:
        for note in self.all:
            if note.name == "CORE" and note.type == NT_PRSTATUS and len(note.data) == _PRSTATUS.size:
                yield dict(zip(_PRSTATUS_NAMES, _PRSTATUS.unpack(note.data), strict=True))


def prstatus(number: int, state: Mapping[str, int]) -> bytes:
    """NT_PRSTATUS of the vCPU of that number, from 0; `state` by gdb's names. As in QEMU's dumps the first is 1."""
    words = (_word(state, "eflags" if name == "rflags" else name) for name in _PRSTATUS_NAMES)
    return elf.note("CORE", NT_PRSTATUS, _PRSTATUS_WRITTEN.pack(number + 1, *words))


def qemu_state(state: Mapping[str, int]) -> bytes:
    """The note in which QEMU tells a vCPU's state; `state` by gdb's names.

    A gdb stub tells neither the segments' limits and attributes nor the descriptor tables: they are zeros. By this note
    crash knows a dump of a machine that was stopped from outside, and it has the control registers.
    """
    words = [_word(state, "eflags" if name == "rflags" else name) for name in _QEMU_GENERAL]
    for name in _QEMU_SEGMENTS:
        words += [_word(state, name) & 0xFFFFFFFF, 0, 0, 0, _word(state, f"{name}_base")]
    words += [_word(state, name) for name in _QEMU_CONTROL]
    data = struct.pack("<Q", _word(state, "k_gs_base"))
    return elf.note("QEMU", 0, _QEMU.pack(_QEMU_VERSION, _QEMU.size + len(data), *words) + data)


def _word(state: Mapping[str, int], name: str) -> int:
    return state.get(name, 0) & (1 << 64) - 1
