"""A kernel's image as a file: `vmlinuz` or `vmlinux`, its sections, and what they look like once KASLR moved them.

Knows the boot protocol's header (Documentation/arch/x86/boot.rst), the formats that kernels are packed in, ELF's
section headers, and the relocations that follow the ELF file in a packed image (arch/x86/boot/compressed/misc.c). What
runs, and what the sections are for, is left to others.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from vmi_inside.errors import NoSuchDomain, PermissionDenied, Unsupported
from vmi_inside.types import U8, U64

#: No kernel is larger, packed or not.
SIZE_LIMIT: Final = 1 << 30
_SECTOR: Final = 512
_SETUP_SECTORS, _MAGIC, _PAYLOAD = 0x1F1, 0x202, 0x248
_LZ4_BLOCK: Final = 8 << 20
_NOBITS: Final = 8  # SHT_NOBITS


@dataclass(frozen=True, slots=True)
class Section:
    """One section: where it was linked to be, and its bytes."""

    name: str
    address: int
    data: U8


class Image:
    """The sections of a kernel, by name, and the places in them that hold addresses.

    `moved` are those places, by link address: of 32-bit words, of 32-bit words that count the other way, of 64-bit
    words; None where the file does not tell them.
    """

    def __init__(self, name: str, sections: dict[str, Section], moved: tuple[U64, U64, U64] | None) -> None:
        self.name = name
        self.sections = sections
        self.moved = moved

    def at(self, start: int, end: int) -> U8 | None:
        """The bytes between two link addresses, where one section has them all."""
        for section in self.sections.values():
            if section.address <= start <= end <= section.address + len(section.data) and section.address:
                return section.data[start - section.address : end - section.address]
        return None

    def relocated(self, name: str, slide: int) -> U8:
        """A section as it is in memory, moved by `slide` bytes. Raises `Unsupported` where that cannot be told."""
        section = self.sections[name]
        data = section.data.copy()
        if not slide:
            return data
        if self.moved is None:
            raise Unsupported(f"{self.name} does not say what KASLR changes in it; take the vmlinuz of the same build")
        for places, width, sign in zip(self.moved, (4, 4, 8), (1, -1, 1), strict=True):
            offset = (places - np.uint64(section.address)).astype(np.int64)
            offset = offset[(offset >= 0) & (offset <= len(data) - width)]
            at = offset[:, None] + np.arange(width)[None, :]
            kind = f"<u{width}"
            words = np.ascontiguousarray(data[at]).view(kind)[:, 0]
            step = np.array([sign * slide], dtype=np.int64).astype(kind)  # modulo the word's size
            data[at] = (words + step).view(np.uint8).reshape(-1, width)
        return data


def read_image(path: str) -> Image:
    """Read `vmlinuz` or `vmlinux`. Raises `NoSuchDomain`, `PermissionDenied`, and `Unsupported` for other files."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(SIZE_LIMIT)
    except FileNotFoundError as error:
        raise NoSuchDomain(f"{path}: there is no such file") from error
    except PermissionError as error:
        raise PermissionDenied(f"{path}: may not be read; try sudo") from error
    except OSError as error:
        raise Unsupported(f"{path}: {error.strerror}") from error
    try:
        if raw[_MAGIC : _MAGIC + 4] == b"HdrS":
            raw = _unpacked(path, raw)
        if raw[:6] != b"\x7fELF\x02\x01":
            raise Unsupported(f"{path} is no image of a 64-bit Linux kernel: neither vmlinuz nor vmlinux")
        return _elf(path, raw)
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise Unsupported(f"{path} is damaged, or no image of a Linux kernel: {error}") from error


def _unpacked(path: str, raw: bytes) -> bytes:
    """What a bzImage holds: its size is told by the last four bytes of the payload."""
    start, length = struct.unpack_from("<II", raw, _PAYLOAD)
    begin = ((raw[_SETUP_SECTORS] or 4) + 1) * _SECTOR + start
    payload = raw[begin : begin + length]
    if len(payload) < length:
        raise Unsupported(f"{path} is cut short")
    (size,) = struct.unpack_from("<I", payload, len(payload) - 4)
    if size > SIZE_LIMIT:
        raise Unsupported(f"{path} is damaged: it says that it holds {size} bytes")
    unpack = next((unpack for magic, unpack in _PACKED.items() if payload.startswith(magic)), None)
    if unpack is None:
        raise Unsupported(f"{path} is packed in a way that is not known here; unpack it with scripts/extract-vmlinux")
    try:
        unpacked = unpack(payload, size)[:size]
    except (lzma.LZMAError, zlib.error, OSError) as error:
        raise Unsupported(f"{path} is damaged: {error}") from error
    if len(unpacked) < size:
        raise Unsupported(f"{path} is damaged: it holds less than it says")
    return unpacked


def _cramjam(kind: str) -> Any:
    try:
        return importlib.import_module("cramjam")
    except ImportError:
        raise Unsupported(f"kernels packed with {kind} need cramjam: pip install 'vmi-inside[kdump]'") from None


def _zstd(payload: bytes, size: int) -> bytes:
    module = _cramjam("zstd")
    out = bytearray(size)
    try:
        return bytes(out[: module.zstd.decompress_into(payload[:-4], out)])
    except module.DecompressionError as error:
        raise ValueError(str(error)) from error


def _lz4(payload: bytes, size: int) -> bytes:
    """The legacy format: blocks of 8 MiB, each behind its packed size."""
    module = _cramjam("lz4")
    parts, at, left = [], 4, size
    while left > 0:
        (length,) = struct.unpack_from("<I", payload, at)
        want = min(left, _LZ4_BLOCK)
        try:
            part = bytes(module.lz4.decompress_block(payload[at + 4 : at + 4 + length], output_len=_LZ4_BLOCK))
        except module.DecompressionError as error:
            raise ValueError(str(error)) from error
        parts.append(part[:want])
        at, left = at + 4 + length, left - want
    return b"".join(parts)


#: Ways in which kernels are packed, by the first bytes: lz4, zstd, xz, gzip, lzma, bzip2.
_PACKED: Final[dict[bytes, Callable[[bytes, int], bytes]]] = {
    b"\x02\x21\x4c\x18": _lz4,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\xfd7zXZ\0": lambda payload, size: lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload, size),
    b"\x1f\x8b": lambda payload, size: zlib.decompressobj(31).decompress(payload, size),
    b"\x5d\0\0": lambda payload, size: lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(payload, size),
    b"BZh": lambda payload, size: bz2.BZ2Decompressor().decompress(payload, size),
}


def _elf(path: str, raw: bytes) -> Image:
    (table,) = struct.unpack_from("<Q", raw, 0x28)
    count, names_at = struct.unpack_from("<HH", raw, 0x3C)
    headers = [struct.unpack_from("<IIQQQQIIQQ", raw, table + 64 * number) for number in range(count)]
    if not headers:
        raise Unsupported(f"{path} has no sections")
    whole = np.frombuffer(raw, np.uint8)
    names = headers[names_at][4]
    sections: dict[str, Section] = {}
    end = table + 64 * count
    for name_at, kind, _, address, offset, size, *_ in headers:
        if kind == _NOBITS:
            continue
        name = raw[names + name_at : raw.index(b"\0", names + name_at)].decode("ascii")
        sections.setdefault(name, Section(name, address, whole[offset : offset + size]))
        end = max(end, offset + size)
    # Until 6.14 per-CPU variables were linked to 0: what leads from them to the rest moves the other way.
    percpu = sections.get(".data..percpu")
    return Image(path, sections, _moved(raw[end:], 3 if percpu is not None and percpu.address == 0 else 2))


def _moved(tail: bytes, lists: int) -> tuple[U64, U64, U64] | None:
    """The lists of places behind the ELF file, each behind a zero: 64-bit, perhaps those the other way, 32-bit."""
    words = np.frombuffer(tail[len(tail) % 4 :], "<i4")
    zeros = np.flatnonzero(words == 0)[-lists:]
    if len(zeros) < lists:
        return None
    wide, *other, narrow = (part[1:].astype(np.int64).view(np.uint64) for part in np.split(words, zeros)[1:])
    return narrow, other[0] if other else np.empty(0, dtype=np.uint64), wide
