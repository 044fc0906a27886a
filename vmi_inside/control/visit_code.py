"""The code that a vCPU comes by for a moment: it waits there for functions to call, and then goes on as if nothing was.

Knows the instructions, and the few words by which the code and who put it there understand each other. How it gets into
a guest, and when it may, is `visit`'s matter.

It stands behind a jump at the entry of a function without arguments that every vCPU goes through in its interrupts.
Of those that come in a state in which functions may be called, one takes `word`: that says where on its stack the
number of the last command done, and what that gave, are to be read. Commands lie in the page of the code, which only
those outside can write. When none comes for a while, as when nobody is left to give one, it goes on by itself.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from vmi_inside.control.assemble import Assembler, At

#: What lies at the start of the page: the number of the newest command; then the function, 0 to go on; its arguments.
COMMAND: Final = struct.Struct("<Q")
ORDER: Final = struct.Struct("<7Q")
CODE_AT: Final = 128
#: What lies on the stack of the vCPU that waits: the number of the last command done, and what the function gave.
ANSWER: Final = struct.Struct("<QQ")
#: What `word` holds when the vCPU has gone on.
GONE: Final = 1
#: Layout of the preemption count (include/linux/preempt.h).
_PREEMPT, _SOFTIRQ, _HARDIRQ, _ONE_HARDIRQ, _NMI = 0xFF, 0xFF00, 0xF_0000, 0x1_0000, 0xF0_0000
_ARGUMENTS: Final = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
#: What a function may change; and what is kept over calls: the answer's number, until when is waited, the stack.
_CHANGED: Final = ("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")
_KEPT: Final = ("rbx", "r12", "rbp")


@dataclass(frozen=True, slots=True)
class Visit:
    """Where all of it is: the page of the code, the word, what it holds before; where the function goes on.

    `preempt_count`, `current` are relative to gs, `pid` is the offset in task_struct. `patience` is how many ticks of
    the time stamp counter are waited for a command. `clean` wants a vCPU that was interrupted where no lock is held.
    """

    page: int
    word: int
    empty: int
    behind: int
    preempt_count: int
    current: int
    pid: int
    patience: int
    clean: bool


def assemble(visit: Visit) -> bytes:
    """The bytes for the start of the page, no command among them."""
    asm = Assembler(visit.page + CODE_AT)
    asm.push(*_CHANGED)
    _fit(asm, visit)
    asm.push(*_KEPT)
    asm.move("rbp", "rsp")
    asm.reckon("and", "rsp", -16)
    asm.reckon("sub", "rsp", ANSWER.size)
    asm.move("rbx", 0)
    asm.store(At("rsp"), "rbx")
    asm.store(At("rsp", 8), "rbx")
    asm.move("rax", visit.empty)
    asm.exchange_if_equal(At(None, visit.word), "rsp")
    asm.jump_if("ne", "leave")  # another one is here, or was
    asm.label("wait")
    _time(asm)
    asm.move("r12", "rax")
    asm.label("look")
    asm.load("rax", At(None, visit.page))
    asm.reckon("cmp", "rax", "rbx")
    asm.jump_if("ne", "command")
    asm.plain("pause")
    _time(asm)
    asm.reckon("sub", "rax", "r12")
    asm.move("rdx", visit.patience)
    asm.reckon("cmp", "rax", "rdx")
    asm.jump_if("b", "look")
    asm.load("rax", At(None, visit.page))  # time passes while the guest stands, and commands are given then
    asm.reckon("cmp", "rax", "rbx")
    asm.jump_if("ne", "command")
    asm.label("gone")
    asm.move("rax", GONE)
    asm.store(At(None, visit.word), "rax")
    asm.label("leave")
    asm.move("rsp", "rbp")
    asm.pop(*reversed(_KEPT))
    asm.label("go on")
    asm.pop(*reversed(_CHANGED))
    asm.jump(visit.behind)

    asm.label("command")
    asm.move("rbx", "rax")
    asm.load("rax", At(None, visit.page + COMMAND.size))
    asm.test("rax")
    asm.jump_if("e", "gone")
    for number, register in enumerate(_ARGUMENTS, 1):
        asm.load(register, At(None, visit.page + COMMAND.size + 8 * number))
    asm.call("enter")
    asm.store(At("rsp", 8), "rax")
    asm.store(At("rsp"), "rbx")
    asm.jump("wait")
    # A return, not a branch: functions that nobody was meant to branch to have no landing for one (IBT).
    asm.label("enter")
    asm.push("rax")
    asm.plain("ret")
    return bytes(CODE_AT) + asm.finish()


def _fit(asm: Assembler, visit: Visit) -> None:
    """Go on at once where no function may be called: see `borrow`, which looks at the same from outside."""
    asm.load_gs("rax", visit.preempt_count)
    asm.move("rcx", "rax")
    asm.reckon("and", "rcx", _NMI | _HARDIRQ)
    asm.reckon("cmp", "rcx", _ONE_HARDIRQ)
    asm.jump_if("ne", "go on")
    if visit.clean:
        asm.reckon("and", "rax", _SOFTIRQ | _PREEMPT)
        asm.jump_if("e", "fit")
        asm.reckon("cmp", "rax", 1)
        asm.jump_if("ne", "go on")
        asm.load_gs("rax", visit.current)  # idle tasks count as one that must not be preempted
        asm.load("rax", At("rax", visit.pid), 4)
        asm.test("rax")
        asm.jump_if("ne", "go on")
        asm.label("fit")


def _time(asm: Assembler) -> None:
    """rax = the time stamp counter. Changes rdx."""
    asm.plain("rdtsc")
    asm.shift_left("rdx", 32)
    asm.reckon("or", "rax", "rdx")
