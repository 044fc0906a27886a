"""Names of files: paths as the kernel's own `d_path` makes them, for many files at once.

Knows `struct path`, `dentry`, `mount` and `vfsmount` (fs/d_path.c, fs/mount.h). What the files are is left to others.
"""

from __future__ import annotations

import numpy as np

from vmi_inside import ragged
from vmi_inside.kernel import Kernel
from vmi_inside.types import U64, Mask

#: A path of 4096 bytes has no more components than this.
DEPTH_LIMIT = 2048
NAME_LIMIT = 255
PATH_LIMIT = 4096


def paths(kernel: Kernel, dentry: U64, mount: U64) -> tuple[list[str], Mask]:
    """Paths from the root of the mount namespace down, of `n` (dentry, vfsmount) pairs, and (n,) bool: which are whole.

    A vfsmount of 0 gives a path from the root of its file system, a dentry of 0 an empty path. An unlinked file's path
    ends in ` (deleted)`, as in /proc.
    """
    order = np.lexsort((mount, dentry))
    dentry, mount = dentry[order], mount[order]
    new = np.ones(len(order), dtype=np.bool_)
    np.logical_or(dentry[1:] != dentry[:-1], mount[1:] != mount[:-1], out=new[1:])
    found, ok = _unique_paths(kernel, dentry[new], mount[new])
    back = np.empty(len(order), dtype=np.intp)
    back[order] = np.cumsum(new) - 1
    return [found[i] for i in back.tolist()], ok[back]


def _unique_paths(kernel: Kernel, dentry: U64, vfsmount: U64) -> tuple[list[str], Mask]:
    size = len(dentry)
    mount_type, dentry_type = kernel.struct("mount"), kernel.struct("dentry")
    inner = np.uint64(mount_type.member("mnt").offset)
    ok = np.ones(size, dtype=np.bool_)
    deleted = np.zeros(size, dtype=np.bool_)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # rows, name pointers, name lengths: leaf first
    row = np.flatnonzero(dentry)
    here = dentry[row]
    mount = np.where(vfsmount[row] == 0, np.uint64(0), vfsmount[row] - inner)
    for depth in range(DEPTH_LIMIT):
        if not len(row):
            break
        dentries = kernel.structs(dentry_type, here).fetch("d_parent", "d_name.len", "d_name.name", "d_hash.pprev")
        mounts = kernel.structs(mount_type, mount).fetch("mnt_parent", "mnt_mountpoint", "mnt.mnt_root")
        bad = dentries.fault | mounts.fault
        ok[row[bad]] = False
        parent, above = dentries.pointer("d_parent"), mounts.pointer("mnt_parent")
        top = here == mounts.pointer("mnt.mnt_root")
        crossing = top & (above != mount) & ~bad
        naming = ~top & (parent != here) & ~bad
        onward = crossing | naming
        if depth == 0:
            deleted[row] = ~top & (dentries.pointer("d_hash.pprev") == 0) & ~bad
            naming |= ~top & ~bad  # a file without a directory (memfd) has a name all the same
        parts.append((row[naming], dentries.pointer("d_name.name")[naming], dentries.number("d_name.len")[naming]))
        here = np.where(crossing, mounts.pointer("mnt_mountpoint"), parent)
        mount = np.where(crossing, above, mount)
        row, here, mount = row[onward], here[onward], mount[onward]
    ok[row] = False
    if not parts:
        return [""] * size, ok
    rows = np.concatenate([part[0] for part in parts])
    pointer = np.concatenate([part[1] for part in parts])
    length = np.concatenate([part[2] for part in parts])
    ok[rows[length > NAME_LIMIT]] = False
    got = ragged.gather(kernel.space, pointer, np.minimum(length, NAME_LIMIT))
    ok[rows[~got.ok]] = False
    names: list[list[bytes]] = [[] for _ in range(size)]
    for at, name in zip(rows.tolist(), got.rows(), strict=True):
        names[at].append(name)
    out = []
    for at, listed in enumerate(names):
        shown = (b"/" + b"/".join(reversed(listed)))[:PATH_LIMIT].decode("utf-8", "backslashreplace")
        out.append((shown + " (deleted)" if deleted[at] else shown) if dentry[at] else "")
    return out, ok
