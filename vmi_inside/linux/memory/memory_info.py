"""The memory of the whole system and what it is used for, as /proc/meminfo shows it. One row.

Knows how the kernel makes that file's numbers (fs/proc/meminfo.c, mm/show_mem.c `si_mem_available`, mm/util.c
`vm_commit_limit`, block/bdev.c `nr_blockdev_pages`). The counts themselves are `vmstat`'s knowledge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.errors import MemoryFault, NoMember, ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux.memory import vmstat
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Faults, Table, text
from vmi_inside.types import I64, PAGE_SHIFT, PAGE_SIZE


class MemoryInfo(Table):
    """One row. Bytes, but for the numbers of huge pages; osquery's column names where it has them."""

    memory_total: I64
    memory_free: I64
    memory_available: I64  # without swapping, as the kernel estimates it
    buffers: I64
    cached: I64
    swap_cached: I64
    active: I64
    inactive: I64
    active_anon: I64
    inactive_anon: I64
    active_file: I64
    inactive_file: I64
    unevictable: I64
    mlocked: I64
    swap_total: I64
    swap_free: I64
    dirty: I64
    writeback: I64
    anon_pages: I64
    mapped: I64
    shmem: I64
    k_reclaimable: I64
    slab: I64
    s_reclaimable: I64
    s_unreclaim: I64
    kernel_stack: I64
    page_tables: I64
    sec_page_tables: I64
    bounce: I64
    commit_limit: I64
    committed: I64
    vmalloc_used: I64
    percpu: I64
    hardware_corrupted: I64
    anon_huge_pages: I64
    shmem_huge_pages: I64
    shmem_pmd_mapped: I64
    file_huge_pages: I64
    file_pmd_mapped: I64
    cma_total: I64
    cma_free: I64
    huge_pages_total: I64  # how many, of the default size
    huge_pages_free: I64
    huge_pages_reserved: I64
    huge_pages_surplus: I64
    huge_page_size: I64
    hugetlb: I64  # huge pages of all sizes
    direct_map_4k: I64
    direct_map_2m: I64
    direct_map_1g: I64


#: Globals that are read, all of 64 bits.
_GLOBALS: Final = (
    "_totalram_pages", "totalreserve_pages", "total_swap_pages", "nr_swap_pages", "sysctl_overcommit_kbytes",
    "nr_vmalloc_pages", "num_poisoned_pages", "totalcma_pages", "pcpu_nr_populated",
)  # fmt: skip
#: How many sizes of huge pages there are at the most (HUGE_MAX_HSTATE).
_HSTATES: Final = 16
_SWAP_FILES: Final = 32  # MAX_SWAPFILES
_SPACES: Final = 1 << 16
_INODE_LIMIT: Final = 1 << 16
_HUGE_ORDER: Final = 9  # HPAGE_PMD_ORDER
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1  # what a column can hold


class _Info:
    """One reading; each part is read when first asked for."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.count = vmstat.counters(kernel)
        self.value, _ = vmstat.globals_read(kernel, _GLOBALS)
        self.faults = list(self.count.faults)

    @cached_property
    def buffers(self) -> int:
        """Pages in the caches of block devices: of all inodes of their file system."""
        kernel = self.kernel
        inode = kernel.struct("inode")
        block = kernel.structs("super_block", [kernel.pointer("blockdev_superblock")])
        head = int(block.at("s_inodes")[0])
        found = walk.serial(kernel.space, head, what="inodes of block devices", limit=_INODE_LIMIT)
        self.faults += found.faults
        rows = kernel.structs(inode, found.address - np.uint64(inode.member("i_sb_list").offset))
        mappings = rows.follow("i_mapping")
        total = int(mappings.unsigned("nrpages").sum(dtype=np.uint64))
        if rows.fault.any() or mappings.fault.any():
            self.faults.append("buffers: an inode could not be read")
        return total

    @cached_property
    def swap_cached(self) -> int:
        """Pages of the swap cache: counted since 5.12, the sum of its address spaces before."""
        if "NR_SWAPCACHE" in self.count:
            return self.count["NR_SWAPCACHE"]
        kernel = self.kernel
        files = np.arange(_SWAP_FILES, dtype=np.uint64)
        first, _ = kernel.space.gather(kernel.symbol("swapper_spaces") + 8 * files, 8)
        sizes, _ = kernel.space.gather(kernel.symbol("nr_swapper_spaces") + 4 * files, 4)
        base, size = first.view("<u8")[:, 0], np.minimum(sizes.view("<u4")[:, 0], _SPACES).astype(np.int64)
        size[base == 0] = 0
        within = np.arange(int(size.sum())) - np.repeat(np.cumsum(size) - size, size)
        space = kernel.struct("address_space")
        rows = kernel.structs(space, np.repeat(base, size) + within.astype(np.uint64) * np.uint64(space.size))
        return int(rows.unsigned("nrpages").sum(dtype=np.uint64))

    @cached_property
    def available(self) -> int:
        """Pages that could be had without swapping (`si_mem_available`)."""
        zones = vmstat.Zones(self.kernel)
        low = zones.low_watermark
        self.faults += zones.faults
        if zones.zones.fault.any():
            self.faults.append("memory_available: a zone could not be read")
        cache = self.count["NR_ACTIVE_FILE"] + self.count["NR_INACTIVE_FILE"]
        kernel = self.reclaimable
        free = self.count["NR_FREE_PAGES"] - self.value["totalreserve_pages"]
        return max(free + cache - min(cache // 2, low) + kernel - min(kernel // 2, low), 0)

    @property
    def reclaimable(self) -> int:
        """Pages of the kernel that it could give up."""
        return self.count["NR_SLAB_RECLAIMABLE_B"] + self.count["NR_KERNEL_MISC_RECLAIMABLE"]

    @property
    def cached(self) -> int:
        """Pages of files, without buffers and the swap cache."""
        return max(self.count["NR_FILE_PAGES"] - self.swap_cached - self.buffers, 0)

    @cached_property
    def committed(self) -> int:
        """Pages that were promised."""
        counter = self.kernel.object("percpu_counter", "vm_committed_as")
        total = vmstat.percpu_sum(self.kernel, counter)
        if counter.fault.any():
            self.faults.append("committed: vm_committed_as unreadable")
        return total

    @property
    def commit_limit(self) -> int:
        """Pages that may be promised where overcommitting is off."""
        fixed = self.value["sysctl_overcommit_kbytes"]
        if fixed:
            allowed = fixed >> (PAGE_SHIFT - 10)
        else:
            ratio = self.kernel.number(4, "sysctl_overcommit_ratio")
            allowed = (self.value["_totalram_pages"] - self.hugetlb // PAGE_SIZE) * ratio // 100
        return allowed + self.value["total_swap_pages"]

    @property
    def percpu(self) -> int:
        """Pages of per-CPU memory (`pcpu_nr_pages`)."""
        return self.value["pcpu_nr_populated"] * self.kernel.number(4, "pcpu_nr_units")

    @cached_property
    def hstates(self) -> Structs:
        """Sizes of huge pages."""
        kernel = self.kernel
        count = min(kernel.number(4, "hugetlb_max_hstate"), _HSTATES)
        state = kernel.struct("hstate")
        address = kernel.symbol("hstates") + np.uint64(state.size) * np.arange(count, dtype=np.uint64)
        names = ("order", "nr_huge_pages", "free_huge_pages", "resv_huge_pages", "surplus_huge_pages")
        return kernel.structs(state, address).fetch(*names)

    @property
    def hugetlb(self) -> int:
        """Bytes in huge pages of all sizes."""
        shift = PAGE_SHIFT + np.minimum(self.hstates.number("order"), 20)
        return int((self.hstates.number("nr_huge_pages") << shift).sum())

    def huge(self, name: str) -> int:
        """A member of the default size's `hstate`; 0 where there is none."""
        at = self.kernel.number(4, "default_hstate_idx")
        return int(self.hstates.number(name)[at]) if at < len(self.hstates) else 0

    @property
    def huge_page_size(self) -> int:
        """Bytes in a huge page of the default size."""
        return PAGE_SIZE << min(self.huge("order"), 20) if len(self.hstates) else 0

    def thp(self, name: str) -> int:
        """Bytes in transparent huge pages: counted in small pages since 5.12, when the swap cache was counted too."""
        shift = 0 if "NR_SWAPCACHE" in self.count else _HUGE_ORDER
        return self.count[name] * PAGE_SIZE << shift

    def direct(self, level: str) -> int:
        """Bytes of RAM that are mapped in pages of this size (`direct_pages_count`, arch/x86/mm/pat/set_memory.c)."""
        number = self.kernel.profile.enumerator(f"PG_LEVEL_{level}")
        if number is None or not 0 < number < 8:
            raise NoMember(f"PG_LEVEL_{level}")
        count = self.kernel.space.read_u64(self.kernel.symbol("direct_pages_count") + 8 * number)
        return count << PAGE_SHIFT + 9 * (number - 1)


def _counted(*names: str) -> Callable[[_Info], int]:
    return lambda info: vmstat.pages(sum(info.count[name] for name in names))


def _global(name: str) -> Callable[[_Info], int]:
    return lambda info: vmstat.pages(max(info.value.get(name, 0), 0))


_COLUMNS: Final[dict[str, Callable[[_Info], int]]] = {
    "memory_total": lambda info: vmstat.pages(info.value["_totalram_pages"]),
    "memory_free": _counted("NR_FREE_PAGES"),
    "memory_available": lambda info: vmstat.pages(info.available),
    "buffers": lambda info: vmstat.pages(info.buffers),
    "cached": lambda info: vmstat.pages(info.cached),
    "swap_cached": lambda info: vmstat.pages(info.swap_cached),
    "active": _counted("NR_ACTIVE_ANON", "NR_ACTIVE_FILE"),
    "inactive": _counted("NR_INACTIVE_ANON", "NR_INACTIVE_FILE"),
    "active_anon": _counted("NR_ACTIVE_ANON"),
    "inactive_anon": _counted("NR_INACTIVE_ANON"),
    "active_file": _counted("NR_ACTIVE_FILE"),
    "inactive_file": _counted("NR_INACTIVE_FILE"),
    "unevictable": _counted("NR_UNEVICTABLE"),
    "mlocked": _counted("NR_MLOCK"),
    "swap_total": _global("total_swap_pages"),
    "swap_free": _global("nr_swap_pages"),
    "dirty": _counted("NR_FILE_DIRTY"),
    "writeback": _counted("NR_WRITEBACK"),
    "anon_pages": _counted("NR_ANON_MAPPED"),
    "mapped": _counted("NR_FILE_MAPPED"),
    "shmem": _counted("NR_SHMEM"),
    "k_reclaimable": lambda info: vmstat.pages(info.reclaimable),
    "slab": _counted("NR_SLAB_RECLAIMABLE_B", "NR_SLAB_UNRECLAIMABLE_B"),
    "s_reclaimable": _counted("NR_SLAB_RECLAIMABLE_B"),
    "s_unreclaim": _counted("NR_SLAB_UNRECLAIMABLE_B"),
    "kernel_stack": lambda info: info.count["NR_KERNEL_STACK_KB"] << 10,
    "page_tables": _counted("NR_PAGETABLE"),
    "sec_page_tables": _counted("NR_SECONDARY_PAGETABLE"),
    "bounce": _counted("NR_BOUNCE"),
    "commit_limit": lambda info: vmstat.pages(info.commit_limit),
    "committed": lambda info: vmstat.pages(info.committed),
    "vmalloc_used": lambda info: vmstat.pages(info.value.get("nr_vmalloc_pages", 0) or info.count["NR_VMALLOC"]),
    "percpu": lambda info: vmstat.pages(info.percpu),
    "hardware_corrupted": _global("num_poisoned_pages"),
    "anon_huge_pages": lambda info: info.thp("NR_ANON_THPS"),
    "shmem_huge_pages": lambda info: info.thp("NR_SHMEM_THPS"),
    "shmem_pmd_mapped": lambda info: info.thp("NR_SHMEM_PMDMAPPED"),
    "file_huge_pages": lambda info: info.thp("NR_FILE_THPS"),
    "file_pmd_mapped": lambda info: info.thp("NR_FILE_PMDMAPPED"),
    "cma_total": _global("totalcma_pages"),
    "cma_free": _counted("NR_FREE_CMA_PAGES"),
    "huge_pages_total": lambda info: info.huge("nr_huge_pages"),
    "huge_pages_free": lambda info: info.huge("free_huge_pages"),
    "huge_pages_reserved": lambda info: info.huge("resv_huge_pages"),
    "huge_pages_surplus": lambda info: info.huge("surplus_huge_pages"),
    "huge_page_size": lambda info: info.huge_page_size,
    "hugetlb": lambda info: info.hugetlb,
    "direct_map_4k": lambda info: info.direct("4K"),
    "direct_map_2m": lambda info: info.direct("2M"),
    "direct_map_1g": lambda info: info.direct("1G"),
}


def memory_info(kernel: Kernel, columns: Iterable[str] | None = None) -> MemoryInfo:
    """The system's memory: one row. What cannot be read is 0, and named in `fault`.

    Raises `AttributeError` for a column that the table does not have, `NoSymbol` where the kernel has no counters.
    """
    wanted = list(MemoryInfo.schema if columns is None else columns)
    MemoryInfo.check(wanted)
    faults = Faults(1)
    data: dict[str, Column] = {}
    with kernel.operation():
        info = _Info(kernel)
        for name in wanted:
            if name == "fault":
                continue
            try:
                value = _COLUMNS[name](info)
            except (ProfileError, MemoryFault, KeyError) as error:
                words = f"no {error}" if isinstance(error, KeyError) else str(error)
                faults.mark(np.ones(1, dtype=np.bool_), f"{name}: {words}")
                value = 0
            data[name] = np.array([min(max(value, _LEAST), _MOST)], dtype=np.int64)
        for word in info.faults:
            faults.mark(np.ones(1, dtype=np.bool_), word)
    data["fault"] = text(faults.column())
    return MemoryInfo(data)
