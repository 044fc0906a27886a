"""Names of files: paths as the kernel's own `d_path` makes them, for many files at once.

Knows `struct path`, `dentry`, `mount` and `vfsmount` (fs/d_path.c, fs/mount.h). What the files are is left to others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmi_inside import ragged
from vmi_inside.kernel import Kernel
from vmi_inside.types import I64, U64, Mask

#: A path of 4096 bytes has no more components than this.
DEPTH_LIMIT = 2048
NAME_LIMIT = 255
PATH_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class _Round:
    """Places (k,) that are equally far from where paths begin: how each is called, and where its path goes on.

    `above` (k,) are rows of the next round, -1 at the end. `named` says which have a name of their own: a mount's root
    has none. `pointer` and `length` (k,) are those of the names; `ok` says which could be read.
    """

    above: NDArray[np.intp]
    named: Mask
    pointer: U64
    length: I64
    ok: Mask


def paths(kernel: Kernel, dentry: U64, mount: U64) -> tuple[list[str], Mask]:
    """Paths from the root of the mount namespace down, of `n` (dentry, vfsmount) pairs, and (n,) bool: which are whole.

    A vfsmount of 0 gives a path from the root of its file system, a dentry of 0 an empty path. An unlinked file's path
    ends in ` (deleted)`, as in /proc.
    """
    inner = np.uint64(kernel.struct("mount").member("mnt").offset)
    own = np.where(mount == 0, np.uint64(0), mount - inner)
    here, above, back = _pairs(dentry, own)
    live = here != 0
    rounds, deleted = _rounds(kernel, here[live], above[live])
    names, ok = _composed(kernel, rounds, int(live.sum()))
    found = [""] * len(here)
    whole = np.ones(len(here), dtype=np.bool_)
    whole[live] = ok
    for row, name, gone in zip(np.flatnonzero(live).tolist(), names, deleted.tolist(), strict=True):
        shown = (name or b"/").decode("utf-8", "backslashreplace")
        found[row] = shown + " (deleted)" if gone else shown
    return [found[i] for i in back.tolist()], whole[back]


def _pairs(dentry: U64, mount: U64) -> tuple[U64, U64, NDArray[np.intp]]:
    """The distinct ones of pairs (n,), and which of them each is."""
    order = np.lexsort((mount, dentry))
    dentry, mount = dentry[order], mount[order]
    new = np.ones(len(order), dtype=np.bool_)
    np.logical_or(dentry[1:] != dentry[:-1], mount[1:] != mount[:-1], out=new[1:])
    back = np.empty(len(order), dtype=np.intp)
    back[order] = np.cumsum(new) - 1
    return dentry[new], mount[new], back


def _rounds(kernel: Kernel, here: U64, mount: U64) -> tuple[list[_Round], Mask]:
    """From distinct places up to their roots, one step a round, and which of the first ones are deleted.

    Files of one directory go on as one: of many files little more is read than what each is called.
    """
    mount_type, dentry_type = kernel.struct("mount"), kernel.struct("dentry")
    deleted = np.zeros(len(here), dtype=np.bool_)
    rounds: list[_Round] = []
    for depth in range(DEPTH_LIMIT):
        if not len(here):
            return rounds, deleted
        dentries = kernel.structs(dentry_type, here).fetch("d_parent", "d_name.len", "d_name.name", "d_hash.pprev")
        mounts = kernel.structs(mount_type, mount).fetch("mnt_parent", "mnt_mountpoint", "mnt.mnt_root")
        bad = dentries.fault | mounts.fault
        parent, outer = dentries.pointer("d_parent"), mounts.pointer("mnt_parent")
        top = here == mounts.pointer("mnt.mnt_root")
        crossing = top & (outer != mount) & ~bad
        naming = ~top & (parent != here) & ~bad
        onward = crossing | naming
        if depth == 0:
            deleted = ~top & (dentries.pointer("d_hash.pprev") == 0) & ~bad
            naming |= ~top & ~bad  # a file without a directory (memfd) has a name all the same
        above = np.full(len(here), -1, dtype=np.intp)
        rounds.append(_Round(above, naming, dentries.pointer("d_name.name"), dentries.number("d_name.len"), ~bad))
        there = np.where(crossing, mounts.pointer("mnt_mountpoint"), parent)
        here, mount, above[onward] = _pairs(there[onward], np.where(crossing, outer, mount)[onward])
    rounds[-1].ok[rounds[-1].above >= 0] = False
    rounds[-1].above[:] = -1
    return rounds, deleted


def _composed(kernel: Kernel, rounds: list[_Round], size: int) -> tuple[list[bytes], Mask]:
    """The paths of the first round's places (size,), empty for a root, and which of them are whole."""
    pointer = [each.pointer[each.named] for each in rounds]
    length = [np.minimum(each.length[each.named], NAME_LIMIT) for each in rounds]
    if not rounds:
        return [], np.ones(size, dtype=np.bool_)
    got = ragged.gather(kernel.space, np.concatenate(pointer), np.concatenate(length))
    names = got.rows()
    end = len(names)
    paths: list[bytes] = []
    ok = np.ones(0, dtype=np.bool_)
    for each in reversed(rounds):
        begin = end - int(each.named.sum())
        fine = each.ok.copy()
        fine[each.named] &= got.ok[begin:end] & (each.length[each.named] <= NAME_LIMIT)
        fine[each.above >= 0] &= ok[each.above[each.above >= 0]]
        own = iter(names[begin:end])
        # What is above begins with a slash, or is empty.
        paths = [
            ((paths[above] if above >= 0 else b"") + (b"/" + next(own) if named else b""))[:PATH_LIMIT]
            for above, named in zip(each.above.tolist(), each.named.tolist(), strict=True)
        ]
        ok, end = fine, begin
    return paths, ok
