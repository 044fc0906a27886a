"""The code that a vCPU comes by, in an emulator: who stays, what is called, and that it goes on as if nothing was."""

from __future__ import annotations

import dataclasses
import struct

import capstone
import pytest
import unicorn
from unicorn import x86_const as x86

from vmi_inside.control.visit_code import ANSWER, CODE_AT, COMMAND, GONE, ORDER, Visit, assemble
from vmi_inside.types import PAGE_SIZE

PAGE = 0xFFFF_FFFF_86BF_6000
WORD = 0xFFFF_FFFF_8710_0008
FUNCTION = 0xFFFF_FFFF_8500_0000
HANDLER = 0xFFFF_FFFF_8400_0000
GS = 0xFFFF_8881_0000_0000
TASK = 0xFFFF_8880_0000_0000
STACK = 0xFFFF_C900_0000_0000
TOP = STACK + 0x3008  # as at a function's entry
VISIT = Visit(
    page=PAGE, word=WORD, empty=0x55, behind=HANDLER + 5, preempt_count=0x100, current=0x200, pid=0x30,
    patience=1 << 62, clean=False,
)  # fmt: skip
INTERRUPT = 0x1_0000
GENERAL = {name: getattr(x86, f"UC_X86_REG_{name.upper()}") for name in (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)),
)}  # fmt: skip
#: Adds its first and last argument, and changes all that a function may change.
ADDER = bytes.fromhex("4c01cf 4889f8 31c9 31d2 31f6 31ff 4531c0 4531c9 4531d2 4531db c3".replace(" ", ""))


class Vcpu:
    """A vCPU that is about to come to the handler."""

    def __init__(self, visit: Visit = VISIT, *, count: int = INTERRUPT, pid: int = 77, word: int | None = None) -> None:
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.uc.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
        read, write, run = unicorn.UC_PROT_READ, unicorn.UC_PROT_WRITE, unicorn.UC_PROT_EXEC
        for at, size, access in (
            (PAGE, PAGE_SIZE, read | run), (WORD & ~0xFFF, PAGE_SIZE, read | write), (FUNCTION, PAGE_SIZE, read | run),
            (HANDLER, PAGE_SIZE, read | run), (GS, PAGE_SIZE, read), (TASK, PAGE_SIZE, read),
            (STACK, 0x4000, read | write),
        ):  # fmt: skip
            self.uc.mem_map(at, size, access)
        code = assemble(visit)
        assert len(code) < PAGE_SIZE
        self.uc.mem_write(PAGE, code)
        self.uc.mem_write(FUNCTION, ADDER)
        self.uc.mem_write(HANDLER, b"\xf4" * PAGE_SIZE)
        self.uc.mem_write(GS + visit.preempt_count, struct.pack("<Q", 0xDEAD_0000_0000_0000 | count))
        self.uc.mem_write(GS + visit.current, struct.pack("<Q", TASK))
        self.uc.mem_write(TASK + visit.pid, struct.pack("<I", pid))
        self.uc.mem_write(WORD, struct.pack("<Q", visit.empty if word is None else word))
        self.uc.reg_write(x86.UC_X86_REG_GS_BASE, GS)
        self.before = {name: 0x1111 * number for number, name in enumerate(GENERAL, 1)} | {"rsp": TOP}
        for name, value in self.before.items():
            self.uc.reg_write(GENERAL[name], value)
        self.uc.reg_write(x86.UC_X86_REG_RIP, PAGE + CODE_AT)

    @property
    def word(self) -> int:
        return self.number(WORD)

    def number(self, at: int) -> int:
        return int(struct.unpack("<Q", self.uc.mem_read(at, 8))[0])

    def run(self, steps: int = 400) -> bool:
        """Run so many instructions; whether the handler goes on, with all as it was."""
        self.uc.emu_start(self.uc.reg_read(x86.UC_X86_REG_RIP), VISIT.behind, count=steps)
        if self.uc.reg_read(x86.UC_X86_REG_RIP) != VISIT.behind:
            return False
        assert {name: self.uc.reg_read(number) for name, number in GENERAL.items()} == self.before
        return True

    def tell(self, number: int, function: int, *arguments: int) -> None:
        self.uc.mem_write(PAGE + COMMAND.size, ORDER.pack(function, *arguments, *(0,) * (6 - len(arguments))))
        self.uc.mem_write(PAGE, COMMAND.pack(number))

    def answer(self) -> tuple[int, ...]:
        return ANSWER.unpack(self.uc.mem_read(self.word, ANSWER.size))


def test_it_waits_calls_what_it_is_told_and_goes_on() -> None:
    vcpu = Vcpu()
    assert not vcpu.run()
    assert STACK < vcpu.word < TOP
    assert vcpu.word % 16 == 0
    assert vcpu.answer() == (0, 0)
    vcpu.tell(1, FUNCTION, 40, 0, 0, 0, 0, 2)
    assert not vcpu.run()
    assert vcpu.answer() == (1, 42)
    assert not vcpu.run()  # each command once
    vcpu.tell(2, FUNCTION, (1 << 64) - 5, 1, 2, 3, 4, 1)
    assert not vcpu.run()
    assert vcpu.answer() == (2, (1 << 64) - 4)
    vcpu.tell(3, 0)
    assert vcpu.run()
    assert vcpu.word == GONE


def test_functions_find_an_aligned_stack() -> None:
    vcpu, seen = Vcpu(), []
    vcpu.uc.hook_add(
        unicorn.UC_HOOK_CODE, lambda uc, at, *_: seen.append(uc.reg_read(x86.UC_X86_REG_RSP)), begin=FUNCTION,
        end=FUNCTION,
    )  # fmt: skip
    vcpu.tell(1, FUNCTION)
    assert not vcpu.run()
    assert [at % 16 for at in seen] == [8]


@pytest.mark.parametrize("word", [GONE, STACK + 0x100])
def test_one_stays_only(word: int) -> None:
    vcpu = Vcpu(word=word)
    vcpu.tell(1, FUNCTION)
    assert vcpu.run()
    assert vcpu.word == word


@pytest.mark.parametrize(
    ("count", "pid", "stays", "stays_clean"),
    [
        (INTERRUPT, 77, True, True),
        (INTERRUPT | 1, 0, True, True),  # the idle loop
        (INTERRUPT | 1, 77, True, False),  # somebody holds a lock
        (INTERRUPT | 2, 0, True, False),
        (INTERRUPT | 0x100, 77, True, False),  # in a softirq
        (2 * INTERRUPT, 77, False, False),  # in an interrupt within one
        (INTERRUPT | 0x10_0000, 77, False, False),  # in an NMI
        (0, 77, False, False),
        (INTERRUPT | 0x8000_0000, 77, True, True),  # PREEMPT_NEED_RESCHED says nothing of it
    ],
)
def test_who_stays(count: int, pid: int, stays: bool, stays_clean: bool) -> None:
    for clean, expected in ((False, stays), (True, stays_clean)):
        vcpu = Vcpu(dataclasses.replace(VISIT, clean=clean), count=count, pid=pid)
        assert vcpu.run() is not expected
        assert (vcpu.word != VISIT.empty) is expected


def test_it_goes_on_when_nobody_tells_it_anything() -> None:
    vcpu = Vcpu(dataclasses.replace(VISIT, patience=0))
    assert vcpu.run()
    assert vcpu.word == GONE


def test_what_it_is_told_while_the_guest_stands_is_done_however_late() -> None:
    vcpu, called = Vcpu(dataclasses.replace(VISIT, patience=0)), []
    vcpu.uc.hook_add(unicorn.UC_HOOK_CODE, lambda *_: called.append(True), begin=FUNCTION, end=FUNCTION)
    start = PAGE + CODE_AT
    lines = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm(assemble(VISIT)[CODE_AT:], start)
    [looked] = [line.address for line in lines if line.mnemonic == "pause"]
    vcpu.uc.emu_start(start, looked)  # it has seen no command, and is about to look at the time
    vcpu.tell(1, FUNCTION)
    assert vcpu.run()
    assert called == [True]
    assert vcpu.word == GONE


def test_every_byte_is_an_instruction() -> None:
    code = assemble(VISIT)[CODE_AT:]
    lines = list(capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm(code, PAGE + CODE_AT))
    assert sum(line.size for line in lines) == len(code)
    said = [f"{line.mnemonic} {line.op_str}" for line in lines]
    assert f"lock cmpxchg qword ptr [{WORD:#x}], rsp" in said
    assert sum(line.startswith("call") for line in said) == 1
