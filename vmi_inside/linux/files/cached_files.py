"""Files that the kernel has in memory: inodes of all mounted file systems, and how much of each is in the page cache.

Where inodes are found is `inodes`' knowledge, what their paths are `opened`'s, which pages are cached `page_cache`'s.
Bringing their contents out is left to `file_content`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.files import inodes as all_inodes
from vmi_inside.linux.files.opened import Opened
from vmi_inside.linux.files.page_cache import cached_pages
from vmi_inside.linux.files.paths import paths
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import F64, I64, PAGE_SHIFT, U64, Mask

#: The longest target of a symbolic link (PATH_MAX).
_TARGET_LIMIT: Final = 4096
_LINK: Final = 0o12
#: `i_mtime` became private in 6.6, and two members in 6.11.
_MTIME: Final = ("i_mtime_sec", "__i_mtime.tv_sec", "i_mtime.tv_sec")


class CachedFiles(Table):
    """One row for each name of each inode in memory; osquery's column names (`file`) where it has them."""

    inode: I64
    device: Text  # of the file system, major:minor
    path: (
        Text  # empty where none is known; a deleted file's with " (deleted)"; `tracefs:/x` where it is mounted nowhere
    )
    mount: Text  # where the file system is mounted; empty where the kernel alone uses it
    filesystem: Text  # its type: ext4, tmpfs ...
    type: Text  # reg dir lnk chr blk fifo sock, memfd ...
    size: I64  # bytes
    pages: I64  # of 4 KiB that are in the page cache
    cached: F64  # the same as a share of the file, 0 to 1
    dirty: I64  # pages that are to be written to the disk
    mtime: I64  # seconds since the epoch
    uid: I64
    gid: I64
    mode: Text  # permissions in octal
    target: Text  # of a symbolic link
    deleted: Mask  # no name leads to it
    bare: Mask  # of a file system that cannot be mounted, and no file: a block device's cache, an anonymous inode
    mount_namespace: I64  # inode number of the mount namespace that the path is of
    address: U64  # of the struct inode


class _Files:
    """The inodes of one reading, and what hangs on them."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.found = found = all_inodes.inodes(kernel)
        self.inodes: Structs = found.inodes.fetch(
            "i_ino", "i_size", "i_uid.val", "i_gid.val", _MTIME, "i_data.nrpages", "i_data.i_pages.xa_flags"
        )
        self.notes = list(found.faults)
        self.faults = Faults(len(self.inodes))
        inner = np.uint64(kernel.struct("mount").member("mnt").offset)
        self.vfsmount = np.where(found.mount == 0, np.uint64(0), found.mount + inner)

    @cached_property
    def opened(self) -> Opened:
        """What they are: dentries in mounts."""
        return Opened(self.kernel, self.found.dentry, self.vfsmount[self.found.owner], self.inodes.address)

    def path(self) -> Text:
        """Paths."""
        self.faults.mark(~self.opened.path_whole & (self.found.dentry != 0), "path incomplete")
        out: Text = self.opened.path.copy()
        nowhere = (self._spaces.address == 0)[self.found.owner] & (self.found.dentry != 0) & ~self.opened.pseudo
        rows = np.flatnonzero(nowhere)
        out[rows] = [f"{kind}:{path}" for kind, path in zip(self.filesystem()[rows], out[rows], strict=True)]
        return out

    def mount(self) -> Text:
        """Where each file system is mounted; empty for those that are in no namespace."""
        root = np.where(self._spaces.address == 0, np.uint64(0), self._mounts.pointer("mnt.mnt_root"))
        shown, _ = paths(self.kernel, root, self.vfsmount)
        return text(shown)[self.found.owner]

    @cached_property
    def _mounts(self) -> Structs:
        return self.kernel.structs("mount", self.found.mount).fetch("mnt.mnt_root", "mnt_ns")

    @cached_property
    def _spaces(self) -> Structs:
        at = self._mounts.pointer("mnt_ns")
        return self.kernel.structs("mnt_namespace", np.where(at >= all_inodes.ERRORS, np.uint64(0), at))

    def namespace(self) -> I64:
        """Inode numbers of the mounts' namespaces; 0 where they are in none."""
        return self._spaces.number("ns.inum")[self.found.owner]

    def filesystem(self) -> Text:
        """Types of the file systems."""
        names, _ = self.kernel.strings(self.found.blocks.follow("s_type").pointer("name"), 32)
        return text(names)[self.found.owner]

    def cached(self) -> F64:
        """The share of each file's pages that are in memory."""
        size = np.maximum(self.inodes.number("i_size"), 0)
        whole = (size >> PAGE_SHIFT) + (size & (1 << PAGE_SHIFT) - 1 != 0)
        pages = np.maximum(self.inodes.number("i_data.nrpages"), 0)
        return np.minimum(np.where(whole == 0, 0.0, pages / np.maximum(whole, 1)), 1.0)

    def dirty(self) -> I64:
        """Pages to be written."""
        unique, back = np.unique(self.inodes.at("i_data"), return_inverse=True)
        found = cached_pages(self.kernel, unique, verify=False)
        self.notes += found.faults
        out = np.zeros(len(unique), dtype=np.int64)
        np.add.at(out, found.owner, found.dirty)
        return out[back]

    def target(self) -> Text:
        """Where symbolic links lead."""
        out = np.full(len(self.inodes), "", dtype=object)
        links = np.flatnonzero(self.inodes.number("i_mode") >> 12 == _LINK)
        at = self.inodes.select(links).pointer("i_link")
        names, ok = self.kernel.strings(at, _TARGET_LIMIT)
        out[links] = names
        lost = np.zeros(len(out), dtype=np.bool_)
        lost[links[~ok]] = True
        # Those whose inode has no room for it have it in their first page.
        rest = links[at == 0]
        unique, back = np.unique(self.inodes.at("i_data")[rest], return_inverse=True)
        found = cached_pages(self.kernel, unique)
        first = np.flatnonzero((found.index == 0) & (found.pa != 0))
        raw = np.empty((len(first), _TARGET_LIMIT), dtype=np.uint8)
        good = self.kernel.space.memory.gather(found.pa[first], raw)
        held = {
            owner: page.tobytes() for owner, page, ok in zip(found.owner[first].tolist(), raw, good, strict=True) if ok
        }
        size = np.clip(self.inodes.number("i_size"), 0, _TARGET_LIMIT)
        for row, which in zip(rest.tolist(), back.tolist(), strict=True):
            shown = held.get(which, b"")[: size[row]].partition(b"\0")[0]
            out[row] = shown.decode("utf-8", "backslashreplace")
        self.faults.mark(lost, "target unreadable")
        return out

    def mode(self) -> Text:
        """Permissions."""
        unique, back = np.unique(self.inodes.number("i_mode") & 0o7777, return_inverse=True)
        return text(f"{each:04o}" for each in unique.tolist())[back]


_COLUMNS: Final[dict[str, Callable[[_Files], Column]]] = {
    "inode": lambda rows: rows.inodes.number("i_ino"),
    "device": lambda rows: rows.opened.device,
    "path": _Files.path,
    "mount": _Files.mount,
    "filesystem": _Files.filesystem,
    "type": lambda rows: rows.opened.kind,
    "size": lambda rows: rows.inodes.number("i_size"),
    "pages": lambda rows: rows.inodes.number("i_data.nrpages"),
    "cached": _Files.cached,
    "dirty": _Files.dirty,
    "mtime": lambda rows: rows.inodes.number(_MTIME),
    "uid": lambda rows: rows.inodes.number("i_uid.val"),
    "gid": lambda rows: rows.inodes.number("i_gid.val"),
    "mode": _Files.mode,
    "target": _Files.target,
    "deleted": lambda rows: rows.opened.deleted,
    "bare": lambda rows: rows.found.bare,
    "mount_namespace": _Files.namespace,
    "address": lambda rows: rows.inodes.address,
}


def cached_files(kernel: Kernel, columns: Iterable[str] | None = None) -> CachedFiles:
    """All inodes in memory, one that has several names with each of them; `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have, `NoSymbol` where the kernel lists no file
    systems.
    """
    wanted = list(CachedFiles.schema if columns is None else columns)
    CachedFiles.check(wanted)
    with kernel.operation():
        rows = _Files(kernel)
        data = {name: _COLUMNS[name](rows) for name in wanted if name in _COLUMNS}
        faults = rows.faults
        faults.mark(rows.inodes.fault, "inode unreadable")
        faults.mark(rows.inodes.pointer("i_sb") != rows.found.blocks.address[rows.found.owner], "another file system's")
        data["fault"] = faults.column()
        return CachedFiles(data, rows.notes)
