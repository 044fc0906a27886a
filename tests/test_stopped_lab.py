"""A guest that is stopped, hung or dead can be looked into like any other: no part of it has to answer.

The guest is asked beforehand what it runs; afterwards nothing in it could tell.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

import vmi_inside
from tests.lab import LabError
from tests.lab.guest import LabGuest

Boot = Callable[..., LabGuest]


def inside(guest: LabGuest) -> dict[int, str]:
    """Processes and their names, by the guest's own word."""
    told = guest.ask("for p in /proc/[0-9]*; do echo ${p#/proc/} $(cat $p/comm 2>/dev/null); done")
    listed = (line.partition(" ") for line in told.splitlines())
    return {int(pid): name for pid, _, name in listed if name and not name.startswith(("kworker", "sh", "cat"))}


def compare(seen: vmi_inside.Guest, told: dict[int, str]) -> None:
    """What was told before is still to be seen, whole."""
    processes = seen.processes()
    assert processes.notes == ()
    assert set(processes.fault) == {""}
    found = {row.pid: row.name for row in processes}
    assert {pid: found.get(pid) for pid in told} == told
    assert len(seen.process_open_sockets()) > 0
    assert len(seen.process_open_files()) > 0
    assert len(seen.kernel_modules()) > 0


def test_paused(lab_fresh: Boot) -> None:
    guest = lab_fresh(workload="tree,tcp,unix", vcpus=1)
    told = inside(guest)
    guest.domain.suspend()
    with guest.attach() as seen:
        compare(seen, told)
        first = seen.processes().to_dicts()
        time.sleep(0.3)
        assert seen.processes().to_dicts() == first  # nothing moves
    assert guest.domain.isActive()
    assert guest.domain.state()[0] == 3, "still paused: attaching and leaving change nothing"
    guest.domain.resume()
    assert guest.ask("echo alive") == "alive\n"


def test_panicked(lab_fresh: Boot) -> None:
    guest = lab_fresh(append="panic=0", workload="tree,tcp,unix")
    told = inside(guest)
    guest.ask("(sleep 0.3; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
    deadline = time.monotonic() + 60
    while "end Kernel panic" not in guest.console_tail() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "sysrq triggered crash" in guest.console_tail()
    with guest.attach() as seen:  # attached when it was dead already
        compare(seen, told)


def test_out_of_memory(lab_fresh: Boot) -> None:
    """While the guest kills what it can for want of memory, until nobody is left who could answer."""
    guest = lab_fresh(append="panic=0", workload="tree,tcp,unix", memory=192)
    with guest.attach() as seen:
        before = {row.pid: row.name for row in seen.processes(columns=("pid", "name"))}
        # What fills the memory cannot be killed: all others are, and at last the kernel gives up.
        fill = (
            "mount -o remount,size=100% /tmp; echo -1000 >/proc/self/oom_score_adj; exec dd if=/dev/zero"
        )
        guest.ask(f"sh -c '{fill} of=/tmp/fill bs=64k' >/dev/null 2>&1 &")
        deadline, looked = time.monotonic() + 120, 0
        while time.monotonic() < deadline and "Kernel panic" not in guest.console_tail(1 << 16):
            assert 1 in seen.processes(columns=("pid", "parent", "name", "state")).pid
            looked += "Out of memory" in guest.console_tail(1 << 16)
            time.sleep(0.05)
        said = guest.console_tail(1 << 16)
        assert "System is deadlocked on memory" in said
        assert looked
        after = {row.pid: row.name for row in seen.processes()}
    killed = {int(pid) for pid in re.findall(r"Killed process (\d+) ", said)}
    assert len(killed & before.keys()) > 5
    assert not killed & after.keys()
    spared = {pid: name for pid, name in before.items() if name in ("kthreadd", "kswapd0", "oom_reaper")}
    assert spared.items() <= after.items()
    assert "dd" in after.values()
    with pytest.raises(LabError, match="no answer"):
        guest.ask("echo alive", timeout=2)
