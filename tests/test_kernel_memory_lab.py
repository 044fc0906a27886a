"""The system's memory and the slab caches, held against /proc/meminfo and /proc/slabinfo."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.lab.guest import LabGuest

#: /proc/meminfo's words for columns whose names are others.
WORDS = {
    "MemTotal": "memory_total", "MemFree": "memory_free", "MemAvailable": "memory_available",
    "SwapCached": "swap_cached", "Active(anon)": "active_anon", "Inactive(anon)": "inactive_anon",
    "Active(file)": "active_file", "Inactive(file)": "inactive_file", "SwapTotal": "swap_total",
    "SwapFree": "swap_free", "AnonPages": "anon_pages", "KReclaimable": "k_reclaimable",
    "SReclaimable": "s_reclaimable", "SUnreclaim": "s_unreclaim", "KernelStack": "kernel_stack",
    "PageTables": "page_tables", "SecPageTables": "sec_page_tables", "CommitLimit": "commit_limit",
    "Committed_AS": "committed", "VmallocUsed": "vmalloc_used", "HardwareCorrupted": "hardware_corrupted",
    "AnonHugePages": "anon_huge_pages", "ShmemHugePages": "shmem_huge_pages", "ShmemPmdMapped": "shmem_pmd_mapped",
    "FileHugePages": "file_huge_pages", "FilePmdMapped": "file_pmd_mapped", "CmaTotal": "cma_total",
    "CmaFree": "cma_free", "HugePages_Total": "huge_pages_total", "HugePages_Free": "huge_pages_free",
    "HugePages_Rsvd": "huge_pages_reserved", "HugePages_Surp": "huge_pages_surplus", "Hugepagesize": "huge_page_size",
    "DirectMap4k": "direct_map_4k", "DirectMap2M": "direct_map_2m", "DirectMap1G": "direct_map_1g",
}  # fmt: skip
#: What is no number of this guest's (VmallocTotal), always 0 by now, or of what no lab guest has.
LEFT_OUT = {
    "VmallocTotal", "VmallocChunk", "NFS_Unstable", "WritebackTmp", "Zswap", "Zswapped", "Unaccepted", "Balloon",
    "GPUActive", "GPUReclaim",
}  # fmt: skip
#: What the asking shell and its `cat` take themselves, and give back: bytes.
ASKING = {
    **dict.fromkeys(("mapped", "committed", "memory_free", "memory_available"), 4 << 20),
    **dict.fromkeys(("kernel_stack", "anon_pages", "page_tables", "active", "inactive", "slab"), 1 << 20),
    **dict.fromkeys(("active_anon", "inactive_anon", "s_unreclaim", "s_reclaimable", "k_reclaimable"), 1 << 20),
    **dict.fromkeys(("shmem", "cached", "vmalloc_used", "direct_map_4k", "direct_map_2m"), 1 << 20),
}


@pytest.fixture(scope="module", params=["6.1-cloud", "new-cloud", "5.10-cloud"])
def guest(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> Iterator[LabGuest]:
    return lab_boot() if request.param == "6.1-cloud" else lab_boot(kernel=request.param)


def test_memory_is_what_meminfo_says(guest: LabGuest) -> None:
    told = {}
    for line in guest.ask("cat /proc/meminfo").splitlines():
        name, _, words = line.partition(":")
        number, *unit = words.split()
        told[name] = int(number) << (10 if unit else 0)
    with guest.attach() as seen:
        table = seen.memory_info()
        few = seen.memory_info(["memory_total", "committed"])
    assert table.fault.tolist() == [""]
    assert few.columns == ("memory_total", "committed", "fault")
    row = table[0]
    missing, exact = set(), 0
    for name, value in told.items():
        if name in LEFT_OUT:
            continue
        column = WORDS.get(name, name.lower())
        if column not in table.columns:
            missing.add(name)
        elif column in ASKING:
            assert abs(getattr(row, column) - value) <= ASKING[column], (name, value, getattr(row, column))
        else:
            assert getattr(row, column) == value, name
            exact += 1
    assert missing == set()
    assert exact > 20
    assert row.memory_total > row.memory_available > 0
    assert row.kernel_stack > 1 << 20
    assert row.committed > 1 << 20
    assert row.active == row.active_anon + row.active_file


def test_slab_caches_are_what_slabinfo_says(guest: LabGuest) -> None:
    def told() -> dict[str, tuple[int, ...]]:
        lines = [line.split() for line in guest.ask("cat /proc/slabinfo").splitlines()[2:]]
        return {words[0]: (*map(int, words[1:6]), int(words[-2])) for words in lines}

    with guest.attach() as seen:
        before, table, after = told(), seen.slab_caches(), told()
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert table.name.tolist() == list(before)
    # What did not change between two askings is exact; the rest lies between or near.
    steady = [row for row in table if before[row.name] == after[row.name]]
    assert len(steady) > 0.6 * len(table)
    wrong = [
        (row, before[row.name])
        for row in steady
        if (row.active_objs, row.num_objs, row.objsize, row.objperslab, row.pagesperslab, row.slabs) != before[row.name]
    ]
    assert len(wrong) <= 3, wrong
    for row in table:
        assert row[3:6] == before[row.name][2:5], row
        assert row.memory == row.slabs * row.pagesperslab * 4096
        assert 0 < row.object_size <= row.objsize
    assert (table.active_objs > 0).sum() > 50


def test_free_memory_is_what_buddyinfo_says(guest: LabGuest) -> None:
    def told() -> dict[tuple[int, str], list[int]]:
        found = {}
        for line in guest.ask("cat /proc/buddyinfo").splitlines():
            words = line.replace(",", " ").split()
            found[int(words[1]), words[3]] = list(map(int, words[4:]))
        return found

    zones: dict[tuple[int, str], dict[str, int]] = {}
    for line in guest.ask("cat /proc/zoneinfo").splitlines():
        words = line.replace(":", " ").split()
        if words[0] == "Node":
            here = zones.setdefault((int(words[1].rstrip(",")), words[-1]), {})
        elif words[0] in ("present", "managed", "start_pfn"):
            here.setdefault(words[0], int(words[1]))
    with guest.attach() as seen:
        before, table, after = told(), seen.buddy_info(), told()
        total = seen.memory_info(["memory_total"]).memory_total[0]
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert [(row.node, row.zone) for row in table] == list(before)
    for row in table:
        mine = [getattr(row, f"order_{order}") for order in range(11)]
        assert row.free == sum(count << 12 + order for order, count in enumerate(mine))
        # Small pieces come and go, also while nobody asks; large ones stay.
        steady = [
            each for each in zip(before[row.node, row.zone], mine, after[row.node, row.zone], strict=True)
            if each[0] == each[2]
        ]  # fmt: skip
        assert len(steady) >= 4
        assert sum(was != seen for was, seen, _ in steady) <= 2, (row.zone, steady)
        whole = {"present": row.present >> 12, "managed": row.managed >> 12, "start_pfn": row.first_page}
        assert whole == zones[row.node, row.zone]
    assert table.managed.sum() == total


def test_counters_are_what_vmstat_says(guest: LabGuest) -> None:
    def told() -> dict[str, int]:
        return {line.split()[0]: int(line.split()[1]) for line in guest.ask("cat /proc/vmstat").splitlines()}

    with guest.attach() as seen:
        before, table, after = told(), seen.vm_counters(), told()
    assert table.notes == ()
    assert set(table.fault) == {""}
    names = table.name.tolist()
    left_out = [name for name in before if name not in names]
    assert all(name.startswith(("numa_", "nr_dirty_", "nr_memmap")) or name == "nr_unstable" for name in left_out)
    assert names == [name for name in before if name not in left_out]
    exact = 0
    for name, value, kind, _ in table:
        if before[name] == after[name]:
            exact += value == before[name]
            assert value == before[name] or kind != "event", name
        elif kind == "event":
            assert before[name] <= value <= after[name], name
    assert exact > 0.7 * len(table)
    assert {row.name: row.value for row in table}["pgfault"] > 1000
