"""Profiles kept on disk, one file for each kernel build, mapped and used in place.

Knows files: who may have written them, whether they are whole. What is in them is left to `profile`.

A file is a header, JSON, and arrays that start at multiples of 64 bytes. It is written under another name, brought to
disk and renamed, so that readers and writers of the same build never meet half a file. A file or folder that another
user could have written is not used: it would decide what we believe of a guest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import stat
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside.profile.arrays import Arrays

#: Names another folder than the platform's.
ENVIRONMENT: Final = "VMI_INSIDE_CACHE"
FORMAT: Final = 1

_MAGIC: Final = b"vmi-prof"
_HEADER: Final = struct.Struct("<8sIIQII")  # magic, format, size of the JSON, of all, checksum of JSON, of arrays
_ALIGN: Final = 64
_BLOCK: Final = 1 << 16
_JSON_LIMIT: Final = 1 << 20
_DTYPES: Final = ("|u1", "<u2", "<u4", "<i8", "<u8")
_ENTRY_LIMIT: Final = 16  # files that are looked at for one banner
_SUFFIX: Final = ".profile"


@dataclass(frozen=True, slots=True)
class Entry:
    """What a file holds: `meta` is what JSON can say, `arrays` are read-only views of the mapped file."""

    meta: Mapping[str, Any]
    arrays: Arrays


@dataclass(frozen=True, slots=True)
class Kept:
    """One file of the cache; `size` in bytes, `written` in seconds since the epoch. `fault` says why it is not used."""

    path: Path
    build_id: str
    release: str
    banner: str
    size: int
    written: int
    fault: str = ""


def default_folder() -> Path:
    """Where profiles are kept: `$VMI_INSIDE_CACHE`, or else the platform's folder for caches."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_cache_dir("vmi-inside"))


class Cache:
    """A folder of profiles. What goes wrong with it never raises, it is told in `warnings`."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = default_folder() if folder is None else folder
        self.warnings: list[str] = []

    def entries(self, banner: bytes) -> Iterator[Entry]:
        """The whole, undamaged entries of the kernels with this banner; different builds may share one."""
        if not self._trusted(self.folder):
            return
        try:
            paths = sorted(self.folder.glob(f"{_digest(banner)}-*{_SUFFIX}"))[:_ENTRY_LIMIT]
        except OSError:
            return
        for path in paths:
            entry = self._load(path)
            if entry is not None:
                yield entry

    def kept(self) -> Iterator[Kept]:
        """Every file that is there, those that are not used as well."""
        try:
            paths = sorted(self.folder.glob(f"*{_SUFFIX}"))
        except OSError:
            return
        for path in paths:
            try:
                status = path.stat()
            except OSError:
                continue
            entry = self._load(path)
            meta = entry.meta if entry else {}
            banner = str(meta.get("banner", ""))
            words = banner.split()
            build_id = str(meta.get("build_id", "")) or path.name.removesuffix(_SUFFIX).partition("-")[2]
            fault = "" if entry else "damaged, of another version, or another user's"
            release = words[2] if len(words) > 2 else ""
            yield Kept(path, build_id, release, banner.rstrip("\n"), status.st_size, int(status.st_mtime), fault)

    def save(self, banner: bytes, build_id: str, meta: Mapping[str, Any], arrays: Arrays) -> None:
        """Keep a profile. The folder is made, for this user alone, when it is not there."""
        name = f"{_digest(banner)}-{build_id}{_SUFFIX}"
        if not build_id.isalnum():
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._trusted(self.folder):
                return
            fd, temporary = tempfile.mkstemp(prefix=".", suffix=".new", dir=self.folder)  # 0600
            try:
                with os.fdopen(fd, "wb") as file:
                    file.writelines(_pack(meta, arrays))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.folder / name)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            self.warnings.append(
                f"the kernel's profile could not be kept in {self.folder}: {error.strerror}; it will be learned again "
                f"each time (set {ENVIRONMENT} to another folder)"
            )

    def _trusted(self, path: Path) -> bool:
        try:
            status = path.stat()
        except OSError:
            return False
        return self._own(path, status)

    def _own(self, path: Path, status: os.stat_result) -> bool:
        if status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return True
        self.warnings.append(
            f"{path} belongs to another user, or others may write to it; it is not used (set {ENVIRONMENT} to a folder "
            "of your own, or change its owner and mode)"
        )
        return False

    def _load(self, path: Path) -> Entry | None:
        """An entry, or None when the file is not ours, damaged, or of another format: it is written anew then."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or not self._own(path, status) or status.st_size < _HEADER.size:
                    return None
                mapped = mmap.mmap(fd, status.st_size, access=mmap.ACCESS_READ)
            finally:
                os.close(fd)
        except OSError:
            return None
        return _unpack(mapped)


def _digest(banner: bytes) -> str:
    return hashlib.sha256(banner).hexdigest()[:16]


def _checksum(raw: NDArray[np.uint8]) -> int:
    """Of the sums of all blocks of 64 KiB: finds every changed bit, byte and block at the speed of memory."""
    whole = len(raw) - len(raw) % _BLOCK
    sums = raw[:whole].view("<u8").reshape(-1, _BLOCK // 8).sum(axis=1, dtype=np.uint64)
    return zlib.crc32(raw[whole:].tobytes(), zlib.crc32(sums.tobytes()))


def _pack(meta: Mapping[str, Any], arrays: Arrays) -> Iterator[bytes | memoryview]:
    """The file in pieces: header, JSON, arrays, each filled up to a multiple of 64 bytes."""
    places: dict[str, tuple[str, int, int]] = {}
    pieces = []
    at = 0
    for name, array in arrays.items():
        flat = np.ascontiguousarray(array)
        places[name] = (flat.dtype.str, at, len(flat))
        pieces += [flat.view(np.uint8), np.zeros(-flat.nbytes % _ALIGN, np.uint8)]
        at += flat.nbytes + -flat.nbytes % _ALIGN
    body = np.concatenate(pieces) if pieces else np.zeros(0, np.uint8)
    text = json.dumps({"meta": meta, "arrays": places}).encode()
    text += b" " * (-(len(text) + _HEADER.size) % _ALIGN)
    size = _HEADER.size + len(text) + len(body)
    yield _HEADER.pack(_MAGIC, FORMAT, len(text), size, zlib.crc32(text), _checksum(body))
    yield text
    yield body.data


def _unpack(mapped: mmap.mmap) -> Entry | None:
    magic, form, json_size, size, json_sum, body_sum = _HEADER.unpack_from(mapped)
    start = _HEADER.size + json_size
    if (magic, form, size) != (_MAGIC, FORMAT, len(mapped)) or json_size > _JSON_LIMIT or start > size:
        return None
    text = mapped[_HEADER.size : start]
    body = np.frombuffer(mapped, np.uint8)[start:]
    if zlib.crc32(text) != json_sum or _checksum(body) != body_sum:
        return None
    try:
        told = json.loads(text)
        arrays = {}
        for name, (dtype, at, count) in told["arrays"].items():
            if dtype not in _DTYPES or at < 0 or count < 0 or at % 8:
                return None
            end = at + count * np.dtype(dtype).itemsize
            if end > len(body):
                return None
            arrays[name] = body[at:end].view(dtype)
        return Entry(dict(told["meta"]), arrays)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # the checksum is right, so it was written so: by another program
