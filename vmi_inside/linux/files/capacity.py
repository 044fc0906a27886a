"""How large file systems are and how full, as statfs(2) says: of tmpfs and ext4, which keep it in memory.

Knows `shmem_sb_info` (include/linux/shmem_fs.h), `ext4_sb_info` and `ext4_super_block` (fs/ext4/ext4.h), and how the
two count (`shmem_statfs`, `ext4_statfs`). Which mounts show a file system is left to others.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux import percpu
from vmi_inside.linux.symbols.module_types import module_types
from vmi_inside.profile.ctypes import CType
from vmi_inside.structs import Structs
from vmi_inside.types import I64, Mask

#: What is counted, in the order of statfs: blocks, those free, those for everybody, inodes, those free.
COUNTS: Final = ("blocks", "blocks_free", "blocks_available", "inodes", "inodes_free")
#: Since 6.6 tmpfs counts bytes, and an inode as so many (BOGO_INODE_SIZE, mm/shmem.c).
_INODE_SIZE: Final = 1024
#: EXT4_MOUNT_MINIX_DF: what the file system needs itself counts as blocks, too.
_MINIX_DF: Final = 0x80
#: Clusters of more than 2^20 blocks are none.
_CLUSTER_LIMIT: Final = 20


def capacity(kernel: Kernel, blocks: Structs) -> tuple[dict[str, I64], Mask]:
    """`COUNTS` of `n` super blocks, -1 where they are not known, and (n,) bool: which could not be read."""
    out = {name: np.full(len(blocks), -1, dtype=np.int64) for name in COUNTS}
    wrong = np.zeros(len(blocks), dtype=np.bool_)
    for known, symbol, module, holder in (
        (_tmpfs, "shmem_ops", "", "shmem_sb_info"),
        (_ext4, "ext4_sops", "ext4", "ext4_sb_info"),
    ):
        operations, ctype = _driver(kernel, symbol, module, holder)
        rows = np.flatnonzero(blocks.pointer("s_op") == np.uint64(operations)) if operations else ()
        if ctype is None or not len(rows):
            continue
        info = blocks.select(np.asarray(rows)).follow("s_fs_info", ctype)
        counts, bad = known(kernel, info)
        for name, column in zip(COUNTS, counts, strict=True):
            out[name][rows] = np.where(bad, -1, column)
        wrong[rows] = bad
    return out, wrong


def _driver(kernel: Kernel, symbol: str, module: str, holder: str) -> tuple[int, CType | None]:
    """A file system's operations and what it keeps of each mount, of the kernel's own or of a module; 0 for neither."""
    found = kernel.profile.find_symbol(symbol)
    if found is not None:
        return found, kernel.find_struct(holder)
    loaded = module_types(kernel, module) if module else None
    return (loaded.symbols.get(symbol, 0), loaded.struct(holder)) if loaded else (0, None)


def _sum(kernel: Kernel, rows: Structs, name: str) -> tuple[I64, Mask]:
    """A `percpu_counter` of each row, and which could not be read."""
    rows.fetch(f"{name}.count", f"{name}.counters")
    more, whole = percpu.pending(kernel, rows.pointer(f"{name}.counters"))
    return rows.number(f"{name}.count") + more, ~whole | rows.fault


def _tmpfs(kernel: Kernel, info: Structs) -> tuple[tuple[I64, ...], Mask]:
    info.fetch("max_blocks", "max_inodes", ("free_inodes", "free_ispace"))
    used, bad = _sum(kernel, info, "used_blocks")
    blocks, inodes = info.number("max_blocks"), info.number("max_inodes")
    free = np.where(blocks > 0, blocks - used, 0)
    left = info.number(("free_inodes", "free_ispace"))
    left = left if info.has("free_inodes") else left // _INODE_SIZE
    return (blocks, free, free, inodes, np.where(inodes > 0, left, 0)), bad | info.fault


def _ext4(kernel: Kernel, info: Structs) -> tuple[tuple[I64, ...], Mask]:
    info.fetch("s_es", "s_overhead", "s_cluster_bits", "s_mount_opt", "s_resv_clusters.counter")
    disk = info.follow("s_es").fetch(
        "s_blocks_count_lo", "s_blocks_count_hi", "s_r_blocks_count_lo", "s_r_blocks_count_hi", "s_inodes_count"
    )  # fmt: skip
    free, bad = _sum(kernel, info, "s_freeclusters_counter")
    promised, unread = _sum(kernel, info, "s_dirtyclusters_counter")
    free, bad = np.maximum(free, 0) - np.maximum(promised, 0), bad | unread
    inodes, wrong = _sum(kernel, info, "s_freeinodes_counter")
    bits = info.number("s_cluster_bits")
    wrong |= bits > _CLUSTER_LIMIT
    bits = np.minimum(bits, _CLUSTER_LIMIT)
    overhead = np.where(info.number("s_mount_opt") & _MINIX_DF, 0, info.number("s_overhead"))
    free = np.maximum(free, 0) << bits
    kept = _wide(disk, "s_r_blocks_count") + (info.number("s_resv_clusters.counter") << bits)
    blocks = _wide(disk, "s_blocks_count") - (overhead << bits)
    counts = (blocks, free, np.maximum(free - kept, 0), disk.number("s_inodes_count"), np.maximum(inodes, 0))
    return counts, bad | wrong | info.fault | disk.fault


def _wide(rows: Structs, name: str) -> I64:
    """A number that is kept in two halves."""
    return rows.number(f"{name}_lo") | rows.number(f"{name}_hi") << 32
