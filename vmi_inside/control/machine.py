"""What control needs of a hypervisor: a machine that can be stopped, and a debugger on its vCPUs.

Protocols only. Drivers and domains give them; `guest` puts them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

#: Kinds of breakpoints (GDB manual, Packets, `Z`): in code, by a debug register, by a debug register on data.
SOFTWARE, HARDWARE, WRITE, READ, ACCESS = range(5)


class Stop(Protocol):
    """Why the vCPUs stopped: `vcpu` (from 0) met it; `signal` is 5 for a breakpoint; `watch` is a watched address."""

    @property
    def vcpu(self) -> int: ...  # noqa: D102
    @property
    def signal(self) -> int: ...  # noqa: D102
    @property
    def watch(self) -> int | None: ...  # noqa: D102


class Debugger(Protocol):
    """A hold on the vCPUs of a machine that stands still. vCPUs count from 0; addresses are physical unless said."""

    @property
    def threads(self) -> tuple[str, ...]:
        """One name for each vCPU."""
        ...

    def registers(self, vcpu: int) -> dict[str, int]:
        """A vCPU's registers, by gdb's names."""
        ...

    def set_registers(self, vcpu: int, values: dict[str, int]) -> None:
        """Set some of them."""
        ...

    def read(self, address: int, size: int, *, vcpu: int | None = None) -> bytes:
        """Memory; with `vcpu` at a virtual address."""
        ...

    def write(self, address: int, data: bytes, *, vcpu: int | None = None) -> None:
        """Write memory so that translated code is translated anew."""
        ...


@runtime_checkable
class Steering(Debugger, Protocol):
    """A debugger that lets vCPUs run, to places where they stop."""

    def set(self, kind: int, address: int, size: int = 1) -> None:
        """Set a breakpoint at a virtual address."""
        ...

    def clear(self, kind: int, address: int, size: int = 1) -> None:
        """Take it away."""
        ...

    def release(self) -> None:
        """Take all breakpoints away."""
        ...

    def cont(self, vcpus: Iterable[int] | None = None) -> None:
        """Let these vCPUs run (all when None), the others not."""
        ...

    def interrupt(self) -> Stop:
        """Stop all vCPUs."""
        ...

    def wait(self, timeout: float) -> Stop | None:
        """Wait for a stop; None when there is none in `timeout` seconds."""
        ...


class Machine(Protocol):
    """One running virtual machine."""

    name: str
    #: Names the guest for good: its UUID, mostly.
    identity: str
    #: Names this run of it: changes when the hypervisor's process does.
    instance: str
    notices: list[str]
    #: Whether connecting a debugger stops the machine.
    debugger_stops: bool

    @property
    def paused(self) -> bool:
        """Whether it stands still."""
        ...

    def pause(self) -> None:
        """Stop all vCPUs; they stand when this returns."""
        ...

    def resume(self) -> None:
        """Let all vCPUs run."""
        ...

    def debugger(self) -> AbstractContextManager[Callable[[], AbstractContextManager[Debugger]]]:
        """Readiness for a debugger, and what connects it; it stands still then, and afterwards. Raises `Busy`."""
        ...

    def end_debugger(self) -> None:
        """End what an earlier controller left of that."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


@runtime_checkable
class Debuggable(Protocol):
    """What a machine can do beside, whose debugger others can use, too."""

    def stub(self) -> AbstractContextManager[str]:
        """Readiness for a debugger of somebody's own, which connects to the UNIX socket of that path. Raises `Busy`."""
        ...


@runtime_checkable
class Ringing(Protocol):
    """What a machine can do beside, whose guest comes when it is rung for."""

    def ring(self) -> None:
        """Have a vCPU take an interrupt that is an event of Xen's, soon. Raises `Unsafe`, `Unsupported`."""
        ...
