"""A vCPU borrowed for a moment, so that a function of the guest's kernel runs on it.

Knows where a vCPU may be taken, how to bring one there, and how a function is called and returned from. What is worth
calling is left to everybody else.

The place is the entry of `generic_smp_call_function_single_interrupt` (kernel/smp.c), in the interrupt by which one CPU
asks another to run something: interrupts are off, the CPU is on its interrupt stack, RCU watches, and the handler takes
no arguments. A vCPU is brought there by that very interrupt, with nothing queued: a message-signalled interrupt, which
is a write to physical memory (Intel SDM volume 3, 11.11). So an idle guest is reached as soon as a busy one.

The function is made to return to where it was called: the handler's entry, with the stack as it was there. Should
nobody be left to put the registers back, the handler just begins.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NoReturn, Protocol

from vmi_inside.control.machine import HARDWARE, Ringing, Steering
from vmi_inside.control.pausing import uninterrupted
from vmi_inside.control.places import KERNEL, pieces
from vmi_inside.control.sleepers import current_offset
from vmi_inside.control.transaction import Change
from vmi_inside.errors import ControlError, MemoryFault, NoMember, NoSymbol, Unsafe, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.types import MASK64

#: CALL_FUNCTION_SINGLE_VECTOR (arch/x86/include/asm/irq_vectors.h), and who handles it.
VECTOR: Final = 0xFB
GATE: Final = "asm_sysvec_call_function_single"
HANDLER: Final = "generic_smp_call_function_single_interrupt"
#: Where messages to local APICs are written, and where in the address the APIC's id stands.
_MESSAGES: Final = 0xFEE0_0000
_APIC_SHIFT: Final = 12
_APIC_LIMIT: Final = 255
#: Layout of the preemption count (include/linux/preempt.h).
_PREEMPT, _SOFTIRQ, _HARDIRQ, _ONE_HARDIRQ, _NMI = 0xFF, 0xFF00, 0xF_0000, 0x1_0000, 0xF0_0000
_INTERRUPTS: Final = 1 << 9  # RFLAGS.IF
_DIRECTION: Final = 1 << 10
_STACK_ROOM: Final = 0x2000
_ARGUMENTS: Final = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
_GENERAL: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip", "eflags",
                   *(f"r{n}" for n in range(8, 16)))  # fmt: skip
#: First instructions of functions that do nothing: endbr64, what seals it, NOPs where tracing may be put.
_NOTHING: Final = (b"\xf3\x0f\x1e\xfa", b"\x66\x0f\x1f\x00", b"\x0f\x1f\x40\xd6", b"\x0f\x1f\x44\x00\x00",
                   b"\x66\x66\x66\x66\x90")  # fmt: skip
#: Seconds: for a vCPU to come, for one to come that holds no lock, for one interrupt to arrive, for a guest to go on
#: before it is tried again.
PATIENCE: Final = 2.0
CLEAN_PATIENCE: Final = 5.0
_ARRIVAL: Final = 0.2
_BREATH: Final = 0.003
TIMEOUT: Final = 5.0


class Caller(Protocol):
    """A vCPU on which functions of the kernel can be called, with interrupts off: they must not sleep."""

    def call(self, function: str | int, *arguments: int, timeout: float = TIMEOUT) -> int:
        """Call one, by its name or address, with up to six integers; gives RAX. See `Borrowed.call`."""
        ...


class Borrowed:
    """A vCPU in hand. Functions that are called run with interrupts off and must not sleep."""

    def __init__(self, kernel: Kernel, debugger: Steering, vcpu: int, saved: Mapping[str, int], skip: int) -> None:
        self.kernel = kernel
        #: Which one it is.
        self.vcpu = vcpu
        self._debugger = debugger
        self._saved = saved
        self._skip = skip

    def call(self, function: str | int, *arguments: int, timeout: float = TIMEOUT) -> int:
        """Call a kernel function, by its name or address, with up to six integers; gives RAX, unsigned.

        The other vCPUs run meanwhile. Raises `Unsafe` when it has not returned in `timeout` seconds: the vCPU is put
        back to where it was, if it can be, and what the function had begun stays as it is. Raises `NoSymbol`.
        """
        if len(arguments) > len(_ARGUMENTS):
            raise ControlError(f"{len(arguments)} arguments; a kernel function is called with six at the most")
        address = self.kernel.symbol(function) if isinstance(function, str) else function
        debugger, saved = self._debugger, self._saved
        stack = saved["rsp"] - 8
        where = pieces(self.kernel, KERNEL, stack, 8)
        debugger.write(where[0].pa, saved["rip"].to_bytes(8, "little"))
        debugger.set_registers(self.vcpu, {
            **dict(zip(_ARGUMENTS, (one & MASK64 for one in arguments), strict=False)),
            "rax": 0, "rsp": stack, "rip": address, "eflags": saved["eflags"] & ~(_INTERRUPTS | _DIRECTION),
        })  # fmt: skip
        count = self._count_place()
        counted = debugger.read(count, 4)
        deadline = time.monotonic() + timeout
        with uninterrupted():  # half of a function is never what is wanted
            while True:
                debugger.cont()
                stop = debugger.wait(max(deadline - time.monotonic(), 0))
                if stop is None:
                    debugger.interrupt()
                now = debugger.registers(self.vcpu)
                if (now["rip"], now["rsp"]) == (saved["rip"], saved["rsp"]):
                    self._put_back()
                    return now["rax"]
                if stop is None:
                    self._give_up(function, timeout, now, count, counted)
                _pass(debugger, saved["rip"], self._skip, but=self.vcpu)

    def _put_back(self) -> None:
        self._debugger.set_registers(self.vcpu, {name: self._saved[name] for name in _GENERAL})

    def _count_place(self) -> int:
        """The physical address of the vCPU's preemption count."""
        return pieces(self.kernel, KERNEL, self._saved["gs_base"] + preempt_offset(self.kernel) & MASK64, 4)[0].pa

    def _give_up(
        self, function: str | int, timeout: float, now: Mapping[str, int], count: int, counted: bytes
    ) -> NoReturn:
        """Raise `Unsafe`; the vCPU is put back, if it still is in what was called, and on its stack.

        With it its preemption count, which a function that waits for a lock has raised already: the kernel would never
        change tasks on that CPU again.
        """
        what = f"{function} has not returned in {timeout:g} s"
        if now["cs"] & 3 or not self._saved["rsp"] - _STACK_ROOM <= now["rsp"] < self._saved["rsp"]:
            raise Unsafe(f"{what}, and its vCPU does something else by now: it slept, or the guest rebooted")
        self._put_back()
        self._debugger.write(count, counted)
        raise Unsafe(f"{what}, and the vCPU was put back; what it had begun, such as a lock that it took, stays")


def check(kernel: Kernel, machine: object) -> None:
    """Raise `Unsupported` or `Unsafe` where no vCPU can be borrowed. Done before the guest is paused, it saves time."""
    if isinstance(machine, Ringing):  # vCPUs come by another way
        return
    _place(kernel)
    _preempt_count(kernel, int(kernel.percpu_offset[0]))
    kernel.structs("task_struct", [kernel.space.read_u64(int(kernel.percpu_offset[0]) + _current(kernel) & MASK64)])


@contextmanager
def borrow(change: Change, *, clean: bool = True, patience: float | None = None) -> Iterator[Caller]:
    """Have a vCPU at a place where functions may be called. `change` is a transaction that lasts.

    `clean` wants one that was interrupted where no lock is held: in a user's code, in the idle loop, or in kernel code
    that may be preempted. Without it, what is called may take only locks that are taken with interrupts off. Raises
    `Unsafe` when no vCPU comes in `patience` seconds (PATIENCE, or CLEAN_PATIENCE), `Unsupported` on kernels that have
    no such place.

    Where a debugger cannot lead vCPUs to a place, but the machine can be rung for (Xen), one comes by itself: `visit`.
    """
    kernel = change.kernel
    change.run_freely()
    debugger = change.debugger
    if not isinstance(debugger, Steering):
        if not isinstance(change.machine, Ringing):
            raise Unsupported(f"{change.machine.name}: no vCPU can be borrowed on this kind of machine")
        from vmi_inside.control.visit import visited

        with visited(change, change.machine, clean=clean) as visitor:
            yield visitor
        return
    if patience is None:
        patience = CLEAN_PATIENCE if clean else PATIENCE
    place, skip = _place(kernel)
    change.hold(points=[[HARDWARE, place, 1]])
    debugger.set(HARDWARE, place)
    try:
        vcpu, saved = _bring(kernel, debugger, place, skip, clean, patience)
        yield Borrowed(kernel, debugger, vcpu, saved, skip)
    finally:
        debugger.clear(HARDWARE, place)
        change.hold(points=[])


def _place(kernel: Kernel) -> tuple[int, int]:
    """Where vCPUs are taken, and the length of the instruction there, which does nothing. Raises `Unsupported`."""
    try:
        place, gate, table = (kernel.symbol(name) for name in (HANDLER, GATE, "idt_table"))
    except NoSymbol as error:
        raise Unsupported(f"no vCPU can be borrowed: {error}") from error
    raw = kernel.space.read(table + 16 * VECTOR, 16)  # a gate: Intel SDM volume 3, 6.14.1
    if int.from_bytes(raw[0:2] + raw[6:12], "little") != gate:
        raise Unsupported(f"no vCPU can be borrowed: interrupt {VECTOR:#x} does not go to {GATE} in this kernel")
    first = kernel.space.read(place, 8)
    skip = next((len(one) for one in _NOTHING if first.startswith(one)), 0)
    if not skip:
        raise Unsafe(f"no vCPU can be borrowed: something traces {HANDLER} ({first[:5].hex(' ')})")
    return place, skip


def _bring(
    kernel: Kernel, debugger: Steering, place: int, skip: int, clean: bool, patience: float
) -> tuple[int, dict[str, int]]:
    """Interrupt vCPUs until one stands at the place in a fit state; its number and registers."""
    deadline = time.monotonic() + patience
    apics = min(len(debugger.threads), _APIC_LIMIT)
    reason, turn = "no vCPU took the interrupt", 0
    while True:
        # The APICs of QEMU's vCPUs are numbered as they are themselves, but for odd topologies; 0 is always there.
        apic = (turn // 4) % apics
        debugger.write(_MESSAGES | apic << _APIC_SHIFT, VECTOR.to_bytes(4, "little"))
        debugger.cont()
        stop = debugger.wait(min(_ARRIVAL, max(deadline - time.monotonic(), 0)))
        if stop is None:
            debugger.interrupt()
            turn += 4
        else:
            saved = debugger.registers(stop.vcpu)
            if saved["rip"] == place:
                reason = _unfit(kernel, saved, clean)
                if not reason:
                    return stop.vcpu, saved
            _pass(debugger, place, skip)
            # The same interrupt at once would meet the same code: let the guest go on a little.
            debugger.cont()
            if debugger.wait(_BREATH) is None:
                debugger.interrupt()
            else:
                _pass(debugger, place, skip)
            turn += 1
        if time.monotonic() > deadline:
            raise Unsafe(f"no safe moment to borrow a vCPU in {patience:g} s: {reason}; nothing was done")


def _pass(debugger: Steering, place: int, skip: int, but: int = -1) -> None:
    """Lead vCPUs that stand at the place over its first instruction, which does nothing."""
    for vcpu in range(len(debugger.threads)):
        if vcpu != but and debugger.registers(vcpu)["rip"] == place:
            debugger.set_registers(vcpu, {"rip": place + skip})


def _unfit(kernel: Kernel, registers: Mapping[str, int], clean: bool) -> str:
    """Why no function may be called on a vCPU that stands at the place; empty when one may be."""
    if registers["cs"] & 3 or registers["eflags"] & _INTERRUPTS:
        return "the vCPU is not in an interrupt"
    try:
        count = _preempt_count(kernel, registers["gs_base"])
        kernel.space.read(registers["rsp"] - _STACK_ROOM, _STACK_ROOM)
        idle = kernel.space.read_u64(registers["gs_base"] + _current(kernel) & MASK64)
        idle_task = kernel.structs("task_struct", [idle]).fetch("pid")
    except MemoryFault as error:
        return f"the vCPU's stack or per-CPU data cannot be read: {error}"
    if count & _NMI or count & _HARDIRQ != _ONE_HARDIRQ:
        return f"the vCPU is in an interrupt within another one (preemption count {count:#x})"
    if not clean:
        return ""
    spare = 1 if int(idle_task.number("pid")[0]) == 0 else 0  # idle tasks count as one that must not be preempted
    if count & _SOFTIRQ or count & _PREEMPT > spare:
        return f"the vCPU was interrupted where locks may be held (preemption count {count:#x})"
    return ""


def _preempt_count(kernel: Kernel, base: int) -> int:
    """The preemption count of the CPU whose per-CPU data is at `base`."""
    return int.from_bytes(kernel.space.read((base + preempt_offset(kernel)) & MASK64, 4), "little") & 0x7FFF_FFFF


def preempt_offset(kernel: Kernel) -> int:
    """Where each CPU has its preemption count, relative to its per-CPU area (in `pcpu_hot` from 6.2 to 6.14)."""
    offset = kernel.profile.find_symbol("__preempt_count")
    if offset is not None:
        return offset
    return kernel.symbol("pcpu_hot") + kernel.struct("pcpu_hot").member("preempt_count").offset


def _current(kernel: Kernel) -> int:
    """The per-CPU offset of the pointer to the running task."""
    try:
        return current_offset(kernel)
    except NoMember as error:
        raise Unsupported(f"no vCPU can be borrowed: {error}") from error
