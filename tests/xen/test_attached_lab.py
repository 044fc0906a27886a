"""What is seen of a Xen host's guests, compared with what each says of itself."""

from __future__ import annotations

from collections import Counter

import pytest

from tests import compare, truth
from tests.lab.xen.host import XenGuest
from tests.xen.dom0 import seen

pytestmark = [pytest.mark.lab, pytest.mark.xen]


def test_what_is_told_of_each_guest(guest: XenGuest) -> None:
    how, release, runs = seen(
        guest, "guest.how, guest.kernel.profile.release, [(r.start, r.size) for r in guest.memory.runs]"
    )
    assert guest.name.upper() in how
    assert release == guest.ask("uname -r").strip()
    assert runs[0][0] == 0
    assert 140 << 20 < sum(size for _, size in runs) <= 165 << 20


def test_processes_cell_by_cell(guest: XenGuest) -> None:
    for attempt in (1, 2):  # it lives on while it is compared
        table, boot = seen(guest, "(guest.processes(), boot_time(guest.kernel))")
        inside = truth.processes(guest)
        outside = set(table.pid.tolist())
        # The shell that answers is only seen from inside; kernel workers come and go.
        missing = {pid for pid in set(inside) - outside if not inside[pid]["kernel_thread"] and pid < max(outside)}
        invented = [row for row in table if row.pid not in inside and not row.kernel_thread]
        differences = compare.process_differences(table, inside, boot)
        if not (missing or invented or differences) or attempt == 2:
            break
    assert (missing, invented, differences) == (set(), [], [])
    assert len(table) > 60
    assert set(table.fault.tolist()) == {""}
    assert table.notes == ()


def test_sockets_of_every_namespace(guest: XenGuest) -> None:
    table = seen(guest, "guest.process_open_sockets()")
    pids = {row.net_namespace: row.pid for row in seen(guest, "guest.processes(('pid', 'net_namespace'))")}
    compared = 0
    for namespace, pid in pids.items():
        if not namespace:
            continue
        said = compare.internet_truth(guest, pid)
        outside = compare.internet_rows(table, namespace)
        assert said - outside == Counter()
        # What was never bound is in no table of /proc.
        more = [row for row in outside - said if row[0] in ("tcp", "udp") and row[4]]
        assert [row for row in more if row[2] not in ("CLOSE", "UNCONN", "LISTEN")] == []
        compared += sum(said.values())
    assert compared > 10


def test_modules(guest: XenGuest) -> None:
    inside = {line.split()[0] for line in guest.ask("cat /proc/modules").splitlines()}
    assert set(seen(guest, "guest.kernel_modules().name.tolist()")) == inside


def test_memory_of_a_process(guest: XenGuest) -> None:
    inside = guest.ask("tr '\\0' '\\n' </proc/1/cmdline").split()
    code = "[row.cmdline for row in guest.processes(('pid', 'cmdline')) if row.pid == 1][0].split()"
    assert seen(guest, code) == inside


def test_checks_find_nothing_grave(guest: XenGuest) -> None:
    only = ("disguises", "modules", "syscalls")
    found = seen(guest, f"[(f.check, f.severity, f.subject) for f in guest.check({only})]")
    assert [one for one in found if one[1] not in ("info", "low")] == []
    assert found  # what was not looked at is told


def test_a_snapshot(guest: XenGuest) -> None:
    made = seen(guest, "guest.snapshot('processes', 'mounts', pause=True).tables")
    assert len(made["processes"]) > 60
    assert set(made["processes"].fault.tolist()) == {""}
    assert "proc" in made["mounts"].type.tolist()
