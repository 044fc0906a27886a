"""Where mounts are found: in the namespaces that hold them, and on the file systems that they are mounts of.

Knows `mnt_namespace` and `mount` (fs/mount.h) and the list `super_blocks` (fs/super.c): a namespace's mounts are a list
up to 6.7 and a tree since; a file system's are a list, in newer kernels (7.2) one without a head. What a mount is, is
left to `mounts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside import rbtree, walk
from vmi_inside.errors import ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux.tasks import PIDTYPE_PID, pids
from vmi_inside.structs import Structs
from vmi_inside.types import I64, U64, Mask, distinct

SUPER_BLOCK_LIMIT: Final = 1 << 16
#: What stands for a namespace in mounts that the kernel keeps to itself: a small negative number (MNT_NS_INTERNAL).
_ERRORS: Final = np.uint64((1 << 64) - 4095)
#: MNT_CURSOR: no mount, but where a reader of /proc/PID/mounts has come to in the list (5.8 to 6.7).
_CURSOR: Final = 0x10000000


@dataclass(frozen=True, slots=True)
class Found:
    """Mounts (n,), in the order in which /proc shows them; `owner` (n,) the row of each in `namespaces`.

    `unlisted` (n,) says which are not where their namespace keeps its mounts, though their file system knows them and
    they name that namespace. `faults` says where something was cut.
    """

    mounts: Structs
    owner: I64
    namespaces: Structs
    unlisted: Mask
    faults: tuple[str, ...]


def mount_tree(kernel: Kernel) -> Found:
    """All mounts of all mount namespaces."""
    mount, namespace = kernel.struct("mount"), kernel.struct("mnt_namespace")
    known, faults = _of_file_systems(kernel)
    try:
        every = pids(kernel)
        _, _, tasks = every.tasks(kernel, PIDTYPE_PID)
        of_tasks = kernel.structs("nsproxy", distinct(tasks.pointer("nsproxy"))).pointer("mnt_ns")
        faults += every.faults
    except ProfileError as error:
        of_tasks, faults = np.empty(0, dtype=np.uint64), (*faults, f"mount namespaces of tasks: {error}")
    said = known.pointer("mnt_ns")
    address = distinct(np.concatenate((of_tasks, said)))
    address = address[(address != 0) & (address < _ERRORS)]
    namespaces = kernel.structs(namespace, address).fetch("ns.inum", "root")
    # The first namespace is made before all others.
    namespaces = namespaces.select(np.argsort(namespaces.number("ns.inum"), kind="stable"))
    address = namespaces.address
    if namespace.member("mounts").type.kind == "struct":  # a tree since 6.8; before, that name was a count's
        tree = rbtree.nodes(
            kernel.space, namespaces.pointer("mounts.rb_node"), kernel.struct("rb_node"), what="mounts of a namespace"
        )
        node, owner, cut = tree.address, tree.owner, tree.faults
        listed = kernel.structs(mount, node - np.uint64(mount.member("mnt_node").offset))
    else:
        head = namespaces.at("list")
        first = kernel.structs("list_head", head).pointer("next")
        walked = walk.chains(kernel.space, first, end=head, what="mounts of a namespace")
        order = np.argsort(walked.owner, kind="stable")
        node, owner, cut = walked.address[order], walked.owner[order], walked.faults
        listed = kernel.structs(mount, node - np.uint64(mount.member("mnt_list").offset))
        real = listed.number("mnt.mnt_flags") & _CURSOR == 0
        listed, owner = listed.select(real), owner[real]
    order = np.argsort(address)
    at = np.minimum(np.searchsorted(address[order], said), max(len(address) - 1, 0))
    ours = order[at] if len(address) else at
    missed = np.flatnonzero(
        (said != 0) & (said < _ERRORS) & ~np.isin(known.address, listed.address) & (len(address) > 0)
    )
    whole = kernel.structs(mount, np.concatenate((listed.address, known.address[missed])))
    unlisted = np.arange(len(whole)) >= len(listed)
    return Found(whole, np.concatenate((owner, ours[missed])), namespaces, unlisted, (*faults, *cut))


def file_systems(kernel: Kernel) -> tuple[Structs, tuple[str, ...]]:
    """All `super_block`s, mounted or the kernel's own, and what cut the list short."""
    block = kernel.struct("super_block")
    symbol = kernel.symbol("super_blocks")
    listed = walk.serial(kernel.space, symbol, what="super_blocks", limit=SUPER_BLOCK_LIMIT)
    return kernel.structs(block, listed.address - np.uint64(block.member("s_list").offset)), listed.faults


def _of_file_systems(kernel: Kernel) -> tuple[Structs, tuple[str, ...]]:
    """All mounts that file systems know of, those that the kernel keeps to itself too."""
    mount = kernel.struct("mount")
    blocks, faults = file_systems(kernel)
    block = blocks.type
    if block.member("s_mounts").type.kind == "struct":
        head = blocks.at("s_mounts")
        first = kernel.structs("list_head", head).pointer("next")
        link = mount.member("mnt_instance").offset
        walked = walk.chains(kernel.space, first, end=head, what="mounts of a file system")
        address: U64 = walked.address - np.uint64(link)
    else:
        link = mount.member("mnt_next_for_sb").offset
        walked = walk.chains(kernel.space, blocks.pointer("s_mounts"), link, what="mounts of a file system")
        address = walked.address
    return kernel.structs(mount, address), (*faults, *walked.faults)
