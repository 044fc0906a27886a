"""Row-by-row comparison of what is seen from outside with what the guest says of itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests import truth
from tests.lab.guest import LabGuest
from vmi_inside.linux.processes.processes import Processes
from vmi_inside.linux.sockets import OpenSockets

#: Columns that stay the same while a process sleeps.
EXACT = (
    "parent", "state", "uid", "gid", "euid", "egid", "suid", "sgid", "threads", "nice", "total_size", "cgroup_path",
    "pid_namespace", "net_namespace", "kernel_thread", "cmdline", "path",
)  # fmt: skip
SOCKET = ("protocol", "family", "state", "local_address", "local_port", "remote_address", "remote_port", "uid", "inode")


def process_differences(seen: Processes, inside: dict[int, dict[str, Any]], boot_time: float) -> list[str]:
    """Every cell that differs, for processes that both know; processes that only one knows are for the caller."""
    found = []
    for row in seen:
        said = inside.get(row.pid)
        if said is None:
            continue
        moving = row.kernel_thread and row.name.startswith("kworker")  # busy by nature, names change with the work
        asked = said["cmdline"].startswith("workload agent")  # it answers while it is looked at
        for name in EXACT:
            if asked and name == "total_size":
                continue
            if name == "state" and (moving or row.pid == 2 or {row.state, said["state"]} <= set("RSID")):
                continue
            if getattr(row, name) != said[name]:
                found.append(f"pid {row.pid} {said['name']!r}: {name} is {getattr(row, name)!r}, not {said[name]!r}")
        if row.name != said["name"] and not (moving and row.name[:11] == said["name"][:11]):
            found.append(f"pid {row.pid}: name is {row.name!r}, not {said['name']!r}")
        if abs(row.start_time - (boot_time + said["start_ticks"] / 100)) > 1.5:
            found.append(f"pid {row.pid}: start_time is {row.start_time}, not {boot_time + said['start_ticks'] / 100}")
        if asked:
            continue
        # /proc leaves out what the CPUs have not added up yet: 32 pages each of three counters, on each of few CPUs.
        if abs(row.resident_size - said["resident_size"]) > 256 * 4096:
            found.append(f"pid {row.pid}: resident_size is {row.resident_size}, not {said['resident_size']}")
        for name in ("user_time", "system_time"):
            more = getattr(row, name) - said[name]
            if more < -1000 or (more > 1000 and not row.kernel_thread):  # which are busy by nature, and were read later
                found.append(f"pid {row.pid}: {name} is {getattr(row, name)}, not {said[name]}")
    return found


def internet_rows(seen: OpenSockets, namespace: int) -> Counter[tuple[Any, ...]]:
    """The hashed internet sockets of one network namespace, as comparable tuples."""
    rows = seen.where((seen.net_namespace == namespace) & ((seen.family == "inet") | (seen.family == "inet6")))
    unique = {row.address: tuple(getattr(row, name) for name in SOCKET) for row in rows}
    return Counter(unique.values())


def internet_truth(guest: LabGuest, namespace_of: int | str) -> Counter[tuple[Any, ...]]:
    """The same tuples as the guest's /proc/net has them."""
    return Counter(tuple(row[name] for name in SOCKET) for row in truth.internet(guest, namespace_of))
