"""The vCPUs of a guest, each by itself: its registers, and whether it runs while the others do.

Knows that one vCPU is kept standing by letting the others run from a debugger. Pausing the whole is `pausing`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import overload

from vmi_inside.control.machine import Debugger, Steering
from vmi_inside.control.pausing import Pausing
from vmi_inside.errors import ControlError, Unsupported


class Vcpu:
    """One vCPU, numbered from 0 as the hypervisor does."""

    def __init__(self, every: Vcpus, index: int) -> None:
        self._every = every
        self.index = index

    def __repr__(self) -> str:
        return f"<Vcpu {self.index}>"

    @property
    def registers(self) -> dict[str, int]:
        """Its registers now, by gdb's names: general, rip, eflags, segments and their bases, control registers.

        The guest is paused for the reading. Raises `Busy` when another debugger is there.
        """
        with self._every.debugger() as debugger:
            return debugger.registers(self.index)

    def set_registers(self, values: Mapping[str, int]) -> None:
        """Set some of its registers. This is in no journal, and cannot be undone. Raises `ControlError`."""
        with self._every.debugger() as debugger:
            debugger.set_registers(self.index, dict(values))

    @property
    def paused(self) -> bool:
        """Whether this vCPU is kept standing by itself."""
        return self.index in self._every.standing

    def pause(self) -> None:
        """Keep this vCPU standing; the others go on. Lasts until `resume`, or until the guest is let go of."""
        self._every.stop(self.index)

    def resume(self) -> None:
        """Let it run again."""
        self._every.start(self.index)


class Vcpus(Sequence[Vcpu]):
    """All vCPUs of a guest. Asking how many there are looks at the machine, once."""

    def __init__(self, pausing: Pausing) -> None:
        self._pausing = pausing
        self._count = 0
        self.standing: set[int] = set()
        self._hold: ExitStack | None = None
        self._debugger: Steering | None = None
        self._depth = 0  # blocks in which all stand

    def __len__(self) -> int:
        if not self._count:
            with self.debugger() as debugger:
                self._count = len(debugger.threads)
        return self._count

    @overload
    def __getitem__(self, index: int) -> Vcpu: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Vcpu]: ...
    def __getitem__(self, index: int | slice) -> Vcpu | Sequence[Vcpu]:
        """One vCPU, or several."""
        if isinstance(index, slice):
            return [Vcpu(self, one) for one in range(len(self))[index]]
        return Vcpu(self, range(len(self))[index])

    @contextmanager
    def debugger(self) -> Iterator[Debugger]:
        """A hold on the vCPUs, all of which stand meanwhile."""
        with self._pausing.paused(debug=True), self._pausing.debugger() as debugger:
            yield debugger

    def stop(self, index: int) -> None:
        """Keep one standing, the others running."""
        if self._hold is None:
            with ExitStack() as exits:
                exits.enter_context(self._pausing.paused())
                debugger = exits.enter_context(self._pausing.debugger())
                if not isinstance(debugger, Steering):
                    name = self._pausing.machine.name
                    raise Unsupported(f"{name}: single vCPUs cannot be kept standing on this kind of machine")
                self._debugger = debugger
                self._pausing.still, self._pausing.shared = self._all_still, self._debugger
                self._hold = exits.pop_all()
            self.standing.add(index)
            self._go()
        else:
            with self._all_still():
                self.standing.add(index)

    def start(self, index: int) -> None:
        """Let one run again."""
        if self._hold is None or index not in self.standing:
            return
        if self.standing == {index}:
            self.close()
            return
        with self._all_still():
            self.standing.discard(index)

    def close(self) -> None:
        """Let all run."""
        hold, self._hold = self._hold, None
        if hold is None:
            return
        with hold:
            try:
                self._halt()
            finally:
                self.standing.clear()
                self._pausing.still = self._pausing.shared = self._debugger = None

    @contextmanager
    def _all_still(self) -> Iterator[None]:
        if not self._depth:
            self._halt()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._go()

    def _halt(self) -> None:
        if self._debugger is not None and self._runners():
            self._debugger.interrupt()

    def _go(self) -> None:
        runners = self._runners()
        if self._debugger is not None and runners:
            self._debugger.cont(runners)

    def _runners(self) -> list[int]:
        if self._debugger is None:
            raise ControlError("no vCPU is kept standing")
        return [one for one in range(len(self._debugger.threads)) if one not in self.standing]
