"""A running Xen guest, held: stopped and let go, its vCPUs' registers read and set.

Knows how Xen's registers are called in gdb, and how a guest is rung for. Breakpoints are not had here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Final, Self

from vmi_inside.drivers.xen import XenMemory
from vmi_inside.drivers.xenlib import DYING, PAUSED, VcpuContext, Xen
from vmi_inside.errors import ControlError, GuestGone, NoMemory, Unsafe, Unsupported
from vmi_inside.memory import WritableMemory

_GENERAL: Final = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rip", "eflags",
)  # fmt: skip
_SELECTORS: Final = ("cs", "ss", "ds", "es", "fs", "gs")
_CONTROL: Final = (0, 2, 3, 4)
_IN_KERNEL: Final = 1 << 2  # VGCF_in_kernel, public/arch-x86/xen.h


def stands(xen: Xen, number: int, identity: str, name: str) -> bool:
    """Whether the domain of that number stands still. Raises `GuestGone` when it is another one by now."""
    info = xen.domain(number)
    if info is None or info.uuid != identity or info.flags & DYING:
        raise GuestGone(f"{name}: the guest is gone (domain {number}); attach again")
    return bool(info.flags & PAUSED)


class XenMachine:
    """One guest: `identity` is its UUID, `instance` this run of it."""

    debugger_stops = False

    def __init__(self, memory: XenMemory) -> None:
        self._memory = memory
        self._xen, self._id = memory.xen, memory.domain.id
        self.name = memory.domain.name
        self.identity = memory.domain.info.uuid
        self.instance = f"xen:{self._id}:{self.identity}"
        self.notices: list[str] = []

    @property
    def paused(self) -> bool:
        """Whether it stands still."""
        return stands(self._xen, self._id, self.identity, self.name)

    def pause(self) -> None:
        """Stop all vCPUs; they stand when this returns. Xen counts pauses: one of ours is enough."""
        if not self.paused:
            self._xen.pause(self._id)

    def resume(self) -> None:
        """Let all vCPUs run."""
        self._xen.unpause(self._id)

    def ring(self) -> None:
        """Have the guest take an event, soon: a write to the xenstore that it watches, of what stands there anyway.

        Every Linux guest of Xen watches this path for being told to shut down, and ignores it when it is empty
        (drivers/xen/manage.c). Raises `Unsafe` when it is told to, `Unsupported` where nothing is there.
        """
        path = f"/local/domain/{self._id}/control/shutdown"
        told = self._xen.stored(path)
        if told is None:
            raise Unsupported(f"{self.name}: the xenstore has no {path}, by which the guest is rung for")
        if told:
            raise Unsafe(f"{self.name}: the guest is being told to {told.decode(errors='replace')}; nothing was done")
        self._xen.store(path, b"")

    @contextmanager
    def debugger(self) -> Iterator[Callable[[], AbstractContextManager[XenVcpus]]]:
        """A hold on the vCPUs, for as long as the block lasts."""
        yield lambda: XenVcpus(self._memory)

    def end_debugger(self) -> None:
        """There is nothing that a dead controller could have left."""

    def close(self) -> None:
        """The hypervisor's handles are the memory's, which closes them."""


class XenVcpus:
    """The vCPUs of a guest that stands still; see `control.machine.Debugger`."""

    def __init__(self, memory: XenMemory) -> None:
        self._memory = memory
        self._xen, self._id = memory.xen, memory.domain.id
        self.threads: tuple[str, ...] = tuple(str(vcpu) for vcpu in range(memory.domain.info.vcpus))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """There is nothing to let go of."""

    def registers(self, vcpu: int) -> dict[str, int]:
        """A vCPU's registers, by gdb's names. cr3 is the guest's own word: a machine address in a PV guest."""
        context = self._xen.context(self._id, vcpu)
        user = context.user_regs
        found = {name: int(getattr(user, name)) for name in (*_GENERAL, *_SELECTORS)}
        found["fs_base"] = int(context.fs_base)
        # Xen tells which base is the kernel's and which the user's: here that in use, and that which swapgs brings.
        used, other = int(context.gs_base_user), int(context.gs_base_kernel)
        if self._in_kernel(context):
            used, other = other, used
        found["gs_base"], found["k_gs_base"] = used, other
        found |= {f"cr{number}": int(context.ctrlreg[number]) for number in _CONTROL}
        return found

    def set_registers(self, vcpu: int, values: dict[str, int]) -> None:
        """Set some of the general registers, rip and eflags. Raises `Unsupported` for others."""
        other = [name for name in values if name not in _GENERAL]
        if other:
            raise Unsupported(f"{self._memory.domain.name}: {', '.join(other)} cannot be set in a Xen guest")
        context = self._xen.context(self._id, vcpu)
        for name, value in values.items():
            setattr(context.user_regs, name, value)
        self._xen.set_context(self._id, vcpu, context)

    def read(self, address: int, size: int, *, vcpu: int | None = None) -> bytes:
        """Physical memory."""
        raw = self._memory.read(address, size) if vcpu is None else None
        if raw is None:
            raise NoMemory(address, size)
        return raw

    def write(self, address: int, data: bytes, *, vcpu: int | None = None) -> None:
        """Write physical memory: code is not translated here."""
        if vcpu is not None or not isinstance(self._memory, WritableMemory):
            raise ControlError(f"{self._memory.domain.name}: attached read-only")
        self._memory.write(address, data)

    def _in_kernel(self, context: VcpuContext) -> bool:
        if self._memory.domain.info.kind == "pv":  # whose kernel does not run in ring 0
            return bool(context.flags & _IN_KERNEL)
        return bool(context.user_regs.cs & 3 == 0)


def open_machine(memory: XenMemory) -> XenMachine:
    """The machine behind the memory of a guest."""
    return XenMachine(memory)
