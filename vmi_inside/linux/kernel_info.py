"""The kernel that runs: its build, its command line, where it lies, what taints it. One row.

Knows `uts_namespace` (include/linux/utsname.h), `saved_command_line` (init/main.c), `tainted_mask` (kernel/panic.c),
`kernel_locked_down` (security/lockdown/lockdown.c, 5.4) and what the profile says of the build. Clocks are `clock`'s;
what else the machine has is left to `system`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside.errors import MemoryFault, ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux import clock
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, PAGE_SIZE, U64


class KernelInfo(Table):
    """One row on the kernel; osquery's column names where it has them."""

    version: Text  # as `uname -r` says
    arguments: Text  # the whole command line
    path: Text  # of the image, as the boot loader named it (BOOT_IMAGE=)
    device: Text  # of the root file system (root=)
    build: Text  # as `uname -v` says
    machine: Text
    hostname: Text
    domainname: Text
    boot_time: I64  # seconds since the epoch, by the guest's own clock
    uptime: I64  # seconds, at the last tick
    cpus: I64  # possible CPUs
    cpus_online: I64
    page_size: I64  # bytes
    taint: I64  # as /proc/sys/kernel/tainted says
    tainted: Text  # the same in words
    lockdown: Text  # none integrity confidentiality; empty where the kernel has none
    kaslr_offset: U64
    paging_levels: I64


#: What each bit of the taint says, in the words of Documentation/admin-guide/tainted-kernels.rst.
TAINTS: Final = (
    "proprietary module", "module forced in", "CPU out of specification", "module forced out", "machine check",
    "bad page", "asked for by user space", "oops", "ACPI table overridden", "warning", "staging driver",
    "firmware worked around", "out-of-tree module", "unsigned module", "soft lockup", "live patch", "auxiliary",
    "struct randomization", "test", "fwctl",
)  # fmt: skip
_UTS: Final = ("nodename", "release", "version", "machine", "domainname")
_LOCKDOWN: Final = (
    ("none", ("LOCKDOWN_NONE",)),
    ("integrity", ("LOCKDOWN_INTEGRITY_MAX",)),
    ("confidentiality", ("LOCKDOWN_CONFIDENTIALITY_MAX",)),
)
#: COMMAND_LINE_SIZE is 2048 on x86_64; what boot configuration adds comes on top.
_LINE_LIMIT: Final = 4096


def kernel_info(kernel: Kernel, columns: Iterable[str] | None = None) -> KernelInfo:
    """What kernel this is. What cannot be read is empty or 0, and named in `fault`."""
    wanted = list(KernelInfo.schema if columns is None else columns)
    KernelInfo.check(wanted)
    with kernel.operation():
        faults = Faults(1)
        names = _names(kernel, faults)
        arguments = _arguments(kernel, faults)
        boot, now = clock.boot_time(kernel), clock.now(kernel)
        taint = _number(kernel, 8, faults, "tainted_mask")
        online = _online(kernel, faults)
        if boot is None or now is None:
            _mark(faults, "clock unreadable")
        data: dict[str, Column] = {
            "version": text([names["release"]]),
            "arguments": text([arguments]),
            "path": text([_argument(arguments, "BOOT_IMAGE")]),
            "device": text([_argument(arguments, "root")]),
            "build": text([names["version"]]),
            "machine": text([names["machine"]]),
            "hostname": text([names["nodename"]]),
            "domainname": text([names["domainname"]]),
            "boot_time": _one(int(boot or 0)),
            "uptime": _one(int(now - boot) if now and boot else 0),
            "cpus": _one(kernel.cpus),
            "cpus_online": _one(online),
            "page_size": _one(PAGE_SIZE),
            "taint": _one(taint & (1 << 63) - 1),
            "tainted": text([taint_words(taint)]),
            "lockdown": text([_lockdown(kernel, faults)]),
            "kaslr_offset": np.array([kernel.profile.slide], dtype=np.uint64),
            "paging_levels": _one(kernel.space.paging.levels),
            "fault": faults.column(),
        }
    return KernelInfo({name: data[name] for name in dict.fromkeys((*wanted, "fault"))})


def taint_words(bits: int) -> str:
    """What a taint says, in words with commas between them; a bit that has no word is given by its number."""
    listed = [TAINTS[bit] if bit < len(TAINTS) else f"bit {bit}" for bit in range(64) if bits >> bit & 1]
    return ", ".join(listed)


def _names(kernel: Kernel, faults: Faults) -> dict[str, str]:
    names = {**dict.fromkeys(_UTS, ""), "release": kernel.profile.release}
    try:
        uts = kernel.object("uts_namespace", "init_uts_ns").fetch(*(f"name.{name}" for name in _UTS))
    except ProfileError as error:
        _mark(faults, str(error))
        return names
    if uts.fault.any():
        _mark(faults, "init_uts_ns unreadable")
        return names
    return {name: uts.text(f"name.{name}")[0] for name in _UTS}


def _arguments(kernel: Kernel, faults: Faults) -> str:
    try:
        address = kernel.pointer("saved_command_line")
    except (ProfileError, MemoryFault) as error:
        _mark(faults, f"command line: {error}")
        return ""
    (line,), ok = kernel.strings(np.array([address], dtype=np.uint64), _LINE_LIMIT)
    if not ok.all():
        _mark(faults, "command line unreadable")
    return line.rstrip("\n")


def _argument(line: str, name: str) -> str:
    """The value of an argument, of several the last: that is the one that counts."""
    values = [word.partition("=")[2] for word in line.split() if word.startswith(f"{name}=")]
    return values[-1] if values else ""


def _online(kernel: Kernel, faults: Faults) -> int:
    """Bits of `__cpu_online_mask` (kernel/cpu.c)."""
    size = -(-kernel.cpus // 64) * 8
    mask = _number(kernel, size, faults, "__cpu_online_mask")
    return (mask & (1 << kernel.cpus) - 1).bit_count()


def _lockdown(kernel: Kernel, faults: Faults) -> str:
    """The level of the lockdown, as the one that is in brackets in /sys/kernel/security/lockdown."""
    if kernel.profile.find_symbol("kernel_locked_down") is None:
        return ""
    level = _number(kernel, 4, faults, "kernel_locked_down")
    for word, enumerators in _LOCKDOWN:
        if kernel.profile.enumerator(*enumerators) == level:
            return word
    _mark(faults, f"lockdown {level} makes no sense")
    return ""


def _number(kernel: Kernel, size: int, faults: Faults, symbol: str) -> int:
    try:
        return kernel.number(size, symbol)
    except (ProfileError, MemoryFault) as error:
        _mark(faults, f"{symbol}: {error}")
        return 0


def _mark(faults: Faults, word: str) -> None:
    faults.mark(np.ones(1, dtype=np.bool_), word)


def _one(value: int) -> I64:
    return np.array([value], dtype=np.int64)
