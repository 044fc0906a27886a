"""The part of gates' code that tells whether a file is in a directory, or below it: `below`.

Knows how the kernel hangs files together: `dentry.d_parent` up to the root of a file system, from there on by what
`mount` says it is mounted on (fs/mount.h). Parents are read without a lock: with interrupts off nothing of them is
freed (RCU), and a rename meanwhile gives the one or the other.
"""

from __future__ import annotations

from typing import Final

from vmi_inside.control.assemble import Assembler, At
from vmi_inside.control.gates import layout
from vmi_inside.control.gates.offsets import Offsets

#: Directories above a file, mounts among them, that are looked at; what lies deeper is refused.
_STEPS: Final = 4096


def below(asm: Assembler, at: Offsets) -> None:
    """rdi: a file, r10: a rule with directories: on to `refuse` if it is one of them or below, else to `next`.

    From the file up, over mounts at the root of each file system. A directory is the same one by whatever name.
    """
    saved = ("rax", "rdx", "rdi", "r8", "r11")
    asm.label("below")
    asm.push(*saved)
    asm.move("r11", _STEPS)
    asm.load("r8", At("rdi", at.file_dentry))
    asm.load("rdi", At("rdi", at.file_mount))
    asm.label("look")
    asm.load("rsi", At("r8", at.inode))
    asm.test("rsi")
    asm.jump_if("e", "up")
    asm.load("rdx", At("r10", layout.ALLOW))
    asm.load("rcx", At("r10", layout.ALLOWED), 4)
    asm.label("folder")
    asm.load("rax", At("rsi", at.number))
    asm.reckon("cmp", "rax", At("rdx", layout.INODE))
    asm.jump_if("ne", "another")
    asm.load("rax", At("rsi", at.generation), 4)
    asm.reckon("cmp", "rax", At("rdx", layout.GENERATION), 4)
    asm.jump_if("ne", "another")
    asm.load("rax", At("rsi", at.block))
    asm.load("rax", At("rax", at.device), 4)
    asm.reckon("cmp", "rax", At("rdx", layout.DEVICE), 4)
    asm.jump_if("e", "within")
    asm.label("another")
    asm.reckon("add", "rdx", layout.NETWORK_SIZE)
    asm.reckon("sub", "rcx", 1)
    asm.jump_if("ne", "folder")
    asm.label("up")
    asm.reckon("sub", "r11", 1)
    asm.jump_if("e", "within")
    asm.load("rax", At("r8", at.parent))
    asm.reckon("cmp", "rax", "r8")
    asm.jump_if("e", "root")
    asm.move("r8", "rax")
    asm.jump("look")
    asm.label("root")
    asm.load("r8", At("rdi", at.mountpoint - at.mount))
    asm.load("rax", At("rdi", at.above - at.mount))
    asm.reckon("add", "rax", at.mount)
    asm.reckon("cmp", "rax", "rdi")
    asm.jump_if("e", "outside")
    asm.move("rdi", "rax")
    asm.jump("look")
    asm.label("outside")
    asm.pop(*reversed(saved))
    asm.jump("next")
    asm.label("within")
    asm.pop(*reversed(saved))
    asm.jump("refuse")
