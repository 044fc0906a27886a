"""A Xen guest held through LibVMI: stopped and let go, its vCPUs' registers read and set.

Knows LibVMI's numbers of registers. LibVMI does not tell whether a domain stands, nor its UUID: Xen's own library is
asked for both (`xenlib`). KVM's guests are not held here, because of faults in LibVMI's sources (kvm_legacy.c): reading
their registers hands a pointer into the middle of a string to free(), which ends the process, and general registers
read as nothing where LibVMI was not told how the guest pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

from vmi_inside.drivers.libvmi import LibvmiMemory, hint, quiet
from vmi_inside.drivers.xenlib import Xen
from vmi_inside.drivers.xenmachine import stands
from vmi_inside.errors import ControlError, GuestGone, NoMemory, Unsupported
from vmi_inside.memory import WritableMemory

#: By gdb's names, LibVMI's numbers (libvmi.h): of what can be set, and of what is only read.
GENERAL: Final = {
    "rax": 0, "rbx": 1, "rcx": 2, "rdx": 3, "rsi": 5, "rdi": 6, "rbp": 4, "rsp": 7,
    "r8": 10, "r9": 11, "r10": 12, "r11": 13, "r12": 14, "r13": 15, "r14": 16, "r15": 17, "rip": 8, "eflags": 9,
}  # fmt: skip
OTHERS: Final = {
    "cs": 29, "ss": 34, "ds": 30, "es": 31, "fs": 32, "gs": 33, "fs_base": 50, "gs_base": 51, "k_gs_base": 68,
    "cr0": 18, "cr2": 19, "cr3": 20, "cr4": 21,
}  # fmt: skip


class LibvmiMachine:
    """One guest of Xen. `identity` and `instance` are those of `xen:NAME`: the same guest, one lock and one journal."""

    debugger_stops = False

    def __init__(self, name: str, memory: LibvmiMemory, xen: Xen, number: int, identity: str) -> None:
        self.name = name
        self.identity = identity
        self.instance = f"xen:{number}:{identity}"
        self.notices: list[str] = []
        self._memory = memory
        self._xen, self._id = xen, number

    @property
    def paused(self) -> bool:
        """Whether it stands still, by Xen's word."""
        return stands(self._xen, self._id, self.identity, self.name)

    def pause(self) -> None:
        """Stop all vCPUs; they stand when this returns. Xen counts pauses: one of ours is enough."""
        if not self.paused:
            self.call("it could not be paused", lambda _, lib, instance: lib.vmi_pause_vm(instance))

    def resume(self) -> None:
        """Let all vCPUs run."""
        if self.paused:  # Xen refuses to let go what runs
            self.call("it could not be let go", lambda _, lib, instance: lib.vmi_resume_vm(instance))

    def call(self, wrong: str, work: Callable[[Any, Any, Any], int]) -> None:
        """Have LibVMI do something: `work` gets its `ffi`, `lib` and instance, and gives its status.

        Raises `GuestGone`, or `ControlError` with what is `wrong`, and what LibVMI said of it.
        """
        with self._memory.instance() as (ffi, lib, instance), quiet() as said:
            status = work(ffi, lib, instance)
        if status:
            _ = self.paused  # a guest that is gone is the better reason
            raise ControlError(f"{self.name}: {wrong}: LibVMI fails{hint(said)}")

    @contextmanager
    def debugger(self) -> Iterator[Callable[[], AbstractContextManager[LibvmiVcpus]]]:
        """A hold on the vCPUs, for as long as the block lasts."""
        yield lambda: nullcontext(LibvmiVcpus(self, self._memory))

    def end_debugger(self) -> None:
        """There is nothing that a dead controller could have left."""

    def close(self) -> None:
        """Close the handles on Xen; LibVMI's instance is the memory's, which closes it."""
        self._xen.close()


class LibvmiVcpus:
    """The vCPUs of a guest that stands still; see `control.machine.Debugger`."""

    def __init__(self, machine: LibvmiMachine, memory: LibvmiMemory) -> None:
        self._machine = machine
        self._memory = memory
        with memory.instance() as (_, lib, instance):
            count = int(lib.vmi_get_num_vcpus(instance))
        while count > 1 and not self._online(count - 1):
            count -= 1
        self.threads: tuple[str, ...] = tuple(map(str, range(count)))

    def registers(self, vcpu: int) -> dict[str, int]:
        """A vCPU's registers, by gdb's names. Raises `ControlError` for one that is offline."""
        return {name: self._register(vcpu, name, number) for name, number in (GENERAL | OTHERS).items()}

    def set_registers(self, vcpu: int, values: dict[str, int]) -> None:
        """Set some of the general registers, rip and eflags. Raises `Unsupported` for others.

        LibVMI reads the state of the whole domain for each, and has Xen load it again.
        """
        other = [name for name in values if name not in GENERAL]
        if other:
            raise Unsupported(f"{self._machine.name}: {', '.join(other)} cannot be set in a Xen guest")
        for name, value in values.items():
            self._set(vcpu, name, value)

    def read(self, address: int, size: int, *, vcpu: int | None = None) -> bytes:
        """Physical memory."""
        raw = self._memory.read(address, size) if vcpu is None else None
        if raw is None:
            raise NoMemory(address, size)
        return bytes(raw)

    def write(self, address: int, data: bytes, *, vcpu: int | None = None) -> None:
        """Write physical memory: code is not translated here."""
        if vcpu is not None or not isinstance(self._memory, WritableMemory):
            raise ControlError(f"{self._machine.name}: attached read-only")
        self._memory.write(address, data)

    def _register(self, vcpu: int, name: str, number: int) -> int:
        found: list[int] = []

        def work(ffi: Any, lib: Any, instance: Any) -> int:
            value = ffi.new("uint64_t *")
            status = int(lib.vmi_get_vcpureg(instance, value, number, vcpu))
            found.append(int(value[0]))
            return status

        self._machine.call(f"{name} of vCPU {vcpu} could not be read; is it offline?", work)
        return found[0]

    def _set(self, vcpu: int, name: str, value: int) -> None:
        self._machine.call(
            f"{name} of vCPU {vcpu} could not be set",
            lambda _, lib, instance: lib.vmi_set_vcpureg(instance, value, GENERAL[name], vcpu),
        )

    def _online(self, vcpu: int) -> bool:
        try:
            self._register(vcpu, "rip", GENERAL["rip"])
        except ControlError:
            return False
        return True


def open_machine(name: str, memory: LibvmiMemory) -> LibvmiMachine:
    """The machine behind the memory of a domain. `name` is for messages.

    Raises `Unsupported` for KVM's guests, for domain 0, and where Xen's own library cannot be asked; `GuestGone`.
    """
    if memory.kind != "xen":
        raise Unsupported(
            f"{name}: through LibVMI a KVM guest is only read; attach by the domain's name, or qmp:SOCKET"
        )
    with memory.instance() as (_, lib, instance):
        number = int(lib.vmi_get_vmid(instance))
    if number == 0:
        raise Unsupported(f"{name}: domain 0 is the system that this runs in; only its guests can be held")
    xen = Xen()
    try:
        info = xen.domain(number)
        if info is None:
            raise GuestGone(f"{name}: the guest is gone (domain {number}); attach again")
        return LibvmiMachine(name, memory, xen, number, info.uuid)
    except BaseException:
        xen.close()
        raise
