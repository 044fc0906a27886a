"""Mounts of all mount namespaces: what /proc/PID/mountinfo shows.

Knows what a mount and its file system say of themselves (fs/mount.h, include/linux/fs.h, fs/proc_namespace.c). Where
mounts are found is `mount_tree`'s knowledge, how full they are `capacity`'s. Options that a file system keeps to itself
(`mode=`, `errors=`) are not in the flags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.capacity import COUNTS, capacity
from vmi_inside.linux.files.mount_tree import Found, mount_tree
from vmi_inside.linux.files.opened import Opened
from vmi_inside.linux.files.paths import paths
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64


class Mounts(Table):
    """One row for each mount of each namespace; osquery's column names where it has them."""

    device: Text  # what it was mounted from: /dev/vda1, tmpfs, nfs:/export
    path: Text  # where, from the root of its namespace
    type: Text  # of the file system
    blocks_size: I64  # bytes of one block
    blocks: I64  # as statfs(2) says, of tmpfs and ext4; -1 of others, and so are the next four
    blocks_free: I64
    blocks_available: I64  # without those that are kept for root
    inodes: I64
    inodes_free: I64
    flags: Text  # of this mount: rw,nosuid,relatime
    super_flags: Text  # of the file system, for all its mounts: rw,sync
    root: Text  # the directory of the file system that is mounted
    propagation: Text  # shared:N, master:N, unbindable; empty for private ones
    id: I64
    parent: I64
    mnt_namespace: I64
    number: Text  # of the file system's device, major:minor
    address: U64  # of struct mount


#: MNT_* (include/linux/mount.h), in the order in which /proc shows them.
_MOUNT_FLAGS: Final = (
    (0x01, "nosuid"), (0x02, "nodev"), (0x04, "noexec"), (0x08, "noatime"), (0x10, "nodiratime"), (0x20, "relatime"),
    (0x80, "nosymfollow"),
)  # fmt: skip
_READONLY: Final = 0x40
#: SB_* (include/linux/fs.h).
_SUPER_FLAGS: Final = ((1 << 4, "sync"), (1 << 7, "dirsync"), (1 << 6, "mand"), (1 << 25, "lazytime"))
_SUPER_READONLY: Final = 1
_SHARED, _UNBINDABLE = 0x1000, 0x2000
_MINOR_BITS: Final = 20
_UNLINKED: Final = " (deleted)"
#: Both are Linux's limits of what a name may be (PATH_MAX, and file_system_type's are words).
_DEVICE_LIMIT, _TYPE_LIMIT = 4096, 64


class _View:
    """What hangs on the mounts, each fetched when first asked for."""

    def __init__(self, kernel: Kernel, found: Found, faults: Faults) -> None:
        self.kernel = kernel
        self.found = found
        self.faults = faults
        self.mounts = found.mounts.fetch("mnt.mnt_flags", "mnt.mnt_root", "mnt.mnt_sb", "mnt_id", "mnt_parent")
        faults.mark(self.mounts.fault, "mount unreadable")
        faults.mark(found.unlisted, "not in its namespace's list")

    @cached_property
    def blocks(self) -> Structs:
        """The file systems."""
        rows = self.mounts.follow("mnt.mnt_sb").fetch(
            "s_dev", "s_type", "s_flags", "s_blocksize", "s_root", "s_subtype"
        )
        self.faults.mark(rows.fault, "file system unreadable")
        return rows

    @cached_property
    def vfsmount(self) -> U64:
        """Addresses of what paths name mounts by."""
        return self.mounts.at("mnt")

    def path(self) -> Text:
        """Where each is mounted."""
        shown, whole = paths(self.kernel, self.mounts.pointer("mnt.mnt_root"), self.vfsmount)
        self.faults.mark(~whole, "path not whole")
        return text(shown)

    def root(self) -> Text:
        """Which directory of the file system each shows; of namespaces' files their name."""
        top = self.mounts.pointer("mnt.mnt_root")
        out = np.full(len(top), "/", dtype=object)
        rows = np.flatnonzero((top != self.blocks.pointer("s_root")) | (self.type == "nsfs"))
        at = Opened(self.kernel, top[rows], np.zeros(len(rows), dtype=np.uint64))
        out[rows] = [
            f"{each.removesuffix(_UNLINKED)}//deleted" if each.endswith(_UNLINKED) else each for each in at.path
        ]
        whole = np.ones(len(top), dtype=np.bool_)
        whole[rows] = at.path_whole
        self.faults.mark(~whole, "root not whole")
        return out

    @cached_property
    def type(self) -> Text:
        """Types of the file systems, with what FUSE puts behind: fuse.sshfs."""
        kind = self.blocks.follow("s_type")
        names, ok = self.kernel.strings(kind.pointer("name"), _TYPE_LIMIT)
        more, fine = self.kernel.strings(self.blocks.pointer("s_subtype"), _TYPE_LIMIT)
        self.faults.mark(kind.fault | ~ok | ~fine, "type unreadable")
        return text(f"{name}.{sub}" if sub else name for name, sub in zip(names, more, strict=True))

    def device(self) -> Text:
        """What each was mounted from."""
        names, ok = self.kernel.strings(self.mounts.pointer("mnt_devname"), _DEVICE_LIMIT)
        self.faults.mark(~ok, "device unreadable")
        return text(name or "none" for name in names)

    def flags(self) -> Text:
        """Options of each mount."""
        return _words(self.mounts.number("mnt.mnt_flags"), _READONLY, _MOUNT_FLAGS)

    def super_flags(self) -> Text:
        """Options of the file system."""
        return _words(self.blocks.number("s_flags"), _SUPER_READONLY, _SUPER_FLAGS)

    def propagation(self) -> Text:
        """What /proc shows between the options and the type."""
        kernel, mounts = self.kernel, self.mounts
        flags, shared, unbindable = mounts.number("mnt.mnt_flags"), _SHARED, _UNBINDABLE
        if mounts.has("mnt_t_flags"):  # flags of its own in newer kernels (7.2)
            flags = mounts.number("mnt_t_flags")
            shared = kernel.profile.enumerator("T_SHARED") or 1
            unbindable = kernel.profile.enumerator("T_UNBINDABLE") or 2
        group = mounts.number("mnt_group_id")
        masters = mounts.follow("mnt_master")
        master = masters.number("mnt_group_id")
        self.faults.mark(masters.fault, "master unreadable")
        words = []
        columns = (flags.tolist(), group.tolist(), masters.address.tolist(), master.tolist())
        for flag, mine, slave, theirs in zip(*columns, strict=True):
            listed = [f"shared:{mine}"] if flag & shared else []
            listed += [f"master:{theirs}"] if slave else []
            listed += ["unbindable"] if flag & unbindable else []
            words.append(" ".join(listed))
        return text(words)

    def parent(self) -> I64:
        """The mount that each is on; the root's is itself."""
        above = self.mounts.follow("mnt_parent")
        number = above.number("mnt_id")
        self.faults.mark(above.fault, "parent unreadable")
        return number

    def number(self) -> Text:
        """Devices as mountinfo writes them."""
        return text(
            f"{each >> _MINOR_BITS}:{each & (1 << _MINOR_BITS) - 1}" for each in self.blocks.number("s_dev").tolist()
        )

    @cached_property
    def capacity(self) -> dict[str, I64]:
        """How large the file systems are, and how full."""
        counts, wrong = capacity(self.kernel, self.blocks.fetch("s_op", "s_fs_info"))
        self.faults.mark(wrong, "capacity unreadable")
        return counts


def _count(name: str) -> Callable[[_View], Column]:
    return lambda view: view.capacity[name]


_COLUMNS: Final[dict[str, Callable[[_View], Column]]] = {
    "device": _View.device,
    "path": _View.path,
    "type": lambda view: view.type,
    "blocks_size": lambda view: view.blocks.number("s_blocksize"),
    **{name: _count(name) for name in COUNTS},
    "flags": _View.flags,
    "super_flags": _View.super_flags,
    "root": _View.root,
    "propagation": _View.propagation,
    "id": lambda view: view.mounts.number("mnt_id"),
    "parent": _View.parent,
    "mnt_namespace": lambda view: view.found.namespaces.number("ns.inum")[view.found.owner],
    "number": _View.number,
    "address": lambda view: view.mounts.address,
}


def mounts(kernel: Kernel, columns: Iterable[str] | None = None) -> Mounts:
    """All mounts, by namespace, and in each as /proc shows them. `columns` asks for some columns only."""
    wanted = list(Mounts.schema if columns is None else columns)
    Mounts.check(wanted)
    with kernel.operation():
        found = mount_tree(kernel)
        faults = Faults(len(found.mounts))
        view = _View(kernel, found, faults)
        data: dict[str, Column] = {name: _COLUMNS[name](view) for name in dict.fromkeys(wanted) if name != "fault"}
        data["fault"] = faults.column()
    return Mounts(data, found.faults)


def _words(bits: I64, readonly: int, words: tuple[tuple[int, str], ...]) -> Text:
    unique, back = np.unique(bits, return_inverse=True)
    shown = (
        ",".join(("ro" if each & readonly else "rw", *(word for bit, word in words if each & bit)))
        for each in unique.tolist()
    )
    return text(shown)[back]
