"""Kernel images as files: packed in every way, moved by KASLR, cut short, and no images at all."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import cramjam
import numpy as np
import pytest

from vmi_inside.errors import NoSuchDomain, Unsupported
from vmi_inside.profile.image import Image, read_image

TEXT, RODATA = 0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8200_0000


def elf(percpu: int | None = None) -> bytes:
    """A vmlinux of two sections with something to move, and perhaps one of per-CPU variables."""
    sections = [("", 0, b""), (".text", TEXT, b"\x90" * 100 + struct.pack("<i", -0x7F00_0000) + b"\x90" * 100)]
    sections.append((".rodata", RODATA, b"Linux version 1\0" + struct.pack("<Q", TEXT + 8)))
    if percpu is not None:
        sections.append((".data..percpu", percpu, bytes(16)))
    names = b"".join(name.encode() + b"\0" for name, _, _ in [*sections, (".shstrtab", 0, b"")])
    sections.append((".shstrtab", 0, names))
    body, headers, at = b"", b"", 64
    for name, address, data in sections:
        start = names.index(name.encode() + b"\0") if name else 0
        headers += struct.pack("<IIQQQQIIQQ", start, 1, 0, address, at + len(body), len(data), 0, 0, 1, 0)
        body += data
    head = b"\x7fELF\x02\x01\x01".ljust(0x28, b"\0") + struct.pack("<Q", 64 + len(body))
    head = head.ljust(0x3A, b"\0") + struct.pack("<HHH", 64, len(sections), len(sections) - 1)
    return head + body + headers


def relocations(*lists: list[int]) -> bytes:
    return b"".join(struct.pack(f"<{len(one) + 1}i", 0, *(place - (1 << 64) for place in one)) for one in lists)


def lz4(data: bytes) -> bytes:
    block = bytes(cramjam.lz4.compress_block(data, store_size=False))
    return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": lambda data: bytes(cramjam.zstd.compress(data)),
    "lz4": lz4,
}


def bzimage(payload: bytes, size: int) -> bytes:
    raw = bytearray(512 * 5)
    raw[0x1F1] = 4
    raw[0x202:0x206] = b"HdrS"
    payload += struct.pack("<I", size)
    struct.pack_into("<II", raw, 0x248, 0x100, len(payload))
    return bytes(raw) + bytes(0x100) + payload + bytes(100)


def read(tmp_path: Path, raw: bytes) -> Image:
    path = tmp_path / "vmlinuz"
    path.write_bytes(raw)
    return read_image(str(path))


@pytest.mark.parametrize("kind", PACKED)
def test_every_way_of_packing(tmp_path: Path, kind: str) -> None:
    whole = elf() + relocations([RODATA + 16], [TEXT + 100])
    image = read(tmp_path, bzimage(PACKED[kind](whole), len(whole)))
    assert {".text", ".rodata"} <= image.sections.keys()
    assert image.sections[".text"].address == TEXT
    assert image.at(RODATA, RODATA + 15).tobytes() == b"Linux version 1"  # type: ignore[union-attr]
    assert image.at(RODATA, RODATA + 100) is None


def test_what_moves_when_the_kernel_does(tmp_path: Path) -> None:
    slide = 0x1240_0000
    image = read(tmp_path, elf() + relocations([RODATA + 16], [TEXT + 100]))
    text, constants = image.relocated(".text", slide), image.relocated(".rodata", slide)
    assert struct.unpack_from("<i", text, 100) == (-0x7F00_0000 + slide,)
    assert struct.unpack_from("<Q", constants, 16) == (TEXT + 8 + slide,)
    assert np.flatnonzero(text != image.sections[".text"].data).min() >= 100
    assert np.array_equal(image.relocated(".text", 0), image.sections[".text"].data)
    # Until 6.14 there is a list of what moves the other way.
    older = read(tmp_path, elf(percpu=0) + relocations([RODATA + 16], [TEXT + 100], []))
    assert struct.unpack_from("<I", older.relocated(".text", slide), 100) == (0x8100_0000 - slide,)


def test_a_vmlinux_without_places_serves_where_nothing_moved(tmp_path: Path) -> None:
    image = read(tmp_path, elf())
    assert len(image.relocated(".text", 0)) == 204
    with pytest.raises(Unsupported, match="take the vmlinuz"):
        image.relocated(".text", 1 << 21)


def test_places_that_lie_are_passed_over(tmp_path: Path) -> None:
    image = read(tmp_path, elf() + relocations([RODATA + 24 - 7, TEXT - 4], [TEXT + 201, TEXT + (1 << 30)]))
    assert np.array_equal(image.relocated(".text", 4096), image.sections[".text"].data)
    assert np.array_equal(image.relocated(".rodata", 4096), image.sections[".rodata"].data)


@pytest.mark.parametrize("cut", [0x201, 0x24F, 512 * 5 + 0x100 + 3, 512 * 5 + 0x180])
@pytest.mark.parametrize("kind", PACKED)
def test_images_cut_short(tmp_path: Path, kind: str, cut: int) -> None:
    raw = bzimage(PACKED[kind](elf()), len(elf()))
    with pytest.raises(Unsupported):
        read(tmp_path, raw[:cut])


@pytest.mark.parametrize("kind", PACKED)
def test_images_that_lie_of_their_size(tmp_path: Path, kind: str) -> None:
    with pytest.raises(Unsupported, match="damaged"):
        read(tmp_path, bzimage(PACKED[kind](elf()), (1 << 32) - 1))
    with pytest.raises(Unsupported):
        read(tmp_path, bzimage(PACKED[kind](elf()), 10))


def test_files_that_are_no_images(tmp_path: Path) -> None:
    for raw in (b"", b"no kernel", b"\x7fELF\x01\x01" + bytes(100), b"\x7fELF\x02\x01" + bytes(100), elf()[:200],
                bzimage(b"unknown packing", 100)):  # fmt: skip
        with pytest.raises(Unsupported):
            read(tmp_path, raw)
    with pytest.raises(NoSuchDomain):
        read_image(str(tmp_path / "nothing"))
    with pytest.raises(Unsupported):
        read_image(str(tmp_path))
    header = bytearray(elf())
    struct.pack_into("<Q", header, 0x28, (1 << 64) - 8)
    with pytest.raises(Unsupported):
        read(tmp_path, bytes(header))
