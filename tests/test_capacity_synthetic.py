"""How full made-up file systems are, and what those say that lie."""

from __future__ import annotations

import numpy as np
import pytest

from tests.synthetic import LinuxGuest
from tests.synthetic.guest import CPUS, HOLE, NOWHERE
from vmi_inside.linux.files.capacity import COUNTS, capacity

STRUCTS = """
super_block 100
    s_op 8 *void
    s_fs_info 16 *void
shmem_sb_info 80
    max_blocks 0 u64
    used_blocks 8 percpu_counter
    max_inodes 48 u64
    free_ispace 56 u64
atomic_long 8
    counter 0 i64
ext4_super_block 1024
    s_inodes_count 0 u32
    s_blocks_count_lo 4 u32
    s_r_blocks_count_lo 8 u32
    s_blocks_count_hi 336 u32
    s_r_blocks_count_hi 340 u32
ext4_sb_info 400
    s_overhead 72 u64
    s_cluster_bits 84 u32
    s_es 104 *ext4_super_block
    s_mount_opt 120 u32
    s_resv_clusters 152 atomic_long
    s_freeclusters_counter 224 percpu_counter
    s_freeinodes_counter 264 percpu_counter
    s_dirtyclusters_counter 344 percpu_counter
"""


class DiskGuest(LinuxGuest):
    """File systems, with counters of which each CPU keeps a part."""

    def __init__(self) -> None:
        super().__init__()
        self.profile.extend(STRUCTS)
        self.tmpfs, self.ext4 = self.global_("shmem_ops", 64), self.global_("ext4_sops", 64)
        self.blocks: list[int] = []

    def count(self, struct: str, at: int, name: str, total: int) -> None:
        """A counter of that total, of which CPUs have taken some and given more."""
        self.poke(struct, at, f"{name}.count", total - 3 * (CPUS - 1))
        self.poke(struct, at, f"{name}.counters", self._percpu_next)
        for cpu, base in enumerate(self.percpu):
            part = 6 * (CPUS - 1) if not cpu else -3
            self.write(base + self._percpu_next - 0x1000, part.to_bytes(4, "little", signed=True))
        self._percpu_next += 8

    def mount_tmpfs(self, used: int, **members: int) -> int:
        info = self.new("shmem_sb_info", **members)
        self.count("shmem_sb_info", info, "used_blocks", used)
        self.blocks.append(self.new("super_block", s_op=self.tmpfs, s_fs_info=info))
        return info

    def mount_ext4(self, free: int, dirty: int, inodes: int, disk: dict[str, int], **members: int) -> int:
        es = self.new("ext4_super_block", **disk)
        info = self.new("ext4_sb_info", s_es=es, **members)
        for name, total in (("freeclusters", free), ("dirtyclusters", dirty), ("freeinodes", inodes)):
            self.count("ext4_sb_info", info, f"s_{name}_counter", total)
        self.blocks.append(self.new("super_block", s_op=self.ext4, s_fs_info=info))
        return info

    def read(self) -> tuple[list[tuple[int, ...]], list[bool]]:
        counts, wrong = capacity(self.kernel, self.kernel.structs("super_block", self.blocks))
        return list(zip(*(counts[name].tolist() for name in COUNTS), strict=True)), wrong.tolist()


DISK = {"s_inodes_count": 500, "s_blocks_count_lo": 1000, "s_blocks_count_hi": 1, "s_r_blocks_count_lo": 50}


def planted() -> DiskGuest:
    guest = DiskGuest()
    guest.mount_tmpfs(30, max_blocks=100, max_inodes=10, free_ispace=7 * 1024 + 5)
    guest.mount_tmpfs(30)
    guest.mount_ext4(400, 20, 450, DISK, s_overhead=40, s_resv_clusters__counter=8)
    guest.mount_ext4(400, 20, -5, DISK, s_overhead=40, s_cluster_bits=4, s_mount_opt=0x80)
    guest.mount_ext4(40, 60, 450, DISK)
    guest.blocks.append(guest.new("super_block", s_op=NOWHERE))
    return guest


def test_counts() -> None:
    total = (1 << 32) + 1000
    assert planted().read() == (
        [
            (100, 70, 70, 10, 7),
            (0, 0, 0, 0, 0),
            (total - 40, 380, 322, 500, 450),
            (total, 380 * 16, 380 * 16 - 50, 500, 0),
            (total, 0, 0, 500, 450),
            (-1, -1, -1, -1, -1),
        ],
        [False] * 6,
    )


def test_no_file_systems() -> None:
    assert DiskGuest().read() == ([], [])


@pytest.mark.parametrize("wild", [NOWHERE, HOLE, (1 << 64) - 8])
def test_wild_pointers_mark_their_rows_only(wild: int) -> None:
    guest = planted()
    guest.put("super_block", guest.blocks[0], s_fs_info=wild)
    info = guest.space.read_u64(guest.blocks[2] + 16)
    guest.put("ext4_sb_info", info, s_es=wild)
    info = guest.space.read_u64(guest.blocks[3] + 16)
    guest.put("ext4_sb_info", info, s_freeinodes_counter__counters=wild, s_cluster_bits=(1 << 32) - 1)
    rows, wrong = guest.read()
    assert wrong == [True, False, True, True, False, False]
    assert [row == (-1,) * 5 for row in rows] == [*wrong[:5], True]


def test_rounds_do_not_grow_with_file_systems() -> None:
    guest = DiskGuest()
    for number in range(200):
        guest.mount_tmpfs(number, max_blocks=1000)
    guest.read()
    with guest.space.operation():
        guest.memory.reset()
        rows, _ = guest.read()
    assert np.array(rows)[:, 1].tolist() == [1000 - number for number in range(200)]
    assert guest.memory.gathers < 12
