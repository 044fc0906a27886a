"""The system as a whole: kernel, host name, clocks, CPUs, memory. One row.

What is to be known of the kernel is `kernel_info`'s; here it stands beside what the machine has.
"""

from __future__ import annotations

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux import clock
from vmi_inside.linux.kernel_info import kernel_info
from vmi_inside.table import Column, Table, Text, text
from vmi_inside.types import I64, U64


class SystemInfo(Table):
    """One row on the guest and its kernel."""

    hostname: Text
    domainname: Text
    release: Text
    version: Text
    machine: Text
    build_id: Text
    arguments: Text  # the kernel's command line
    path: Text  # of its image, as the boot loader named it
    device: Text  # of the root file system
    cpus: I64  # possible CPUs
    cpus_online: I64
    memory: I64  # bytes of RAM that the hypervisor gives
    page_size: I64  # bytes
    boot_time: I64  # seconds since the epoch, by the guest's own clock
    clock: I64  # the guest's wall clock at its last tick, seconds since the epoch
    uptime: I64  # seconds, at its last tick
    taint: I64  # as /proc/sys/kernel/tainted says
    tainted: Text  # the same in words
    lockdown: Text  # none integrity confidentiality; empty where the kernel has none
    paging: Text
    kaslr_offset: U64
    banner: Text


#: What `KernelInfo` calls otherwise.
_OTHERWISE = {"release": "version", "version": "build"}


def system_info(kernel: Kernel) -> SystemInfo:
    """What system this is. What cannot be read is empty or 0, and named in `fault`."""
    with kernel.operation():
        about = kernel_info(kernel)
        own: dict[str, Column] = {
            "build_id": text([kernel.profile.build_id]),
            "memory": np.array([sum(run.size for run in kernel.space.memory.runs)]),
            "clock": np.array([int(clock.now(kernel) or 0)]),
            "paging": text([kernel.space.paging.name]),
            "banner": text([kernel.profile.banner]),
        }
    return SystemInfo({
        name: own[name] if name in own else about.column(_OTHERWISE.get(name, name)) for name in SystemInfo.schema
    })  # fmt: skip
