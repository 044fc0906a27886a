"""Inodes that the kernel has in memory, of all mounted file systems.

Knows the list of super blocks, each one's list of inodes (`super_block.s_inodes`), its mounts, and the dentries of an
inode (include/linux/fs.h, fs/mount.h, include/linux/dcache.h). Pipes and sockets are on no such list: who has them open
is `open_files`' knowledge. What an inode's file holds is left to others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.errors import MemoryFault, NoSymbol
from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs
from vmi_inside.types import I64, U64, Mask

#: Super blocks: each mount of a container may have one.
_BLOCK_LIMIT: Final = 1 << 16
#: SB_NOUSER: a file system that cannot be mounted (include/linux/fs.h).
_NOUSER: Final = np.uint64(1 << 31)
_REGULAR: Final = 0o10
#: Error pointers: MNT_NS_INTERNAL is one.
ERRORS: Final = np.uint64(-4096 & (1 << 64) - 1)


@dataclass(frozen=True, slots=True)
class Inodes:
    """Inodes (n rows), one that has several names with each of them, and the super block's row in `blocks` (k rows).

    `dentry` (n,) is the name, 0 where there is none. `mount` (k,) is the `struct mount` that shows a file system best:
    at its root, and in the initial mount namespace, where there is such; 0 where there is none at all. `bare` (n,)
    says which are of file systems that cannot be mounted, and no files: block devices' caches, anonymous inodes.
    """

    inodes: Structs
    owner: I64
    blocks: Structs
    mount: U64
    dentry: U64
    bare: Mask
    faults: tuple[str, ...]


def inodes(kernel: Kernel) -> Inodes:
    """All inodes in memory. Raises `NoSymbol` where the kernel has no list of super blocks."""
    block, inode = kernel.struct("super_block"), kernel.struct("inode")
    listed = walk.serial(kernel.space, kernel.symbol("super_blocks"), what="super blocks", limit=_BLOCK_LIMIT)
    blocks = kernel.structs(block, listed.address - np.uint64(block.member("s_list").offset))
    blocks.fetch("s_dev", "s_flags", "s_root", "s_type")
    found = walk.dense(kernel.space, blocks.at("s_inodes"), what="inodes")
    rows = kernel.structs(inode, found.address - np.uint64(inode.member("i_sb_list").offset))
    rows.fetch("i_mode", "i_sb", "i_dentry.first")
    mount, cut = _mounts(kernel, blocks)
    row, dentry, torn = _dentries(kernel, rows)
    rows, owner = rows.select(row), found.owner[row]
    bare = (blocks.unsigned("s_flags")[owner] & _NOUSER != 0) & (rows.number("i_mode") >> 12 != _REGULAR)
    return Inodes(rows, owner, blocks, mount, dentry, bare, (*listed.faults, *found.faults, *cut, *torn))


def _mounts(kernel: Kernel, blocks: Structs) -> tuple[U64, tuple[str, ...]]:
    """Of each super block the mount that shows it best."""
    mount = kernel.struct("mount")
    if mount.has("mnt_next_for_sb"):  # since 6.18
        first, step = blocks.pointer("s_mounts"), mount.member("mnt_next_for_sb").offset
        found = walk.chains(kernel.space, first, step, what="mounts of a file system")
        address = found.address
    else:
        head = blocks.at("s_mounts")
        first = kernel.structs("list_head", head).pointer("next")
        found = walk.chains(kernel.space, first, end=head, what="mounts of a file system")
        address = found.address - np.uint64(mount.member("mnt_instance").offset)
    rows = kernel.structs(mount, address).fetch("mnt_ns", "mnt.mnt_root", "mnt_id")
    space = rows.pointer("mnt_ns")
    home = _namespace(kernel)
    # The best one comes last, and stays.
    order = np.lexsort((
        -rows.number("mnt_id"), rows.pointer("mnt.mnt_root") == blocks.pointer("s_root")[found.owner],
        (space != 0) & (space < ERRORS), space == np.uint64(home),
    ))  # fmt: skip
    out = np.zeros(len(blocks), dtype=np.uint64)
    out[found.owner[order]] = address[order]
    return out, found.faults


def _namespace(kernel: Kernel) -> int:
    """The initial mount namespace: the one that process 1 began in, and kernel threads stay in."""
    try:
        return int(kernel.object("nsproxy", "init_nsproxy").pointer("mnt_ns")[0])
    except (NoSymbol, MemoryFault):
        return 0


def _dentries(kernel: Kernel, rows: Structs) -> tuple[I64, U64, tuple[str, ...]]:
    """Each inode's row with each dentry that a name leads to; with another one, or 0, where there is no such."""
    dentry = kernel.struct("dentry")
    alias = np.uint64(dentry.member("d_u.d_alias", "d_alias").offset)
    found = walk.chains(kernel.space, rows.pointer("i_dentry.first"), what="names of an inode")
    address, owner = found.address - alias, found.owner
    named = kernel.structs(dentry, address).pointer("d_hash.pprev") != 0
    has_name = np.zeros(len(rows), dtype=np.bool_)
    has_name[owner[named]] = True
    others = np.flatnonzero(~named & ~has_name[owner])
    _, first = np.unique(owner[others], return_index=True)
    chosen = np.concatenate((np.flatnonzero(named), others[first]))
    bare = np.ones(len(rows), dtype=np.bool_)
    bare[owner] = False
    row = np.concatenate((owner[chosen], np.flatnonzero(bare)))
    out = np.concatenate((address[chosen], np.zeros(int(bare.sum()), dtype=np.uint64)))
    order = np.argsort(row, kind="stable")
    return row[order], out[order], found.faults
