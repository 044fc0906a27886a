"""Swap: where to, how much, and whose; held against /proc/swaps, meminfo and PID/status of guests that swap."""

from __future__ import annotations

from tests.lab.guest import LabGuest


def test_swaps(watched_guest: LabGuest) -> None:
    said = [line.split() for line in watched_guest.ask("cat /proc/swaps").splitlines()[1:]]
    with watched_guest.attach() as seen:
        table = seen.swaps()
    assert table.notes == ()
    assert set(table.fault) == {""}
    mine = [[row.path, row.type, str(row.size >> 10), str(row.used >> 10), str(row.priority)] for row in table]
    assert mine == said
    assert table.path.tolist() == ["/dev/loop0"]
    assert table.used[0] > 1 << 20
    assert table.active.all()


def test_swap_in_the_systems_memory(watched_guest: LabGuest) -> None:
    lines = watched_guest.ask("cat /proc/meminfo").splitlines()
    told = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
    with watched_guest.attach() as seen:
        row = seen.memory_info()[0]
    assert row.fault == ""
    mine = (row.swap_total, row.swap_free, row.swap_cached, row.buffers)
    assert mine == (told["SwapTotal"], told["SwapFree"], told["SwapCached"], told["Buffers"])
    assert row.swap_total > row.swap_free
    assert row.buffers > 0
    assert abs(row.cached - told["Cached"]) <= 1 << 20


def test_swap_of_processes(watched_guest: LabGuest) -> None:
    said = {}
    for line in watched_guest.ask("grep -H VmSwap /proc/[0-9]*/status").splitlines():
        said[int(line.split("/")[2])] = int(line.split()[1]) << 10
    with watched_guest.attach() as seen:
        table = seen.process_memory(["pid", "name", "swap", "mapped"])
    swapped = {row.pid: row for row in table if row.swap}
    assert {pid: row.swap for pid, row in swapped.items()} == {pid: size for pid, size in said.items() if size}
    assert {row.name for row in swapped.values()} >= {"watched"}  # and its children, who share
    for pid, row in swapped.items():
        rollup = watched_guest.ask(f"cat /proc/{pid}/smaps_rollup").split()
        assert row.mapped == int(rollup[rollup.index("Rss:") + 1]) << 10


def test_huge_pages(watched_guest: LabGuest) -> None:
    """Transparent ones, whole, in pieces and shared; and hugetlbfs's, which do not count as resident."""
    lines = watched_guest.ask("cat /proc/meminfo").splitlines()
    told = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    with watched_guest.attach() as seen:
        info = seen.memory_info()[0]
        table = seen.process_memory(["pid", "name", "hugetlb", "mapped", "pss", "uss"])
    assert info.huge_pages_total == told["HugePages_Total"] > 0
    assert (info.huge_pages_free, info.huge_pages_reserved) == (told["HugePages_Free"], told["HugePages_Rsvd"])
    assert (info.huge_page_size, info.hugetlb) == (told["Hugepagesize"] << 10, told["Hugetlb"] << 10)
    assert info.anon_huge_pages == told["AnonHugePages"] << 10
    assert info.anon_huge_pages >= 2 << 20
    assert set(table.fault) == {""}
    rows = [row for row in table if row.name in ("huge", "huge-twin")]
    assert len(rows) == 2
    for row in rows:
        said = {}
        for line in watched_guest.ask(f"cat /proc/{row.pid}/smaps_rollup").splitlines()[1:]:
            said[line.split(":")[0]] = int(line.split()[1]) << 10
        private = said["Private_Clean"] + said["Private_Dirty"]
        assert (row.mapped, row.pss >> 10 << 10, row.uss) == (said["Rss"], said["Pss"], private), row
        assert row.mapped > 4 << 20
        status = watched_guest.ask(f"grep HugetlbPages /proc/{row.pid}/status").split()
        assert row.hugetlb == int(status[1]) << 10
    assert any(row.hugetlb for row in rows)
