"""The system as a whole: kernel, host name, clocks, CPUs. One row.

Knows `uts_namespace` (include/linux/utsname.h), the timekeeper, and what the profile says of the build.
"""

from __future__ import annotations

import time

import numpy as np

from vmi_inside.errors import ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux import clock
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64


class SystemInfo(Table):
    """One row on the guest and its kernel."""

    hostname: Text
    release: Text
    version: Text
    machine: Text
    build_id: Text
    cpus: I64  # possible CPUs
    memory: I64  # bytes of RAM that the hypervisor gives
    boot_time: I64  # seconds since the epoch, by the guest's own clock
    clock: I64  # the guest's wall clock at its last tick, seconds since the epoch
    uptime: I64  # seconds, at its last tick
    paging: Text
    kaslr_offset: U64
    banner: Text


def system_info(kernel: Kernel) -> SystemInfo:
    """What system this is. What cannot be read is empty or 0, and named in `fault`."""
    faults = Faults(1)
    one = np.ones(1, dtype=np.bool_)
    names = {"nodename": "", "release": kernel.profile.release, "version": "", "machine": ""}
    with kernel.operation():
        try:
            uts = kernel.object("uts_namespace", "init_uts_ns").fetch(*(f"name.{name}" for name in names))
            names = {name: uts.text(f"name.{name}")[0] for name in names}
            faults.mark(uts.fault, "init_uts_ns unreadable")
        except ProfileError as error:
            faults.mark(one, str(error))
        boot, now = _clock(kernel)
        if boot is None or now is None:
            faults.mark(one, "clock unreadable")
    data: dict[str, Column] = {
        "hostname": text([names["nodename"]]),
        "release": text([names["release"]]),
        "version": text([names["version"]]),
        "machine": text([names["machine"]]),
        "build_id": text([kernel.profile.build_id]),
        "cpus": np.array([kernel.cpus]),
        "memory": np.array([sum(run.size for run in kernel.space.memory.runs)]),
        "boot_time": np.array([int(boot or 0)]),
        "clock": np.array([int(now or 0)]),
        "uptime": np.array([int(now - boot) if now and boot else 0]),
        "paging": text([kernel.space.paging.name]),
        "kaslr_offset": np.array([kernel.profile.slide], dtype=np.uint64),
        "banner": text([kernel.profile.banner]),
        "fault": faults.column(),
    }
    return SystemInfo(data)


def _clock(kernel: Kernel) -> tuple[float | None, float | None]:
    now = clock.wall_clock(kernel)
    return clock.boot_time(kernel), float(now) if now is not None and 0 < now < 2 * time.time() else None
