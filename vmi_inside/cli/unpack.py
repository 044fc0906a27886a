"""Files under a folder by paths that nobody trusts.

Knows how to make a harmless path of a guest's, and how to go down a folder without following a link. What is written
is left to others.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

#: NAME_MAX of Linux file systems, in bytes.
_NAME_LIMIT: Final = 255
_DEPTH_LIMIT: Final = 256
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def parts(path: str) -> list[str]:
    """The names that a guest's path is made of, each harmless: no empty one, no `.` or `..`, no slash, no NUL."""
    names = [_harmless(name) for name in path.split("/") if name not in ("", ".")]
    if len(names) > _DEPTH_LIMIT:
        names = [*names[: _DEPTH_LIMIT - 1], _shortened("/".join(names)).replace("/", "_")]
    return names or ["_"]


def _harmless(name: str) -> str:
    clean = name.replace("\0", "_")
    if clean == "..":
        return "__"
    return clean if len(os.fsencode(clean)) <= _NAME_LIMIT else _shortened(clean)


def _shortened(name: str) -> str:
    """The beginning of a name and what tells it from others."""
    told = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return os.fsencode(name)[: _NAME_LIMIT - 17].decode("utf-8", "ignore") + "-" + told


class Folder:
    """A folder to write into, made when it is not there. Raises `OSError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def create(self, path: str, *, force: bool = False) -> Iterator[IO[bytes]]:
        """A new file for a guest's path, its owner's alone, with the folders on the way; on failure nothing is left.

        Raises `OSError`: `FileExistsError` when it is there and not `force`d, `NotADirectoryError` when a link or a
        file stands in the way.
        """
        *above, name = parts(path)
        here = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for each in above:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(each, 0o700, dir_fd=here)
                inner = os.open(each, _DIRECTORY, dir_fd=here)
                os.close(here)
                here = inner
            if force:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=here)
            new = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=here)
            try:
                with os.fdopen(new, "wb") as file:
                    yield file
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=here)
                raise
        finally:
            os.close(here)
