"""A large file that is written once: zeros as holes, the checksum made on the way, whole or not at all.

Knows disks and checksums, and how the time that each takes passes beside the other's. What the bytes are is left to
`dumping`.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Protocol, Self

import numpy as np

from vmi_inside.errors import Unsupported, VmiError
from vmi_inside.newfile import replacing
from vmi_inside.types import PAGE_SHIFT, PAGE_SIZE, U8, Mask

#: How a dump can be vouched for, each by what `sha256sum -c` and `b3sum -c` check.
CHECKSUMS: Final = ("sha256", "blake3", "none")

_ZEROS: Final = bytes(1 << 20)
_FLUSHED: Final = 16 << 20  # bytes after which the disk is told to begin with them
_SYNC_FILE_RANGE_WRITE: Final = 2  # include/uapi/linux/fs.h

_libc = ctypes.CDLL(None)
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class _Checksum(Protocol):
    def update(self, data: Any, /) -> Any: ...

    def hexdigest(self) -> str: ...


class _None:
    """No checksum."""

    def update(self, data: Any, /) -> None:
        """Nothing is done with it."""

    def hexdigest(self) -> str:
        """It is empty."""
        return ""


@contextmanager
def new_file(
    path: str | os.PathLike[str], *, compress: bool = False, checksum: str = "sha256", force: bool = False
) -> Iterator[Sink]:
    """Where a dump is written to: a file that takes its name when all of it is on disk, or else is not there.

    Its owner alone may read it. Raises `VmiError` when `path` is there and not `force`, when the disk is full, and for
    whatever else the file system refuses; `Unsupported` when the package for `compress` or `checksum` is missing.
    """
    where = Path(path)
    if compress:
        _zstandard()
    summed = _checksum(checksum)
    if where.exists() and (not force or not where.is_file()):
        raise VmiError(f"{where} is there already" + ("; force=True writes over it" if where.is_file() else ""))
    try:
        with replacing(where, private=True) as file, (Packed if compress else Sink)(file, summed) as sink:
            yield sink
    except OSError as error:
        left = "nothing of the dump is left" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        raise VmiError("; ".join(filter(None, (f"{where}: {error.strerror or error}", left)))) from error


def _checksum(name: str) -> _Checksum:
    if name == "none":
        return _None()
    if name == "sha256":
        return hashlib.sha256()
    if name != "blake3":
        raise Unsupported(f"no checksum is called {name!r}; there are {', '.join(CHECKSUMS)}")
    try:
        import blake3
    except ImportError:
        raise Unsupported("BLAKE3 checksums need a package: pip install 'vmi-inside[blake3]'") from None
    made: _Checksum = blake3.blake3()
    return made


class Sink:
    """Bytes on their way into a file that is empty: what is zero becomes a hole. The checksum is of all of them."""

    def __init__(self, file: IO[bytes], checksum: _Checksum) -> None:
        self._file = file
        self._descriptor = file.fileno()
        self._checksum = checksum
        self._summing = not isinstance(checksum, _None)
        self._pool = ThreadPoolExecutor(1)
        self._flushed = 0
        #: Bytes so far.
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write(self, data: Any) -> None:
        """Some bytes."""
        whole = memoryview(data).cast("B")
        self._checksum.update(whole)
        self._put(whole)

    def zeros(self, size: int) -> None:
        """So many zeros."""
        self.size += size
        if self._summing:
            for start in range(0, size, len(_ZEROS)):
                self._checksum.update(memoryview(_ZEROS)[: size - start])

    def memory(self, data: U8) -> int:
        """Memory, (n,) uint8, whole pages but for the end; gives how many of the bytes were in pages of zeros.

        The caller may write over `data` afterwards.
        """
        # Checksums let other threads run: what the file system does is done meanwhile.
        summed = self._pool.submit(self._checksum.update, data.data)
        try:
            whole = len(data) & ~(PAGE_SIZE - 1)
            full = _full(data[:whole])
            edge = np.flatnonzero(full[1:] != full[:-1]) + 1
            starts = [0, *edge.tolist()] if len(full) else []
            for first, end in zip(starts, [*starts[1:], len(full)], strict=False):
                if full[first]:
                    self._put(data[first << PAGE_SHIFT : end << PAGE_SHIFT].data)
                else:
                    self.size += (end - first) << PAGE_SHIFT
            self._put(data[whole:].data)
        finally:
            summed.result()
        return int(len(full) - np.count_nonzero(full)) << PAGE_SHIFT

    def finish(self) -> None:
        """All is written: the file gets its length."""
        os.ftruncate(self._descriptor, self.size)

    @property
    def stored(self) -> int:
        """Bytes that the file takes on disk."""
        return os.fstat(self._descriptor).st_blocks * 512

    @property
    def checksum(self) -> str:
        """The checksum of the finished file, in hexadecimal; empty where none was asked for."""
        return self._checksum.hexdigest()

    def _put(self, left: memoryview) -> None:
        while left:
            done = os.pwrite(self._descriptor, left, self.size)
            self.size += done
            left = left[done:]
        if self.size - self._flushed >= _FLUSHED:
            # The disk begins now, not when all is written and somebody waits for it; that it does not is no error.
            _sync_file_range(self._descriptor, self._flushed, self.size - self._flushed, _SYNC_FILE_RANGE_WRITE)
            self._flushed = self.size


def _full(data: U8) -> Mask:
    """Which pages (n,) have anything but zeros in them."""
    return np.asarray(data.view("<u8").reshape(-1, PAGE_SIZE // 8).any(axis=1))


class Packed(Sink):
    """A `Sink` that compresses: a zstd stream, that `zstd -d --sparse` makes the same file of."""

    def __init__(self, file: IO[bytes], checksum: _Checksum) -> None:
        super().__init__(file, checksum)
        threads = min(os.cpu_count() or 1, 8)
        self._stream = (
            _zstandard().ZstdCompressor(level=1, threads=threads).stream_writer(_Into(super().write), closefd=False)
        )

    def write(self, data: Any) -> None:
        """See `Sink.write`."""
        self._stream.write(data)

    def zeros(self, size: int) -> None:
        """See `Sink.zeros`."""
        for start in range(0, size, len(_ZEROS)):
            self._stream.write(memoryview(_ZEROS)[: size - start])

    def memory(self, data: U8) -> int:
        """See `Sink.memory`."""
        self._stream.write(data)
        full = _full(data[: len(data) & ~(PAGE_SIZE - 1)])
        return int(len(full) - np.count_nonzero(full)) << PAGE_SHIFT

    def finish(self) -> None:
        """See `Sink.finish`."""
        self._stream.close()
        super().finish()


class _Into:
    """A file as a compressor needs it."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def write(self, data: bytes) -> int:
        """Take what was compressed."""
        self._write(data)
        return len(data)


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise Unsupported("compressed dumps need a package: pip install 'vmi-inside[zstd]'") from None
    return zstandard
