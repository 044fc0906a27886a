"""A controller that is killed in the middle: `python -m tests.control.victim TARGET URI POINT PID [both]`.

Counts every step that leaves a trace outside the process, before and after it, and dies (SIGKILL) at the POINT-th; with
`both` the process that watches over it dies first. Ends with status 0 when there are fewer steps than that. With a PID
it sends a signal to that process of the guest, and every packet to the gdb stub is a step; with 0 it writes.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import vmi_inside
from vmi_inside.control.store import Store
from vmi_inside.drivers.gdbstub import GdbStub
from vmi_inside.drivers.machine import QemuMachine
from vmi_inside.drivers.qemu import WritableQemuMemory

STEPS = (
    (Store, ("append", "hold", "let_go")),
    (QemuMachine, ("pause", "resume", "_hmp")),
    (GdbStub, ("write", "set_registers", "cont", "set", "clear")),
    (WritableQemuMemory, ("scatter",)),
)


def main() -> None:
    target, uri, point, pid = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    count = 0
    guest: vmi_inside.Guest | None = None

    def step(name: str) -> None:
        nonlocal count
        count += 1
        if count == point:
            print(name, flush=True)
            watcher = guest and guest._pausing._watcher
            if "both" in sys.argv and watcher:
                os.kill(watcher.pid, signal.SIGKILL)
                watcher.wait()
            os.kill(os.getpid(), signal.SIGKILL)

    for kind, names in (*STEPS, (GdbStub, ("_send",) if pid else ())):
        for name in names:
            setattr(kind, name, stepped(getattr(kind, name), f"{kind.__name__}.{name}", step))
    guest = vmi_inside.attach(target, connect=uri or None, writable=True)
    if pid:
        guest.signal(pid, signal.SIGTERM)
    else:
        work(guest)
    guest.close()


def stepped(function: Callable[..., Any], name: str, step: Callable[[str], None]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        step(f"before {name}")
        result = function(*args, **kwargs)
        step(f"after {name}")
        return result

    return wrapped


def work(guest: vmi_inside.Guest) -> None:
    """What is done to the guest: a host name and a system call's code are changed, as one."""
    name = guest.kernel.symbol("init_uts_ns") + guest.kernel.struct("uts_namespace").member("name.nodename").offset
    call = guest.kernel.symbol("__x64_sys_getuid")
    with guest.transaction("the victim's", code=True) as change:
        change.write(name, b"victim\0", expect=b"lab\0\0\0\0")
        change.code(call, bytes.fromhex("b892100000c3"))  # mov $4242, %eax; ret


if __name__ == "__main__":
    main()
