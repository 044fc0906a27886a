"""The memory of made-up guests: counters, slab caches, pages of processes, and guests that lie about theirs."""

from __future__ import annotations

import pytest

from tests.synthetic.guest import HOLE, NOWHERE
from tests.synthetic.watched import NODE_ITEMS, VMEMMAP, ZONE_ITEMS, WatchedGuest
from vmi_inside.errors import Unsupported
from vmi_inside.linux.memory.memory_info import memory_info
from vmi_inside.linux.memory.process_memory import process_memory
from vmi_inside.linux.memory.slab_caches import slab_caches
from vmi_inside.linux.memory.vm_counters import vm_counters

PAGE = 4096
KINDS = pytest.mark.parametrize(
    "kind",
    [{}, {"levels": 5, "scattered": True}, {"older": True}],
    ids=["newer", "five levels, scattered", "older"],
)


# -- the system's memory --------------------------------------------------------------------------------------------


def system(guest: WatchedGuest, **counts: int) -> dict[str, int]:
    """All that `memory_info` reads; gives addresses to lie at."""
    guest.counted(
        **{"NR_FREE_PAGES": 1000, "NR_ACTIVE_FILE": 80, "NR_INACTIVE_FILE": 20, "NR_SLAB_RECLAIMABLE_B": 30,
           "NR_KERNEL_MISC_RECLAIMABLE": 2, "NR_FILE_PAGES": 500, "NR_KERNEL_STACK_KB": 64, "NR_ANON_THPS": 512,
           "NR_WRITEBACK": -3, "NR_SWAPCACHE": 7, **counts}
    )  # fmt: skip
    for name, value in {
        "_totalram_pages": 5000, "totalreserve_pages": 100, "total_swap_pages": 300, "nr_swap_pages": 290,
        "sysctl_overcommit_kbytes": 0, "nr_vmalloc_pages": 11, "pcpu_nr_populated": 9,
    }.items():  # fmt: skip
        guest.number(name, value)
    for name, value in {"sysctl_overcommit_ratio": 50, "pcpu_nr_units": 2, "nr_node_ids": 2}.items():
        guest.number(name, value, 4)
    node = guest.new("pglist_data")
    first = node + guest.offset("pglist_data", "node_zones")
    for at, low in ((first, 10), (first + guest.size("zone"), 20)):
        guest.word(at + 8, low)
    guest.put("zone", first, watermark_boost=5)
    nodes = guest.global_("node_data", 16)
    guest.word(nodes, node)
    inodes = [guest.new("inode", i_mapping=guest.new("address_space", nrpages=number)) for number in (3, 4)]
    block = guest.new("super_block")
    guest.number("blockdev_superblock", block)
    links = [at + guest.offset("inode", "i_sb_list") for at in inodes]
    guest.listed(block + guest.offset("super_block", "s_inodes"), links)
    committed = guest.global_("vm_committed_as", 64)
    guest.put("percpu_counter", committed, count=1000, counters=0x2000)
    for cpu, pending in enumerate((-30, 5)):
        guest.write(guest.percpu[cpu] + 0x1000, pending.to_bytes(4, "little", signed=True))
    sizes = guest.global_("hstates", 4 * guest.size("hstate"))
    guest.put("hstate", sizes, order=9, nr_huge_pages=4, free_huge_pages=3)
    guest.put("hstate", sizes + guest.size("hstate"), order=18, nr_huge_pages=1)
    guest.number("hugetlb_max_hstate", 2, 4)
    guest.number("default_hstate_idx", 0, 4)
    direct = guest.global_("direct_pages_count", 40)
    for level, count in ((1, 6), (2, 5), (3, 1)):
        guest.word(direct + 8 * level, count)
    if guest.older:
        guest.global_("swapper_spaces", 8 * 32)
        guest.word(guest.profile.symbols["swapper_spaces"] + 8, guest.new("address_space", nrpages=7))
        guest.write(guest.global_("nr_swapper_spaces", 4 * 32) + 4, b"\1")
    guest.finish()
    return {"node_data": nodes, "inode": inodes[0], "block": block, "committed": committed, "nodes": nodes}


@KINDS
def test_memory_info(kind: dict) -> None:
    guest = WatchedGuest(**kind)
    system(guest)
    row = memory_info(guest.kernel)[0]
    assert row.fault == ""
    # Watermarks are 35 pages: the page cache keeps them, of 32 reclaimable pages a half stays.
    assert row.memory_available == (1000 - 100 + 100 - 35 + 32 - 16) * PAGE
    assert (row.memory_total, row.memory_free, row.writeback) == (5000 * PAGE, 1000 * PAGE, 0)
    assert (row.buffers, row.swap_cached, row.cached) == (7 * PAGE, 7 * PAGE, (500 - 14) * PAGE)
    assert (row.swap_total, row.swap_free, row.vmalloc_used, row.percpu) == tuple(
        each * PAGE for each in (300, 290, 11, 18)
    )
    assert row.committed == 975 * PAGE
    assert row.kernel_stack == 64 << 10
    assert row.anon_huge_pages == (512 << 21 if guest.older else 2 << 20)
    assert (row.huge_pages_total, row.huge_pages_free, row.huge_page_size) == (4, 3, 2 << 20)
    assert row.hugetlb == (8 << 20) + (1 << 30)
    assert row.commit_limit == ((5000 - row.hugetlb // PAGE) * 50 // 100 + 300) * PAGE
    assert (row.direct_map_4k, row.direct_map_2m, row.direct_map_1g) == (6 << 12, 5 << 21, 1 << 30)


def test_counts_beyond_a_column() -> None:
    guest = WatchedGuest()
    system(guest)
    for symbol, value in (("_totalram_pages", -(1 << 63)), ("total_swap_pages", (1 << 63) - 1)):
        guest.word(guest.profile.symbols[symbol], value)
    row = memory_info(guest.kernel)[0]
    assert (row.memory_free, row.swap_total) == (1000 * PAGE, (1 << 63) - 1)


def test_what_a_kernel_lacks_is_named() -> None:
    guest = WatchedGuest()
    system(guest)
    for symbol in ("blockdev_superblock", "hstates"):
        del guest.profile.symbols[symbol]
    row = memory_info(guest.kernel)[0]
    assert "blockdev_superblock" in row.fault
    assert "hstates" in row.fault
    assert row.buffers == 0
    assert row.memory_total == 5000 * PAGE
    few = memory_info(guest.kernel, ["memory_free"])
    assert few.to_dicts() == [{"memory_free": 1000 * PAGE, "fault": ""}]


@pytest.mark.parametrize("wild", [NOWHERE, HOLE, 8, (1 << 64) - 8])
def test_wild_pointers_in_what_is_counted(wild: int) -> None:
    guest = WatchedGuest()
    at = system(guest)
    guest.word(at["nodes"], wild)
    guest.put("inode", at["inode"], i_mapping=wild)
    guest.put("percpu_counter", at["committed"], counters=wild)
    guest.write(guest.profile.symbols["nr_node_ids"], b"\xff" * 4)
    guest.write(guest.profile.symbols["hugetlb_max_hstate"], b"\xff" * 4)
    row = memory_info(guest.kernel)[0]
    for word in ("zone could not be read", "inode could not be read", "vm_committed_as unreadable"):
        assert word in row.fault
    assert row.memory_total == 5000 * PAGE


def test_inodes_in_a_circle() -> None:
    guest = WatchedGuest()
    at = system(guest)
    link = at["inode"] + guest.offset("inode", "i_sb_list")
    guest.word(link, link)
    assert "runs in a circle" in memory_info(guest.kernel)[0].fault


# -- its counters ---------------------------------------------------------------------------------------------------


def counted(guest: WatchedGuest) -> int:
    """Names of counters as the kernel lists them; gives where."""
    guest.learn("vm_event_state 32\n    event 0 u64[4]\n")
    guest.profile.enums["numa_stat_item"] = {"NUMA_HIT": 0, "NR_VM_NUMA_EVENT_ITEMS": 1}
    guest.profile.enums["vm_event_item"] = {"PGPGIN": 0, "PGPGOUT": 1, "PSWPIN": 2, "PGFAULT": 3}
    guest.counted(NR_FREE_PAGES=1000, NR_ANON_THPS=1024, NR_WRITEBACK=-3)
    zones, nodes = list(ZONE_ITEMS[:-1]), list(NODE_ITEMS[:-1])
    names = [*zones, "numa_hit", *nodes, "nr_dirty_threshold", "PGPGIN", "PGPGOUT", "PSWPIN", "PGFAULT"]
    at = guest.global_("vmstat_text", 8 * len(names) + 16 * 8)
    for number, name in enumerate(names):
        guest.word(at + 8 * number, guest.string(name.lower()))
    guest.profile.symbols["vm_event_states"] = 0x3000
    for cpu, base in enumerate(guest.percpu):
        for number in range(4):
            guest.word(base + 0x2000 + 8 * number, 10 * number + cpu + 4)
    guest.finish()
    return at


@KINDS
def test_counters(kind: dict) -> None:
    guest = WatchedGuest(**kind)
    counted(guest)
    table = vm_counters(guest.kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    value = dict(zip(table.name, table.value, strict=True))
    assert "numa_hit" not in value
    assert "nr_dirty_threshold" not in value
    assert (value["nr_free_pages"], value["nr_writeback"]) == (1000, 0)
    assert value["nr_anon_thps"] == (1024 if guest.older else 2)
    assert [value[name] for name in ("pgpgin", "pgpgout", "pswpin", "pgfault")] == [4, 14, 49, 69]
    assert table.kind.tolist()[-4:] == ["event"] * 4


@pytest.mark.parametrize("wild", [NOWHERE, HOLE, 8, (1 << 64) - 8])
def test_counters_that_lie(wild: int) -> None:
    guest = WatchedGuest()
    at = counted(guest)
    guest.word(at, wild)
    guest.word(guest.profile.symbols["__per_cpu_offset"] + 8, wild)
    table = vm_counters(guest.kernel)
    assert table.fault[0] == "name unreadable"
    assert set(table.fault[1:]) == {""}
    assert table.notes == ("events of a CPU could not be read",)
    for number in range(30):
        guest.word(at + 8 * number, at)  # all are called something else
    table = vm_counters(guest.kernel)
    assert "event" not in table.kind
    assert any("events are not shown" in note for note in table.notes)
    del guest.profile.symbols["vmstat_text"]
    with pytest.raises(Unsupported, match="does not name its counters"):
        vm_counters(guest.kernel)


# -- slab caches ----------------------------------------------------------------------------------------------------


def caches(guest: WatchedGuest) -> list[int]:
    """Three caches on one of two nodes, the second with partly used slabs."""
    guest.number("nr_node_ids", 2, 4)
    slab = "page" if guest.older else "slab"
    made = []
    for name, order, objects, partial in (("a", 0, 16, ()), ("b", 3, 32, ((10, 32), (31, 32))), ("c", 1, 4, ())):
        node = guest.new("kmem_cache_node", nr_slabs__counter=5, total_objects__counter=5 * objects)
        slabs = [guest.new(slab) for _ in partial]
        for at, (inuse, total) in zip(slabs, partial, strict=True):
            guest.write(at + 40, (inuse | total << 16).to_bytes(4, "little"))
        head = node + guest.offset("kmem_cache_node", "partial")
        guest.listed(head, [at + 8 for at in slabs])
        cache = guest.new(
            "kmem_cache", name=guest.string(name), size=96, object_size=90, oo__x=order << 16 | objects
        )  # fmt: skip
        guest.word(cache + 0xD8 + (0 if guest.older else 8), node)
        made.append(cache)
    guest.listed(guest.global_("slab_caches", 16), [at + guest.offset("kmem_cache", "list") for at in made])
    guest.finish()
    return made


@KINDS
def test_slab_caches(kind: dict) -> None:
    guest = WatchedGuest(**kind)
    caches(guest)
    table = slab_caches(guest.kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert [row[:8] for row in table] == [
        ("a", 80, 80, 96, 16, 1, 5, 90),
        ("b", 160 - 23, 160, 96, 32, 8, 5, 90),
        ("c", 20, 20, 96, 4, 2, 5, 90),
    ]
    assert table.memory.tolist() == [5 * PAGE, 40 * PAGE, 10 * PAGE]
    few = slab_caches(guest.kernel, ["name", "num_objs"])
    assert few.columns == ("name", "num_objs", "fault")


def test_slab_caches_that_lie() -> None:
    guest = WatchedGuest()
    first, second, third = caches(guest)
    guest.put("kmem_cache", first, name=NOWHERE, oo__x=0xFFFF_FFFF)
    node = guest.space.read_u64(second + 0xD8 + 8)
    slab = guest.space.read_u64(node + 16)
    guest.word(slab, slab)  # a circle
    guest.word(third + 0xD8 + 8, HOLE)
    guest.write(guest.profile.symbols["nr_node_ids"], b"\xff" * 4)
    guest.finish()
    table = slab_caches(guest.kernel)
    assert len(table) == 3
    assert "name unreadable" in table.fault[0]
    assert "order not believable" in table.fault[0]
    assert "counts incomplete" in table.fault[2]
    assert any("circle" in note for note in table.notes)
    link = first + guest.offset("kmem_cache", "list")
    guest.word(link, link)
    assert any("circle" in note for note in slab_caches(guest.kernel).notes)


def test_more_free_than_there_are() -> None:
    guest = WatchedGuest()
    _, second, _ = caches(guest)
    node = guest.space.read_u64(second + 0xD8 + 8)
    guest.put("kmem_cache_node", node, total_objects__counter=3)
    table = slab_caches(guest.kernel)
    assert table.fault.tolist() == ["", "counts do not agree", ""]
    assert table.active_objs[1] == 0


@pytest.mark.parametrize("length", [300, 10_500])
def test_long_lists_of_slabs(length: int) -> None:
    """Cost is of nodes, not of rounds; what is not looked at is taken to be like the rest."""
    guest = WatchedGuest()
    _, second, _ = caches(guest)
    node = guest.space.read_u64(second + 0xD8 + 8)
    slabs = [guest.alloc(64, "slab") for _ in range(length)]
    for at in slabs:
        guest.write(at + 40, (10 | 16 << 16).to_bytes(4, "little"))
    guest.listed(node + guest.offset("kmem_cache_node", "partial"), [at + 8 for at in slabs])
    guest.put("kmem_cache_node", node, nr_partial=length, nr_slabs__counter=length, total_objects__counter=16 * length)
    guest.memory.reset()
    table = slab_caches(guest.kernel)
    assert set(table.fault) == {""}
    assert table.active_objs[1] == 10 * length
    assert guest.memory.gathers < 40
    assert len(table.notes) == (length > 10_000)


def test_another_allocator() -> None:
    guest = WatchedGuest()
    guest.learn("kmem_cache 64\n    name 0 *char\n    list 8 list_head\n")
    with pytest.raises(Unsupported, match="not SLUB"):
        slab_caches(guest.kernel)


# -- pages of processes ---------------------------------------------------------------------------------------------

PRESENT, NONE, SPECIAL, LARGE = 1, 1 << 8, 1 << 9, 1 << 7
BASE = 0x5555_0000_0000
ADDRESS = 0x000F_FFFF_FFFF_F000


def walked(guest: WatchedGuest) -> dict[int, tuple[int, int, int, str]]:
    table = process_memory(guest.kernel, ["pid", "mapped", "pss", "uss"])
    return {row.pid: (row.mapped, row.pss, row.uss, row.fault) for row in table}


@pytest.mark.parametrize("levels", [4, 5])
def test_pages_are_shared_out(levels: int) -> None:
    guest = WatchedGuest(levels)
    guest.pages()
    alone, both, three = 0x100, 0x101, 0x102
    for pfn, count in ((alone, 1), (both, 2), (three, 3), (0x400, 1)):
        guest.mapped_by(pfn, count)
    entries = {
        BASE: alone << 12 | PRESENT,
        BASE + PAGE: both << 12 | PRESENT,
        BASE + 5 * PAGE: (~(three << 12) & ADDRESS) | NONE,  # PROT_NONE: its frame is kept inverted
        BASE + 6 * PAGE: 0x103 << 12 | PRESENT | SPECIAL,  # no page to count
        BASE + 7 * PAGE: 0x1234 << 12,  # swapped out
    }
    # A folio of 512 pages that one process maps whole, another one page of it.
    head = 0x400
    guest.poke("page", VMEMMAP + 64 * head, "flags", 1 << 6)
    guest.poke("folio", VMEMMAP + 64 * head, "_entire_mapcount.counter", 0)
    guest.poke("page", VMEMMAP + 64 * (head + 3), "compound_info", (VMEMMAP + 64 * head) | 1)
    guest.poke("page", VMEMMAP + 64 * (head + 4), "compound_info", ~(512 * 64 - 1) | 1)  # or a mask, since 7.0
    guest.mapped_by(head + 3, 1)
    guest.mapped_by(head + 4, 2)
    guest.process(1, entries, exec_vm=100, start_code=0x1800, end_code=0x2801)
    guest.process(2, {BASE: (head + 3) << 12 | PRESENT, BASE + PAGE: (head + 4) << 12 | PRESENT})
    guest.process(3, {}, huge={BASE: head << 12 | PRESENT | LARGE})
    guest.finish()
    found = walked(guest)
    assert found[1] == (3 * PAGE, PAGE + PAGE // 2 + PAGE // 3, PAGE, "")
    assert found[2] == (2 * PAGE, PAGE // 2 + PAGE // 3, 0, "")
    assert found[3] == (2 << 20, 2 << 20, 2 << 20, "")
    table = process_memory(guest.kernel)
    assert "pss" not in table.columns
    assert (table.exe[0], table.lib[0]) == (2 * PAGE, 98 * PAGE)


def test_page_tables_that_lie() -> None:
    guest = WatchedGuest()
    guest.pages()
    guest.process(1, {BASE: 0x100 << 12 | PRESENT})
    root = guest.user.root
    for index in range(256):  # every table is the root itself
        guest.ram.write(root + 8 * index, (root | PRESENT).to_bytes(8, "little"))
    guest.process(2, {BASE: 0x100 << 12 | PRESENT})
    guest.user.put(BASE + (1 << 39), 4, (3 << 30) | PRESENT)  # a table where there is no RAM
    guest.process(3, {BASE: 0x7FFF_FFFF << 12 | PRESENT})  # a page that has no struct
    guest.process(4, {BASE: 0x101 << 12 | PRESENT})  # a page that is mapped by nobody
    guest.mapped_by(0x100, 1)
    five = guest.process(5, {BASE: 0x100 << 12 | PRESENT})
    guest.put("mm_struct", five.mm, pgd=NOWHERE)
    six = guest.process(6, {})
    guest.put("task_struct", six.task, mm=HOLE)
    guest.finish()
    table = process_memory(guest.kernel, ["pid", "mapped", "pss", "uss"])
    found = {row.pid: row.fault for row in table}
    assert all("page tables incomplete" in found[pid] for pid in (1, 2, 3, 4, 5))
    assert "memory descriptor unreadable" in found[6]
    assert any("more than" in note for note in table.notes)
    assert table.mapped[1] == PAGE
