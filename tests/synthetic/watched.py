"""What `LinuxGuest` leaves out of the kernel's own memory: counters, zones, slab caches, the pages of processes."""

from __future__ import annotations

from collections.abc import Mapping

from tests.synthetic.guest import DIRECT
from tests.synthetic.layout import Layout, SyntheticProfile
from tests.synthetic.linux import LinuxGuest, Task
from tests.synthetic.ram import PageTables
from tests.synthetic.structs import NEWER
from vmi_inside.errors import NoMember
from vmi_inside.kernel import Kernel

_LAYOUT = """
counter 8
    counter 0 i64
free_area 24
    nr_free 16 u64
zone 400
    _watermark 0 u64[4]
    watermark_boost 32 u64
    zone_start_pfn 40 u64
    managed_pages 48 counter
    present_pages 56 u64
    name 64 *char
    free_area 72 free_area[11]
pglist_data 900
    node_zones 8 zone[2]
super_block 64
    s_inodes 16 list_head
inode 64
    i_mapping 8 *address_space
    i_sb_list 16 list_head
    i_ino 32 u64
address_space 64
    nrpages 24 u64
hstate 128
    order 8 u32
    nr_huge_pages 16 u64
    free_huge_pages 24 u64
    resv_huge_pages 32 u64
    surplus_huge_pages 40 u64
order_objects 4
    x 0 u32
per_node 16
    barn 0 *void
    node 8 *kmem_cache_node
kmem_cache 512
    size 0x18 u32
    object_size 0x1c u32
    oo 0x34 order_objects
    name 0x60 *char
    list 0x68 list_head
    {nodes}
kmem_cache_node 64
    nr_partial 8 u64
    partial 16 list_head
    nr_slabs 32 counter
    total_objects 40 counter
{slab} 64
    slab_list 8 list_head
    inuse 40 u32:16+0
    objects 40 u32:15+16
"""
_PAGE = """
page 64
    flags 0 u64
    {link} 8 u64
    _mapcount 48 atomic
folio 256
    _entire_mapcount 88 atomic
"""
_MM = """
    hiwater_rss 0xa8 u64
    hiwater_vm 0xb0 u64
    locked_vm 0xc0 u64
    pinned_vm 0xc8 counter
    data_vm 0xd0 u64
    exec_vm 0xd8 u64
    stack_vm 0xe0 u64
    pgtables_bytes 0x60 counter
    hugetlb_usage 0x3e0 counter
    start_code 0xf8 u64
    end_code 0x100 u64
"""
NODE_ITEMS = (
    "NR_INACTIVE_ANON", "NR_ACTIVE_ANON", "NR_INACTIVE_FILE", "NR_ACTIVE_FILE", "NR_UNEVICTABLE",
    "NR_SLAB_RECLAIMABLE_B", "NR_SLAB_UNRECLAIMABLE_B", "NR_ANON_MAPPED", "NR_FILE_MAPPED", "NR_FILE_PAGES",
    "NR_FILE_DIRTY", "NR_WRITEBACK", "NR_SHMEM", "NR_KERNEL_MISC_RECLAIMABLE", "NR_KERNEL_STACK_KB", "NR_ANON_THPS",
    "NR_PAGETABLE", "NR_SWAPCACHE", "NR_VM_NODE_STAT_ITEMS",
)  # fmt: skip
ZONE_ITEMS = ("NR_FREE_PAGES", "NR_MLOCK", "NR_VM_ZONE_STAT_ITEMS")
VMEMMAP = 0xFFFF_EA00_0000_0000


class EnumProfile(SyntheticProfile):
    """A profile with enums too."""

    def __init__(self, layout: Layout, symbols: dict[str, int]) -> None:
        super().__init__(layout)
        self.symbols = symbols
        self.enums: dict[str, dict[str, int]] = {}

    def enum(self, *names: str) -> Mapping[str, int]:
        for name in names:
            if name in self.enums:
                return self.enums[name]
        raise NoMember(" or ".join(names))

    def enumerator(self, *names: str) -> int | None:
        for name in names:
            for listed in self.enums.values():
                if name in listed:
                    return listed[name]
        return None


class WatchedGuest(LinuxGuest):
    """A guest with counters of its memory, slab caches, and processes whose pages are counted."""

    def __init__(self, levels: int = 4, *, older: bool = False, scattered: bool = False, seed: int = 1) -> None:
        super().__init__(levels, older=older, scattered=scattered, seed=seed)
        self._sources: list[str] = []
        self.profile: EnumProfile = EnumProfile(self.profile.layout, self.profile.symbols)
        self.profile.enums = {
            "pg_level": {"PG_LEVEL_4K": 1, "PG_LEVEL_2M": 2, "PG_LEVEL_1G": 3},
            "zone_watermarks": {"WMARK_MIN": 0, "WMARK_LOW": 1},
            "node_stat_item": {name: at for at, name in enumerate(NODE_ITEMS) if not older or name != "NR_SWAPCACHE"},
            "zone_stat_item": {name: at for at, name in enumerate(ZONE_ITEMS)},
            "pageflags": {"PG_head": 6},
        }
        self.kernel = Kernel(self.space, self.profile)  # type: ignore[arg-type]  # all of a Profile that is asked here
        self.learn(
            _LAYOUT.format(slab="page" if older else "slab", nodes="node 0xd8 *kmem_cache_node[4]" if older
                           else "per_node 0xd8 per_node[4]"),
            _PAGE.format(link="compound_head" if older else "compound_info") if not older else "",
        )  # fmt: skip

    def learn(self, *sources: str) -> None:
        """Know these structs too."""
        self._sources += sources
        names = Layout(*sources).structs
        whole = Layout(NEWER, *self._sources)
        self.profile.layout.structs.update({name: whole.structs[name] for name in names})

    def number(self, symbol: str, value: int, size: int = 8) -> int:
        """A global number."""
        at = self.global_(symbol, size)
        self.write(at, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))
        return at

    def counted(self, **counts: int) -> None:
        """The kernel's counters: of nodes and zones, all others 0."""
        for symbol, enum in (("vm_node_stat", "node_stat_item"), ("vm_zone_stat", "zone_stat_item")):
            at = self.global_(symbol, 8 * 64)
            for name, item in self.profile.enums[enum].items():
                self.word(at + 8 * item, counts.get(name, 0))

    def listed(self, head: int, nodes: list[int]) -> None:
        """A circular list."""
        self.chain(head, nodes, head)

    # -- pages of processes -----------------------------------------------------------------------------------------

    def process(self, pid: int, pages: dict[int, int], *, huge: dict[int, int] | None = None, **members: int) -> Task:
        """A process with page tables of its own: entries by user address, and entries of 2 MiB."""
        if "hiwater_rss" not in self.profile.struct("mm_struct").members:
            source = NEWER[NEWER.index("mm_struct 1000") :]
            self.learn(source[: source.index("kthread 128")] + _MM)
        found = self.task(pid, f"p{pid}")
        self.memory_of(found, b"p\0")
        user = PageTables(self.ram, self.tables.levels)
        user.share(self.tables)
        for va, entry in pages.items():
            user.put(va, 1, entry)
        for va, entry in (huge or {}).items():
            user.put(va, 2, entry)
        self.put("mm_struct", found.mm, pgd=DIRECT + user.root, **members)
        self.user = user
        return found

    def pages(self, **flags: int) -> None:
        """Room for a `struct page` of each frame below 48 MiB; mapped by nobody."""
        self.number("vmemmap_base", VMEMMAP)
        self.number("huge_zero_pfn", (1 << 64) - 1)
        for number in range((48 << 20 >> 12) * 64 >> 12):
            frame = self.ram.frames()
            self.tables.map(VMEMMAP + 4096 * number, frame)
            self._where[VMEMMAP + 4096 * number] = frame
            for at in range(0, 4096, 64):
                self.poke("page", VMEMMAP + 4096 * number + at, "_mapcount.counter", -1)

    def mapped_by(self, pfn: int, count: int) -> None:
        self.poke("page", VMEMMAP + 64 * pfn, "_mapcount.counter", count - 1)
