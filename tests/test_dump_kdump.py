"""Kdump's compressed format: pages by number, in every compression, flattened or not; and damaged in every way."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmi_inside.drivers import kdump
from vmi_inside.drivers.dump import open_dump
from vmi_inside.drivers.dumpfile import Dump
from vmi_inside.errors import BadDump, Unsupported, VmiError
from vmi_inside.memory import Run

PAGE = 4096
NOTES = struct.pack("<III8s", 5, 4, 1, b"CORE\0") + b"abcd"
INFO = b"OSRELEASE=6.1.0\n"

# Page numbers 0-2 and 16-17 and, past the first word of a bitmap, 4 more: three runs.
PAGES = {
    number: np.random.default_rng(number).integers(0, 2, PAGE, np.uint8).tobytes()
    for number in (0, 1, 2, 16, 17, 100, 103)
} | {101: bytes(PAGE), 102: bytes(PAGE)}


def build(
    pages: dict[int, bytes] = PAGES,
    compress: Callable[[bytes], bytes] = zlib.compress,
    flag: int = 1,
    *,
    bits: int = 64,
    split: int = 0,
    left_out: tuple[int, ...] = (),
    status: int | None = None,
) -> bytes:
    """A kdump file as makedumpfile would write it; pages of equal content share their data, as QEMU's zero pages do."""

    def bitmap(numbers: list[int]) -> bytes:
        bitmap = bytearray(PAGE)
        for number in numbers:
            bitmap[number // 8] |= 1 << number % 8
        return bytes(bitmap)

    header = b"KDUMP   " + struct.pack("<i", 6) + b"Linux".ljust(390, b"\0")
    header = header.ljust(424 if bits == 64 else 412, b"\0")
    header += struct.pack("<IIIIIIIIII", flag if status is None else status, PAGE, 1, 2, 0, 0, 0, 0, 0, 1)
    info_at = PAGE + 1024
    if bits == 64:
        sub = struct.pack("<QIIQQQQQQ", 0, 1, split, 0, 0, info_at, len(INFO), PAGE + 2048, len(NOTES))
    else:
        sub = struct.pack("<IIIIIQIQI", 0, 1, split, 0, 0, info_at, len(INFO), PAGE + 2048, len(NOTES))
    sub = (sub.ljust(1024, b"\0") + INFO).ljust(2048, b"\0") + NOTES
    maps = bitmap([*pages, *left_out]) + bitmap(list(pages))
    at = 4 * PAGE + 24 * len(pages)
    descriptors = data = b""
    known: dict[bytes, bytes] = {}
    for _, page in sorted(pages.items()):
        if page not in known:
            packed = compress(page)
            use, kind = (packed, flag) if len(packed) < PAGE else (page, 0)
            known[page] = struct.pack("<QIIQ", at + len(data), len(use), kind, 0)
            data += use
        descriptors += known[page]
    return header.ljust(PAGE, b"\0") + sub.ljust(PAGE, b"\0") + maps + descriptors + data


def flatten(content: bytes, step: int = 1000, *, before: bytes = b"") -> bytes:
    """The stream form: `before` is written first at offset 0, then all of `content` in records, the last part first."""
    records = [(0, before)] if before else []
    records += [(at, content[at : at + step]) for at in range(0, len(content), step)][::-1]
    body = b"".join(struct.pack(">qq", at, len(data)) + data for at, data in records)
    return (b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)).ljust(4096, b"\0") + body + struct.pack(">qq", -1, -1)


def load(tmp_path: Path, content: bytes, *, partial: bool = False) -> Dump:
    path = tmp_path / "dump"
    path.write_bytes(content)
    return open_dump(path, partial=partial)


def check(memory: Dump, pages: dict[int, bytes] = PAGES) -> None:
    for number, page in pages.items():
        assert memory.read(number * PAGE, PAGE) == page
    pa = np.array([number * PAGE + offset for number in range(120) for offset in (0, 1000, PAGE - 16)], np.uint64)
    pa = np.random.default_rng(3).permutation(pa)
    out = np.full((len(pa), 16), 7, np.uint8)
    ok = memory.gather(pa, out)
    for address, row, read in zip(pa.tolist(), out, ok.tolist(), strict=True):
        page = pages.get(address // PAGE)
        offset = address % PAGE
        assert read == (page is not None)
        assert row.tobytes() == (page[offset : offset + 16] if page else bytes(16))


@pytest.mark.parametrize("bits", [64, 32])
def test_pages(tmp_path: Path, bits: int) -> None:
    memory = load(tmp_path, build(bits=bits))
    assert memory.runs == (Run(0, 3 * PAGE), Run(16 * PAGE, 2 * PAGE), Run(100 * PAGE, 4 * PAGE))
    assert memory.how == "kdump, zlib compressed"
    assert memory.notices == []
    assert memory.notes.vmcoreinfo == INFO.decode()
    assert memory.notes.all[0].data == b"abcd"
    check(memory)
    memory.close()
    assert memory.read(0, 1) is None


def test_reads_across_pages(tmp_path: Path) -> None:
    memory = load(tmp_path, build())
    run = b"".join(PAGES[number] for number in range(100, 104))
    assert memory.read(100 * PAGE + 5, 3 * PAGE) == run[5 : 5 + 3 * PAGE]
    assert memory.read(100 * PAGE, 4 * PAGE) == run
    assert memory.read(100 * PAGE, 4 * PAGE + 1) is None
    assert memory.read(99 * PAGE, 2 * PAGE) is None
    assert memory.read(0, 1 << 62) is None
    assert memory.read(-1, 1) is None
    assert memory.read(5, 0) == b""
    out = np.zeros((1, 16), np.uint8)
    assert memory.gather(np.array([(1 << 64) - 16], np.uint64), out).tolist() == [False]
    assert memory.gather(np.zeros(0, np.uint64), np.zeros((0, 16), np.uint8)).shape == (0,)


def test_every_page_is_decompressed_once_an_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def count(data: bytes, size: int) -> bytes:
        asked.append(size)
        return zlib.decompress(data)

    monkeypatch.setitem(kdump._CODECS, 1, ("zlib", "", lambda: kdump._Codec(count, zlib.error)))
    memory = load(tmp_path, build())
    check(memory)
    assert len(asked) == len(set(PAGES.values()))


@pytest.mark.parametrize("step", [1, 1000, 4096, 1 << 20])
def test_flattened(tmp_path: Path, step: int) -> None:
    content = build({number: page for number, page in PAGES.items() if number > 16} if step == 1 else PAGES)
    memory = load(tmp_path, flatten(content, step))
    assert memory.notes.vmcoreinfo == INFO.decode()
    check(memory, {number: page for number, page in PAGES.items() if number > 16} if step == 1 else PAGES)


def test_flattened_believes_the_last_record(tmp_path: Path) -> None:
    check(load(tmp_path, flatten(build(), before=b"\xff" * 20_000)))


def test_flattened_truncated(tmp_path: Path) -> None:
    content = flatten(build())
    for size in (4096, 5000, len(content) - 16, len(content) - 17, len(content) - 600):
        with pytest.raises(BadDump, match="truncated"):
            load(tmp_path, content[:size])
    endless = content[:4096] + struct.pack(">qq", 0, 0) * 1000
    with pytest.raises(BadDump, match="record of 0 bytes"):
        load(tmp_path, endless)
    with pytest.raises(BadDump, match="makedumpfile -R"):
        load(tmp_path, flatten(b"\x7fELF" + bytes(5000)))


@pytest.mark.parametrize("hole", [17_000, 20_000])
def test_a_record_that_is_missing_costs_its_pages_only(tmp_path: Path, hole: int) -> None:
    content = build()
    whole = flatten(content)
    record = struct.pack(">qq", hole, 1000) + content[hole : hole + 1000]
    assert record in whole
    memory = load(tmp_path, whole.replace(record, b""))
    left = {}
    for row, number in enumerate(sorted(PAGES)):
        at, size = struct.unpack_from("<QI", content, 4 * PAGE + 24 * row)
        if at + size <= hole or at >= hole + 1000:
            left[number] = PAGES[number]
    assert 0 < len(left) < len(PAGES)
    check(memory, left)


def test_counts_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = build()
    monkeypatch.setattr(kdump, "_MOST_RECORDS", 5)
    check(load(tmp_path, flatten(content, 1 << 14)))
    with pytest.raises(BadDump, match="too many records; bring it in order: makedumpfile -R NEW <"):
        load(tmp_path, flatten(content))
    monkeypatch.setattr(kdump, "_MOST_RUNS", 2)
    with pytest.raises(BadDump, match="its bitmap has more than 2 runs of pages"):
        load(tmp_path, content)


def test_truncated(tmp_path: Path) -> None:
    content = build()
    with pytest.raises(BadDump, match="truncated"):
        load(tmp_path, content[:-1])
    memory = load(tmp_path, content[:-1], partial=True)
    assert "truncated" in memory.notices[0]
    check(memory, {number: page for number, page in PAGES.items() if number != 103})
    with pytest.raises(BadDump, match="bitmap"):
        load(tmp_path, content[: 4 * PAGE - 1], partial=True)
    with pytest.raises(BadDump, match="truncated"):
        load(tmp_path, build(status=1 | 8))  # makedumpfile met a full disk


def test_left_out_pages_are_told(tmp_path: Path) -> None:
    memory = load(tmp_path, build(left_out=(3, 4)))
    assert memory.notices == ["2 pages were left out when it was made (dump level 1) and cannot be read"]
    check(memory)


def test_damaged_page_is_one_fault(tmp_path: Path) -> None:
    """A page whose data does not decompress, or to another size, is not readable; the others are."""
    broken = dict(PAGES)
    content = bytearray(build())
    content[4 * PAGE + 24 * len(PAGES)] ^= 0xFF  # zlib's first byte, of page 0
    del broken[0]
    check(load(tmp_path, bytes(content)), broken)
    bomb = lambda page: zlib.compress(bytes(1 << 20) if page == PAGES[0] else page)  # noqa: E731
    memory = load(tmp_path, build(compress=bomb))
    assert memory.read(0, PAGE) == bytes(PAGE)  # decompressed no further than a page
    check(memory, broken | {0: bytes(PAGE)})
    short = lambda page: zlib.compress(page[:100] if page == PAGES[0] else page)  # noqa: E731
    check(load(tmp_path, build(compress=short)), broken)


def test_parts_and_nonsense(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="reassemble"):
        load(tmp_path, build(split=1))
    with pytest.raises(BadDump, match="no guest memory"):
        load(tmp_path, build({}))
    content = bytearray(build())
    struct.pack_into("<I", content, 428, 12345)  # the block size
    with pytest.raises(BadDump, match="no sense"):
        load(tmp_path, bytes(content))
    struct.pack_into("<IIII", content, 424, 1, PAGE, 1, (1 << 32) - 2)  # 8 TiB of bitmap
    with pytest.raises(BadDump, match="bitmap"):
        load(tmp_path, bytes(content))


def test_uncompressed(tmp_path: Path) -> None:
    memory = load(tmp_path, build(compress=lambda page: page, flag=0))
    assert memory.how == "kdump, not compressed"
    check(memory)


def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(kdump.importlib, "import_module", missing)
    for flag, package in ((2, "lzallright"), (4, "cramjam"), (0x20, "cramjam")):
        with pytest.raises(Unsupported, match=f"pip install {package}"):
            load(tmp_path, build(flag=flag, status=0))


def test_lzo(tmp_path: Path) -> None:
    lzallright = pytest.importorskip("lzallright")
    memory = load(tmp_path, build(compress=lambda page: bytes(lzallright.LZOCompressor().compress(page)), flag=2))
    assert memory.how == "kdump, lzo compressed"
    check(memory)


@pytest.mark.parametrize(("flag", "name"), [(4, "snappy"), (0x20, "zstd")])
def test_snappy_and_zstd(tmp_path: Path, flag: int, name: str) -> None:
    cramjam = pytest.importorskip("cramjam")
    compress = {"snappy": cramjam.snappy.compress_raw, "zstd": cramjam.zstd.compress}[name]
    memory = load(tmp_path, build(compress=lambda page: bytes(compress(page)), flag=flag))
    assert memory.how == f"kdump, {name} compressed"
    check(memory)


PLAIN = build()
FLAT = flatten(PLAIN)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flat=st.booleans(),
    flips=st.lists(
        st.tuples(
            st.sampled_from([424, 4096, 8192, 12288, 16384, 17000, 23000]), st.integers(0, 120), st.integers(0, 255)
        ),
        min_size=1,
        max_size=6,
    ),
    cut=st.integers(0, 3000),
    partial=st.booleans(),
)
def test_damaged(tmp_path: Path, flat: bool, flips: list[tuple[int, int, int]], cut: int, partial: bool) -> None:
    content = bytearray(FLAT if flat else PLAIN)
    for base, offset, value in flips:
        content[min(base + offset, len(content) - 1)] = value
    try:
        memory = load(tmp_path, bytes(content[: len(content) - cut]), partial=partial)
    except VmiError:
        return
    pa = np.array([run.start for run in memory.runs[:100]] + [run.end - 8 for run in memory.runs[:100]], np.uint64)
    out = np.full((len(pa), 8), 7, np.uint8)
    ok = memory.gather(pa, out)
    assert not out[~ok].any()
    for address, row, read in zip(pa.tolist(), out, ok.tolist(), strict=True):
        assert memory.read(address, 8) == (row.tobytes() if read else None)
    memory.close()
