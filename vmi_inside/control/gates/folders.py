"""Directories and files that a rule about opening files is limited to: found by path, known again by number.

Knows which file systems keep an inode's number for as long as the file lives, also when the kernel has forgotten the
file meanwhile (memory is short) and reads it anew. Nothing is held in the guest for it: an address would have to be.
How a path is followed is `linux.files.lookup`'s knowledge.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from vmi_inside.control.gates.layout import Folder
from vmi_inside.control.places import find_process
from vmi_inside.errors import ControlError, NoFile, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.lookup import Place, lookup, root_of

#: One number space each, and numbers that stay; those that live in memory alone forget nothing.
_LASTING: Final = ("ext2", "ext3", "ext4", "xfs", "f2fs", "squashfs", "erofs", "tmpfs", "ramfs", "rootfs", "devtmpfs")
#: Whose root is one inode for as long as it is mounted.
_ROOT_ONLY: Final = ("overlay",)


def folders(kernel: Kernel, pid: int | None, paths: Iterable[str]) -> tuple[Folder, ...]:
    """What these paths lead to for a process: in its mount namespace, from its root directory; else for process 1.

    Raises `ControlError` for a path that leads nowhere, `Unsupported` for a file system that numbers files anew.
    """
    found = {}
    with kernel.operation():
        for path in dict.fromkeys(paths):
            try:
                root = root_of(kernel, find_process(kernel, 1 if pid is None else pid))
                found[path] = _folder(kernel, lookup(kernel, root, path), path)
            except NoFile as error:
                raise ControlError(f"{error}; nothing was changed") from None
    return tuple(found.values())


def _folder(kernel: Kernel, place: Place, path: str) -> Folder:
    dentry = kernel.structs("dentry", [place.dentry]).fetch("d_inode", "d_parent")
    inode = dentry.follow("d_inode").fetch("i_ino", "i_generation", "i_sb")
    block = inode.follow("i_sb").fetch("s_dev", "s_type")
    (system,), _ = kernel.strings(block.follow("s_type").pointer("name"), 32)
    if dentry.fault.any() or inode.fault.any() or block.fault.any():
        raise ControlError(f"{path} could not be read; try again")
    top = int(dentry.pointer("d_parent")[0]) == place.dentry
    if system not in _LASTING and not (system in _ROOT_ONLY and top):
        hint = "; its root, or a file system beneath it, can be" if system in _ROOT_ONLY else ""
        raise Unsupported(
            f"{path} is on {system}, which may number its files anew: it cannot be told apart for sure{hint}; "
            "nothing was changed"
        )
    return Folder(
        int(inode.unsigned("i_ino")[0]), int(block.unsigned("s_dev")[0]), int(inode.unsigned("i_generation")[0]), path
    )
