"""Runs one command of `vmi-inside` in this process, and stands still before a chosen step of what it does to a guest.

`python -m tests.faults.actor STEP OUT IN ARGUMENT...`: on the descriptor OUT it says `at NAME` when it stands there,
and goes on when a byte comes on IN; at the end `steps N` says how many there were. A step is an access to the journal
or the marker, a packet to gdb's stub, a question to the monitor, a write to memory, the dump. With
FAULTS_QEMU in the environment that is taken for the process behind a QMP socket, whoever made it.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

from vmi_inside import domains, dumping
from vmi_inside.cli import main
from vmi_inside.control import store
from vmi_inside.drivers import gdbstub, qemu, qmp

_STEPS = (
    (store.Store, ("append", "hold", "let_go", "sync", "lock")),
    (gdbstub.GdbStub, ("__init__", "_send", "close")),
    (domains.DomainLevers, ("pause", "resume", "hmp")),
    (qmp.QmpLevers, ("pause", "resume", "hmp")),
    (qemu.WritableQemuMemory, ("write",)),
    (dumping, ("write_dump",)),
)


class Steps:
    """Counts steps, and stands still before one."""

    def __init__(self, chosen: int, out: int, into: int) -> None:
        self.count = 0
        self._chosen, self._out, self._into = chosen, out, into

    def step(self, name: str) -> None:
        self.count += 1
        if self.count == self._chosen:
            os.write(self._out, f"at {name}\n".encode())
            os.read(self._into, 1)

    def watch(self, owner: Any, name: str) -> None:
        """Make every call of that method a step."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def stepping(*arguments: Any, **named: Any) -> Any:
            self.step(f"{owner.__name__}.{name}")
            return method(*arguments, **named)

        setattr(owner, name, stepping)


def act(chosen: int, out: int, into: int, arguments: list[str]) -> None:
    """Run the command; ends the process as it would."""
    steps = Steps(chosen, out, into)
    for owner, names in _STEPS:
        for name in names:
            steps.watch(owner, name)
    behind = os.environ.get("FAULTS_QEMU")
    if behind:
        qmp._peer = lambda _: int(behind)  # type: ignore[assignment]
    sys.argv[:] = ["vmi-inside", *arguments]
    try:
        main()
    finally:
        os.write(out, f"steps {steps.count}\n".encode())


if __name__ == "__main__":
    act(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
