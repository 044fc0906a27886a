"""Where control keeps what must outlive it: a folder for this user, and for each guest a journal, a lock, a marker.

Knows files, who may own them, and how a line gets to the disk for sure. What the lines say is left to `journal` and
`pausing`.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vmi_inside.errors import Busy, ControlError

#: Seconds for which another controller's lock is waited for.
PATIENCE: Final = 5.0
_POLL: Final = 0.02
#: Bytes of a journal that are read at a time; no line is longer.
_PIECE: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Seen:
    """How much of a journal was read: which file (device, inode), how many bytes; `on` from an earlier reading."""

    file: tuple[int, int] = (0, 0)
    size: int = 0
    on: bool = False


class Store:
    """The files of one guest. Raises `ControlError` where they are not this user's alone."""

    def __init__(self, identity: str, folder: Path | None = None) -> None:
        if not re.fullmatch(r"[\w-]{1,64}", identity):
            raise ControlError(f"no files can be named for a guest whose identity is {identity[:80]!r}")
        if folder is None:
            import platformdirs

            folder = Path(platformdirs.user_state_dir("vmi-inside", appauthor=False)) / "guests"
        self.folder = folder
        self._name = identity

    def path(self, kind: str) -> Path:
        """Where the file of that kind is: journal, lock, held."""
        return self.folder / f"{self._name}.{kind}"

    def lines(self) -> list[dict[str, Any]]:
        """The journal's records. A line that was not written to its end, as when the host went down, is left out."""
        return self.news(Seen())[0]

    def news(self, seen: Seen) -> tuple[list[dict[str, Any]], Seen]:
        """The records since then, and what is seen with them. All of them where the journal is another file by now."""
        try:
            fd = self._open("journal", os.O_RDONLY)
        except FileNotFoundError:
            return [], Seen()
        found = []
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            is_it = (status.st_dev, status.st_ino) == seen.file and seen.size <= status.st_size
            end = seen.size if is_it else 0
            while True:
                file.seek(end)
                *lines, _ = file.read(_PIECE).split(b"\n")
                if not lines:
                    break
                end += sum(len(line) + 1 for line in lines)
                for line in lines:
                    with suppress(ValueError, RecursionError):
                        record = json.loads(line)
                        if isinstance(record, dict):
                            found.append(record)
        return found, Seen((status.st_dev, status.st_ino), end, is_it)

    def append(self, record: dict[str, Any], *, sync: bool = True) -> None:
        """Add a record to the journal; it is on the disk when this returns, unless not `sync`.

        Without, it outlives this process, but not the host: `sync` sees to that later.
        """
        self._make_folder()
        fresh = not self.path("journal").exists()
        fd = self._open("journal", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            size = os.fstat(fd).st_size
            torn = b"\n" if size and os.pread(fd, 1, size - 1) != b"\n" else b""
            _write_all(fd, torn + json.dumps(record, separators=(",", ":")).encode() + b"\n")
            if sync:
                os.fsync(fd)
        except OSError as error:
            raise ControlError(f"cannot write the journal {self.path('journal')}: {error.strerror}") from error
        finally:
            os.close(fd)
        if fresh and sync:
            self._sync_folder()

    def sync(self) -> None:
        """Get what the journal has by now to the disk."""
        try:
            fd = self._open("journal", os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            os.fsync(fd)
        except OSError as error:
            raise ControlError(f"cannot write the journal {self.path('journal')}: {error.strerror}") from error
        finally:
            os.close(fd)

    def held(self) -> dict[str, Any] | None:
        """What a controller that holds the guest, or held it when it died, said of that."""
        try:
            fd = self._open("held", os.O_RDONLY)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:
            try:
                told = json.loads(file.read(1 << 20))
            except (ValueError, RecursionError):
                return {}
        return told if isinstance(told, dict) else {}

    def hold(self, told: dict[str, Any]) -> None:
        """Say that the guest is held, and how; survives this process."""
        self._make_folder()
        temporary = self.path("held~")
        with suppress(FileNotFoundError):
            temporary.unlink()
        try:
            fd = self._open("held~", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                _write_all(fd, json.dumps(told).encode())
            finally:
                os.close(fd)
            os.replace(temporary, self.path("held"))
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise ControlError(f"cannot write {self.path('held')}: {error.strerror}") from error

    def let_go(self) -> None:
        """Say that the guest is not held any more."""
        with suppress(FileNotFoundError):
            self.path("held").unlink()

    @contextmanager
    def lock(self, name: str, patience: float = PATIENCE) -> Iterator[None]:
        """Have the guest to ourselves. Raises `Busy` when another controller has it for `patience` seconds."""
        self._make_folder()
        fd = self._open("lock", os.O_RDWR | os.O_CREAT)
        try:
            deadline = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
                        who = f" (pid {holder})" if holder.isdigit() else ""
                        raise Busy(
                            f"{name}: another vmi-inside{who} has the guest in hand; wait for it to end"
                        ) from None
                    time.sleep(_POLL)
            with suppress(OSError):  # it only says who holds the lock, and the disk may be full
                os.ftruncate(fd, 0)
                os.pwrite(fd, b"%d\n" % os.getpid(), 0)
            yield
        finally:
            os.close(fd)

    def _open(self, kind: str, flags: int) -> int:
        path = self.path(kind)
        try:
            fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ControlError(f"cannot open {path}: {error.strerror}") from error
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            os.close(fd)
            raise ControlError(f"{path} is not a file of this user's alone (owner, 0600); it is not trusted")
        return fd

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = os.lstat(self.folder)
        except OSError as error:
            raise ControlError(f"cannot make {self.folder}: {error.strerror}") from error
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise ControlError(f"{self.folder} is not a folder of this user's alone (owner, 0700); it is not trusted")

    def _sync_folder(self) -> None:
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
