"""What a `struct file` is: its path as /proc shows it, its kind, its inode.

Knows `file`, `inode` and `super_block` (include/linux/fs.h) and the file systems whose files have no path, but a name
made for /proc: pipes, sockets, eventfds, memfds, namespaces (their `d_dname`; fs/d_path.c). Who holds a file is left to
others.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.paths import paths
from vmi_inside.structs import Structs
from vmi_inside.table import Text, text
from vmi_inside.types import I64, U64, Mask, distinct

#: Kinds of inodes, by the upper bits of their mode (include/uapi/linux/stat.h); what has none of them is anonymous.
_KINDS: Final = {
    0o01: "fifo", 0o02: "chr", 0o04: "dir", 0o06: "blk", 0o10: "reg", 0o12: "lnk", 0o14: "sock",
}  # fmt: skip
#: Anonymous inodes by the names that their makers give them; others go by that name, without brackets.
_ANONYMOUS: Final = {
    "eventpoll": "epoll", "perf_event": "perf", "bpf-map": "bpf", "bpf-prog": "bpf", "bpf_link": "bpf",
    "bpf_iter": "bpf", "bpf-token": "bpf", "btf": "bpf",
}  # fmt: skip
#: FMODE_BACKING, bit 25 from 6.5 to 6.13 and 24 since: a file that stands for one of a stacked file system. The other
#: bit means something else, so that it says only where to look.
_FMODE_BACKING: Final = 1 << 24 | 1 << 25
_DELETED: Final = " (deleted)"
_MINOR_BITS: Final = 20


class Opened:
    """What `n` places in the file system are; each column is read when first asked for.

    A place is a dentry in a mount, as files, working directories and roots are. `at` (n,) are the dentries and `mount`
    (n,) the `vfsmount`s; 0 has empty columns. `inode` (n,) may be given where it is not the dentry's own.
    """

    def __init__(self, kernel: Kernel, at: U64, mount: U64, inode: U64 | None = None) -> None:
        self.kernel = kernel
        self.at = at
        self.mount = mount
        self._inode = inode

    @cached_property
    def inodes(self) -> U64:
        """Addresses of the inodes (n,)."""
        return self._dentry.pointer("d_inode") if self._inode is None else self._inode

    @cached_property
    def _dentry(self) -> _Shared:
        return _Shared(
            self.kernel.structs("dentry", distinct(self.at)).fetch(
                "d_inode", "d_op", "d_parent", "d_hash.pprev"
            ),
            self.at,
        )  # fmt: skip

    @cached_property
    def _inodes(self) -> _Shared:
        rows = self.kernel.structs("inode", distinct(self.inodes))
        return _Shared(rows.fetch("i_mode", "i_ino", "i_size", "i_sb"), self.inodes)

    @cached_property
    def _blocks(self) -> _Shared:
        address = self._inodes.pointer("i_sb")
        return _Shared(self.kernel.structs("super_block", distinct(address)).fetch("s_dev", "s_type"), address)

    @cached_property
    def _filesystem(self) -> Text:
        """Names of the file systems (n,)."""
        types = self._blocks.rows.follow("s_type")
        names, _ = self.kernel.strings(types.pointer("name"), 32)
        return text(names)[self._blocks.back]

    @cached_property
    def _named(self) -> Mask:
        """Which have a name that is made for them, and no path (`d_path`)."""
        operations = self._dentry.rows.follow("d_op")
        made: Mask = (operations.pointer("d_dname") != 0)[self._dentry.back]
        return made & ~self._top

    @cached_property
    def _top(self) -> Mask:
        """Which are the root of what is mounted there."""
        unique, back = np.unique(self.mount, return_inverse=True)
        top: Mask = (self.kernel.structs("vfsmount", unique).pointer("mnt_root")[back] == self.at) & (self.at != 0)
        return top

    @cached_property
    def _paths(self) -> tuple[Text, Mask]:
        inode, system = self.inode, self._filesystem
        counted = np.isin(system, list(_COUNTED)) & self._named
        out = np.full(len(self.at), "", dtype=object)
        for name, shown in _COUNTED.items():
            rows = np.flatnonzero(counted & (system == name))
            out[rows] = [f"{shown}:[{number}]" for number in inode[rows].tolist()]
        rest = np.flatnonzero(~counted)
        whole = np.ones(len(self.at), dtype=np.bool_)
        found, whole[rest] = paths(self.kernel, self.at[rest], self.mount[rest])
        out[rest] = found
        for row in np.flatnonzero(self._named & ~counted).tolist():
            bare = out[row].removesuffix(_DELETED)
            made = _MADE.get(system[row])
            out[row] = made.format(bare[1:]) if made else bare + _DELETED
        spaces = np.flatnonzero(self._named & (system == "nsfs"))
        out[spaces] = self._namespaces(spaces)
        return out, whole

    def _namespaces(self, rows: NDArray[np.intp]) -> list[str]:
        """`net:[4026531840]`, as `ns_dname` makes it."""
        private = self._inodes.rows.pointer("i_private")[self._inodes.back[rows]]
        operations = self.kernel.structs("ns_common", private).follow("ops")
        names, _ = self.kernel.strings(operations.pointer("name"), 32)
        return [f"{name}:[{number}]" for name, number in zip(names, self.inode[rows].tolist(), strict=True)]

    @property
    def path(self) -> Text:
        """Paths, or names such as `socket:[1234]`, as `readlink` of /proc/PID/fd/N shows them to the host's root."""
        return self._paths[0]

    @property
    def path_whole(self) -> Mask:
        """Which paths could be read to their end."""
        return self._paths[1]

    @cached_property
    def pseudo(self) -> Mask:
        """Which have no path in any directory: pipes, sockets, anonymous inodes, memfds, shared memory."""
        return self._named

    @cached_property
    def deleted(self) -> Mask:
        """To which no name leads: unlinked, or never named (memfd, shared memory): /proc says ` (deleted)`."""
        rows = self._dentry.rows
        gone = (rows.pointer("d_hash.pprev") == 0) & (rows.pointer("d_parent") != rows.address)
        unlinked: Mask = gone[self._dentry.back] & ~self._top & ~self._named & (self.at != 0)
        nameless = self._named & ~np.isin(self._filesystem, [*_COUNTED, *_MADE, "nsfs"])
        return unlinked | nameless

    @cached_property
    def kind(self) -> Text:
        """What each is: reg, dir, chr, blk, fifo, sock, lnk; eventfd, epoll, ..., memfd, ns; empty when not known."""
        mode, back = np.unique(self.mode >> 12, return_inverse=True)
        out = text(_KINDS.get(each, "") for each in mode.tolist())[back]
        system = self._filesystem
        out[self._named & (system == "nsfs")] = "ns"
        out[system == "pidfs"] = "pidfd"
        path = None
        for row in np.flatnonzero(self._named & (system == "anon_inodefs")).tolist():
            path = self.path if path is None else path
            name = path[row].removeprefix("anon_inode:")
            name = name[1:-1] if name.startswith("[") and name.endswith("]") else name
            out[row] = _ANONYMOUS.get(name, name)
        for row in np.flatnonzero(self._named & (out == "reg")).tolist():
            path = self.path if path is None else path
            if path[row].startswith("/memfd:"):
                out[row] = "memfd"
        return out

    @cached_property
    def mode(self) -> I64:
        """Inode modes (n,)."""
        return self._inodes.number("i_mode")

    @cached_property
    def inode(self) -> I64:
        """Inode numbers (n,)."""
        return self._inodes.number("i_ino")

    @cached_property
    def size(self) -> I64:
        """Bytes (n,)."""
        return self._inodes.number("i_size")

    @cached_property
    def device(self) -> Text:
        """The file system's device (n,), in decimal as mountinfo writes it: `8:1`; empty where there is none."""
        number, back = np.unique(self._blocks.number("s_dev"), return_inverse=True)
        shown = (f"{each >> _MINOR_BITS}:{each & (1 << _MINOR_BITS) - 1}" if each else "" for each in number.tolist())
        return text(shown)[back]

    @cached_property
    def fault(self) -> Mask:
        """Which (n,) could not be read, as far as they were."""
        parts = (self._dentry, self._inodes, self._blocks)
        bad = np.zeros(len(self.at), dtype=np.bool_)
        for part in parts:
            bad |= part.fault
        return bad


#: File systems whose files go by a word and their inode's number.
_COUNTED: Final = {"pipefs": "pipe", "sockfs": "socket"}
#: And those whose files' names are made of what the dentry is called; of others (tmpfs, hugetlbfs, aio) it is a path.
_MADE: Final = {"anon_inodefs": "anon_inode:{}", "pidfs": "anon_inode:[pidfd]", "dmabuf": "/dmabuf:{}", "nsfs": "{}"}


class _Shared:
    """Structs that many rows share: read once each, with `back` (n,) from a row to its struct."""

    def __init__(self, rows: Structs, address: U64) -> None:
        self.rows = rows
        self.back = np.searchsorted(rows.address, address)

    @property
    def fault(self) -> Mask:
        fault: Mask = self.rows.fault[self.back]
        return fault

    def pointer(self, name: str) -> U64:
        return self.rows.pointer(name)[self.back]

    def number(self, name: str) -> I64:
        return self.rows.number(name)[self.back]


def opened(kernel: Kernel, files: Structs) -> Opened:
    """What these `struct file`s are."""
    files.fetch("f_path.dentry", "f_path.mnt", "f_inode")
    at, mount = files.pointer("f_path.dentry").copy(), files.pointer("f_path.mnt").copy()
    backing = kernel.find_struct("backing_file")
    if backing is not None and backing.has("user_path"):
        # The path of a file that stands for an overlay's is kept beside it.
        rows = np.flatnonzero(files.unsigned("f_mode") & np.uint64(_FMODE_BACKING))
        shown = files.select(rows).holder(backing, "file").fetch("user_path.dentry", "user_path.mnt")
        mounts = kernel.structs("vfsmount", shown.pointer("user_path.mnt"))
        system = kernel.structs("dentry", shown.pointer("user_path.dentry")).pointer("d_sb")
        is_path = (system != 0) & (mounts.pointer("mnt_sb") == system)
        rows, shown = rows[is_path], shown.select(is_path)
        at[rows], mount[rows] = shown.pointer("user_path.dentry"), shown.pointer("user_path.mnt")
    return Opened(kernel, at, mount, files.pointer("f_inode"))
