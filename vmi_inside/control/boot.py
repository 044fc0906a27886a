"""Which boot of which kernel this is: the same for as long as it runs, another one after a reboot.

Knows a few things that are drawn at random, or measured to the nanosecond, while a kernel boots. The clock is none of
them: it can be set.
"""

from __future__ import annotations

import hashlib

from vmi_inside.errors import GuestGone, NoMember, NoSymbol
from vmi_inside.kernel import Kernel

_START = ("start_boottime", "real_start_time")  # renamed in 5.5


def boot_identity(kernel: Kernel) -> str:
    """32 hexadecimal digits. Raises `GuestGone` when the guest's memory does not hold that kernel any more."""
    told = [kernel.profile.build_id or kernel.profile.banner, f"{kernel.profile.origin:x}", f"{kernel.space.root:x}"]
    # The first idle task's stack canary is drawn once (boot_init_stack_canary, arch/x86/include/asm/stackprotector.h).
    first = kernel.object("task_struct", "init_task")
    names = [name for name in ("stack_canary",) if first.has(name)]
    if names:
        first.fetch(*names)
        told.append(f"{int(first.unsigned(names[0])[0]):x}")
    # When process 1 was started, in nanoseconds since boot.
    try:
        init = kernel.object("pid_namespace", "init_pid_ns").follow("child_reaper", kernel.struct("task_struct"))
        told.append(str(int(init.fetch(_START).number(_START)[0])))
        bad = bool(first.fault.any() or init.fault.any())
    except (NoMember, NoSymbol):
        bad = bool(first.fault.any())
    if bad:
        raise GuestGone("not the kernel runs now that ran when it was attached (a reboot?); attach again")
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]
