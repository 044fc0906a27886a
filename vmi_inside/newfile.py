"""Files that are written whole or not at all.

Knows that a file takes its name when all of it is on disk. What is in it is left to who writes it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """A new file, which takes its name when all of it is on disk; on failure nothing is left of it.

    A `private` one can be read by its owner alone.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:200]}.", dir=path.parent or ".")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not private:
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
