"""Processes' memory, held against /proc/PID/status and smaps_rollup of every process of the guest."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.lab.guest import LabGuest
from vmi_inside.guest import Guest
from vmi_inside.linux.memory.process_memory import PLAIN, ProcessMemory

#: Columns, and what /proc/PID/status calls them.
STATUS = {
    "peak_size": "VmPeak", "total_size": "VmSize", "locked": "VmLck", "pinned": "VmPin", "peak_resident": "VmHWM",
    "resident_size": "VmRSS", "anon": "RssAnon", "file": "RssFile", "shmem": "RssShmem", "data": "VmData",
    "stack": "VmStk", "exe": "VmExe", "lib": "VmLib", "page_tables": "VmPTE", "swap": "VmSwap",
    "hugetlb": "HugetlbPages",
}  # fmt: skip
ASK = """cd /proc; grep -HE '^(Vm|Rss|Huget)' [0-9]*/status
grep -HE '^(Rss|Pss|Private_Clean|Private_Dirty):' [0-9]*/smaps_rollup; true"""


@pytest.fixture(scope="module", params=["6.1-cloud", "new-cloud"])
def guest(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> Iterator[LabGuest]:
    return lab_boot() if request.param == "6.1-cloud" else lab_boot(kernel=request.param)


def told(guest: LabGuest) -> dict[int, dict[str, int]]:
    """Bytes by process and /proc's word."""
    found: dict[int, dict[str, int]] = {}
    for line in guest.ask(f"({ASK}) 2>/dev/null", timeout=120).splitlines():
        place, name, value = line.split(":")
        pid, _, file = place.partition("/")
        words = found.setdefault(int(pid), {})
        words[name if file == "status" else f"Rollup{name}"] = int(value.split()[0]) << 10
    return found


def differences(guest: LabGuest, seen: Guest) -> dict[int, list[object]]:
    """What is not as the guest says, by process."""
    said, table = told(guest), seen.process_memory(ProcessMemory.schema)
    assert table.notes == ()
    assert set(table.fault) == {""}
    mine = {row.pid: row for row in table}
    wrong: dict[int, list[object]] = {pid: ["only here"] for pid in mine.keys() ^ said.keys()}
    rolled = 0
    for pid in mine.keys() & said.keys():
        row, words = mine[pid], said[pid]
        found = [(name, getattr(row, name), words.get(word)) for name, word in STATUS.items()]
        if "RollupPss" in words:
            private = words["RollupPrivate_Clean"] + words["RollupPrivate_Dirty"]
            found += [("uss", row.uss, private), ("mapped", row.mapped, words["RollupRss"])]
            found += [("pss", row.pss >> 10 << 10, words["RollupPss"])]
            rolled += 1
        bad = [each for each in found if each[1] != each[2]]
        if bad:
            wrong[pid] = [row.name, *bad]
    assert rolled > 150
    return wrong


def test_memory_is_what_status_and_smaps_say(guest: LabGuest) -> None:
    """Of all that live on; the agent, which answers, and its shell have other memory while they do."""
    agent = int(guest.ask("echo $PPID"))
    with guest.attach() as seen:
        first = differences(guest, seen)
        again = differences(guest, seen) if first else {}
    wrong = {pid: again[pid] for pid in first.keys() & again.keys() if pid != agent}
    # Where the counts of 6.2 and later are sums, /proc may leave a CPU's share of some pages out.
    assert len(wrong) <= 3, wrong


def test_what_is_asked_for(guest: LabGuest) -> None:
    with guest.attach() as seen:
        table = seen.process_memory()
        assert table.columns == PLAIN
        mappings = table.where(table.name == "mappings")
        assert len(mappings) == 1
        pid = int(mappings.pid[0])
        few = seen.process_memory(["pid", "uss", "mapped"], pids=[pid, 2])
    assert few.columns == ("pid", "mapped", "uss", "fault")
    assert few.pid.tolist() == [pid]  # kernel threads have no memory
    assert 0 < few.uss[0] <= few.mapped[0]
