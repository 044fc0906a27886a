"""A file by its path, as somebody in the guest would name it: symbolic links are followed, as far as they are known.

Where files are found is `cached_files`' knowledge; this knows how a path is resolved (path_resolution(7)).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from vmi_inside.errors import NoFile
from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.cached_files import CachedFiles, cached_files
from vmi_inside.linux.files.file_content import FileContent, contents

_COLUMNS: Final = ("inode", "device", "path", "type", "target", "deleted", "address")
_DELETED: Final = " (deleted)"
#: MAXSYMLINKS: no path leads through more links.
_LINKS: Final = 40


def file_content(kernel: Kernel, path: str, *, device: str | None = None, inode: int | None = None) -> FileContent:
    """The content of the regular file at that path. Raises `NoFile`.

    A deleted file is found by the path that it had. Where several files have had the same path, `device` (major:minor)
    and `inode` choose.
    """
    return contents(kernel, [find_file(cached_files(kernel, _COLUMNS), path, device, inode)])[0]


def find_file(table: CachedFiles, path: str, device: str | None = None, inode: int | None = None) -> int:
    """The address of the inode of the regular file at that path. Raises `NoFile`."""
    rows = _at(table, path)
    if not len(rows):
        links = table.where(table.type == "lnk")
        rows = _at(table, resolved(path, dict(zip(links.path.tolist(), links.target.tolist(), strict=True))))
    found = table.where(rows)
    if not len(found):
        raise NoFile(f"no file {path!r} is in the guest's memory; `files` lists those that are")
    regular = found.where(np.isin(found.type, ("reg", "memfd")))
    if not len(regular):
        raise NoFile(f"{path!r} is no regular file, but of the type {found.type[0]!r}")
    chosen = np.ones(len(regular), dtype=np.bool_)
    if device is not None:
        chosen &= regular.device == device
    if inode is not None:
        chosen &= regular.inode == inode
    regular = regular.where(chosen)
    if len(regular) != 1:
        those = ", ".join(f"{row.device} {row.inode}" for row in regular.where(slice(0, 8)))
        raise NoFile(
            f"{len(regular)} files have the path {path!r}: choose one by device and inode: {those}" if len(regular)
            else f"no file {path!r} with that device and inode"
        )  # fmt: skip
    return int(regular.address[0])


def listed(table: CachedFiles, path: str) -> CachedFiles:
    """What lies in the folder at that path, as far as it is in memory; of another file, that alone. May be empty.

    `table` needs the columns path, type, target and mount. Where something is mounted, that is shown, and not the
    folder below it.
    """
    links = table.where(table.type == "lnk")
    whole = resolved(path, dict(zip(links.path.tolist(), links.target.tolist(), strict=True)))
    start = whole.rstrip("/") + "/"
    inside = [
        each.startswith(start) and "/" not in each[len(start) :] and each != start for each in table.path.tolist()
    ]
    found = table.where(np.array(inside, dtype=np.bool_))
    if not len(found):
        return table.where((table.path == whole) & (table.type != "dir"))
    top = {row.path for row in found if row.mount == row.path}
    hidden = [row.path in top and row.mount != row.path for row in found]
    return found.where(~np.array(hidden, dtype=np.bool_))


def resolved(path: str, links: Mapping[str, str]) -> str:
    """The path that is left when all links, of which `links` says where they lead, are followed."""
    todo = [each for each in reversed(path.split("/")) if each not in ("", ".")]
    done: list[str] = []
    followed = 0
    while todo:
        name = todo.pop()
        if name == "..":
            done = done[:-1]
            continue
        target = links.get("/" + "/".join((*done, name)))
        if target and followed < _LINKS:
            followed += 1
            done = [] if target.startswith("/") else done
            todo += [each for each in reversed(target.split("/")) if each not in ("", ".")]
        else:
            done.append(name)
    return "/" + "/".join(done)


def _at(table: CachedFiles, path: str) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Rows of files at that path that are not links; those that were deleted only where there is no other."""
    alive = np.flatnonzero((table.path == path) & (table.type != "lnk"))
    return alive if len(alive) else np.flatnonzero((table.path == path + _DELETED) & (table.type != "lnk"))
