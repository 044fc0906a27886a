"""A path followed through the kernel's cache of names, as the kernel itself would follow it for a process.

Knows `dentry` and its children, `mount` and what is mounted on it (include/linux/dcache.h, fs/mount.h, 5.10 to 7.2),
and symbolic links that the kernel has in memory. What was never looked at in the guest, or was forgotten, is not found:
the guest is not asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.errors import NoFile
from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.paths import DEPTH_LIMIT, PATH_LIMIT
from vmi_inside.structs import Structs
from vmi_inside.types import U64

_CHILDREN_LIMIT: Final = 1 << 17
_MOUNT_LIMIT: Final = 1 << 16
#: MAXSYMLINKS, and how many file systems are mounted over each other at one place.
_LINKS: Final = 40
_OVER: Final = 64
_LINK, _FOLDER = 0o12, 0o04


@dataclass(frozen=True, slots=True)
class Place:
    """A dentry in a mount (`struct mount`), by their addresses."""

    dentry: int
    mount: int


def root_of(kernel: Kernel, task: Structs) -> Place:
    """The root directory of a task (one row). Raises `NoFile` where it has none any more."""
    fs = task.follow("fs", kernel.struct("fs_struct")).fetch("root.dentry", "root.mnt")
    dentry, mount = int(fs.pointer("root.dentry")[0]), int(fs.pointer("root.mnt")[0])
    if fs.fault.any() or not dentry or not mount:
        raise NoFile("the process has no root directory any more")
    return Place(dentry, mount - kernel.struct("mount").member("mnt").offset)


def lookup(kernel: Kernel, root: Place, path: str) -> Place:
    """What an absolute path leads to from a root directory; symbolic links are followed. Raises `NoFile`."""
    if not path.startswith("/") or len(path.encode(errors="surrogateescape")) >= PATH_LIMIT:
        raise NoFile(f"{path[:80]!r} is no path from the root directory down")
    todo, links = _parts(path), 0
    trail = [root]
    for _ in range(DEPTH_LIMIT * (1 + _LINKS)):
        if not todo:
            return trail[-1]
        name = todo.pop()
        if name == "..":
            trail = trail[:-1] or [root]
            continue
        child = _child(kernel, trail[-1], name)
        if child is None:
            raise NoFile(
                f"{name!r} of {path!r} is not there, or the guest's kernel has not looked at it lately: open it there"
            )
        inode = kernel.structs("dentry", [child]).follow("d_inode").fetch("i_mode")
        if int(inode.number("i_mode")[0]) >> 12 == _LINK:
            links += 1
            target = _target(kernel, inode)
            if target is None or links > _LINKS:
                raise NoFile(f"{name!r} of {path!r} is a symbolic link that is not known, say the path it leads to")
            trail = [root] if target.startswith("/") else trail
            todo += _parts(target)
            continue
        trail.append(_topmost(kernel, Place(child, trail[-1].mount)))
    raise NoFile(f"{path!r} has no end")


def _parts(path: str) -> list[str]:
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _child(kernel: Kernel, place: Place, name: str) -> int | None:
    """The dentry of that name, for which there is a file."""
    rows = kernel.structs("dentry", _children(kernel, place.dentry)).fetch("d_inode", "d_name.name", "d_hash.pprev")
    names, _ = kernel.strings(rows.pointer("d_name.name"))
    there = (rows.pointer("d_inode") != 0) & ~rows.fault
    # One that is hashed comes before one that was unlinked, or has no hash (in a file system that needs none).
    order = np.argsort(rows.pointer("d_hash.pprev") == 0, kind="stable")
    return next((int(rows.address[at]) for at in order.tolist() if there[at] and names[at] == name), None)


def _children(kernel: Kernel, dentry: int) -> U64:
    ctype = kernel.struct("dentry")
    if ctype.has("d_children"):  # since 6.8
        first = kernel.structs(ctype, [dentry]).pointer("d_children.first")
        found = walk.chains(kernel.space, first, what="names in a directory")
        return found.address - np.uint64(ctype.member("d_sib").offset)
    head = dentry + ctype.member("d_subdirs").offset
    found = walk.serial(kernel.space, head, what="names in a directory", limit=_CHILDREN_LIMIT)
    return found.address - np.uint64(ctype.member("d_child").offset)


def _topmost(kernel: Kernel, place: Place) -> Place:
    """What is mounted at a place, and over that, and so on; the place itself where nothing is."""
    ctype = kernel.struct("mount")
    for _ in range(_OVER):
        head = place.mount + ctype.member("mnt_mounts").offset
        listed = walk.serial(kernel.space, head, what="mounts", limit=_MOUNT_LIMIT)
        rows = kernel.structs(ctype, listed.address - np.uint64(ctype.member("mnt_child").offset))
        rows.fetch("mnt_mountpoint", "mnt.mnt_root")
        here = np.flatnonzero((rows.pointer("mnt_mountpoint") == np.uint64(place.dentry)) & ~rows.fault)
        if not len(here):
            return place
        place = Place(int(rows.pointer("mnt.mnt_root")[here[-1]]), int(rows.address[here[-1]]))
    raise NoFile("too much is mounted over each other")


def _target(kernel: Kernel, inode: Structs) -> str | None:
    """Where a symbolic link leads, if its inode has that."""
    pointer = inode.fetch("i_link").pointer("i_link")
    if not int(pointer[0]):
        return None
    (text,), whole = kernel.strings(pointer, PATH_LIMIT)
    return text if whole[0] and text else None
