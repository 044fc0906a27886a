"""Dumps of made-up guests, read back by our own drivers and by pyelftools; disks that are full, memory that is not."""

from __future__ import annotations

import hashlib
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest
import zstandard
from elftools.elf.elffile import ELFFile

from tests.synthetic import SyntheticGuest
from tests.synthetic.guest import DIRECT, IMAGE, IMAGE_PA, IMAGE_SIZE, NOWHERE
from tests.synthetic.layout import Layout
from vmi_inside import dumping, sink
from vmi_inside.drivers.dump import open_dump
from vmi_inside.drivers.mapped import MappedMemory
from vmi_inside.errors import Unsupported, VmiError
from vmi_inside.memory import Run
from vmi_inside.types import U8, U64, Mask

INFO = b"OSRELEASE=synthetic\nBUILD-ID=00\nPAGESIZE=4096\n"


class Dumpable(SyntheticGuest):
    """A guest whose kernel knows what a dump needs."""

    def __init__(self) -> None:
        super().__init__()
        self.profile.layout.structs |= Layout("page 64\n    flags 0 u64\n").structs
        self.profile.origin = IMAGE  # type: ignore[attr-defined]
        self.profile.symbols["_end"] = IMAGE + IMAGE_SIZE - 4096
        self.word(self.global_("page_offset_base", 8), DIRECT)
        self.text = self.alloc(4096)
        self.write(self.text, INFO)
        self.word(self.global_("vmcoreinfo_data", 8), self.text)
        self.word(self.global_("vmcoreinfo_size", 8), len(INFO))
        random = np.random.default_rng(3)
        for array in self.ram.arrays:
            for page in random.integers(0, len(array) >> 12, 900).tolist():
                if not array[page << 12 : (page + 1) << 12].any() and not page & 7:
                    array[page << 12 : (page + 1) << 12] = random.integers(0, 256, 4096, np.uint8)
            array[-8:] = 7  # the last page is not zero


@pytest.fixture
def guest() -> Dumpable:
    return Dumpable()


def dumped(
    guest: Dumpable,
    path: Path,
    form: str = "elf",
    compress: bool = False,
    checksum: str = "sha256",
    **more: object,
) -> dumping.Dumped:
    made = dumping.Dumped(str(path), form)
    with sink.new_file(path, compress=compress, checksum=checksum) as file:
        dumping.write_dump(guest.kernel, file, made, **more)  # type: ignore[arg-type]
        file.finish()
        made.size, made.stored, made.checksum = file.size, file.stored, file.checksum
    return made


@pytest.mark.parametrize("form", dumping.FORMATS)
def test_every_format_has_every_byte(guest: Dumpable, form: str, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    made = dumped(guest, tmp_path / "dump", form, progress=lambda done, total: told.append((done, total)))
    memory = open_dump(tmp_path / "dump")
    for run, array in zip(guest.ram.runs, guest.ram.arrays, strict=True):
        assert bytes(memory.read(run.start, run.size) or b"") == array.tobytes()
    assert memory.runs == (tuple(guest.ram.runs) if form != "raw" else (Run(0, (4 << 30) + (48 << 20)),))
    raw = (tmp_path / "dump").read_bytes() if form != "raw" else b""
    assert form == "raw" or made.checksum == hashlib.sha256(raw).hexdigest()
    assert (tmp_path / "dump").stat().st_size == made.size
    assert (tmp_path / "dump").stat().st_mode & 0o777 == 0o600
    zeros = sum(int((~array.reshape(-1, 4096).any(axis=1)).sum()) << 12 for array in guest.ram.arrays)
    assert (made.memory, made.zeros, made.missing) == (96 << 20, zeros, 0)
    assert made.stored < (96 << 20) - zeros * 9 // 10  # they are holes
    assert told[-1] == (96 << 20, 96 << 20)
    assert told == sorted(told)
    assert os.listdir(tmp_path) == ["dump"]


def test_the_checksum_of_a_file_with_a_large_hole(guest: Dumpable, tmp_path: Path) -> None:
    parts = [(Run(0, 1 << 20), np.ones(1 << 20, np.uint8)), (Run(40 << 20, 1 << 20), np.ones(1 << 20, np.uint8))]
    guest.space.memory = MappedMemory(parts)
    made = dumped(guest, tmp_path / "dump", "raw")
    assert made.checksum == hashlib.sha256((tmp_path / "dump").read_bytes()).hexdigest()
    assert made.size == 41 << 20


def test_a_core_as_others_read_it(guest: Dumpable, tmp_path: Path) -> None:
    states = [
        {
            "cr3": 0x1234000,
            "k_gs_base": 5,
            "rip": IMAGE + 16,
            "rsp": DIRECT + 8,
            "eflags": 0x246,
            "cs": 0x10,
            "gs_base": (1 << 64) - 1,
        },
        {},
    ]
    made = dumped(guest, tmp_path / "core", registers=states)
    assert (made.vcpus, made.vmcoreinfo, made.notices) == (2, True, [])
    with (tmp_path / "core").open("rb") as file:
        elf = ELFFile(file)
        assert (elf["e_type"], elf["e_machine"]) == ("ET_CORE", "EM_X86_64")
        loads = [each for each in elf.iter_segments() if each["p_type"] == "PT_LOAD"]
        low, high = guest.ram.runs
        assert [(each["p_vaddr"], each["p_paddr"], each["p_filesz"]) for each in loads] == [
            (IMAGE, IMAGE_PA, IMAGE_SIZE - 4096),
            (DIRECT, 0, low.size),
            (DIRECT + high.start, high.start, high.size),
        ]
        assert all(each["p_filesz"] == each["p_memsz"] and not each["p_offset"] % 4096 for each in loads)
        assert loads[0]["p_offset"] == loads[1]["p_offset"] + IMAGE_PA
        notes = [note for each in elf.iter_segments() if each["p_type"] == "PT_NOTE" for note in each.iter_notes()]
        assert [note["n_name"] for note in notes] == ["CORE", "CORE", "QEMU", "QEMU", "VMCOREINFO"]
        assert notes[-1]["n_descdata"] == INFO
        assert loads[0]["p_align"] == 0  # else crash takes it for a netdump
    read = open_dump(tmp_path / "core").notes
    assert read.vmcoreinfo == INFO.decode()
    assert not read.damaged
    first, second = read.registers
    assert (first["rip"], first["rsp"], first["rflags"], first["cs"]) == (IMAGE + 16, DIRECT + 8, 0x246, 0x10)
    assert (first["gs_base"], first["kernel_gs_base"], first["cr3"]) == ((1 << 64) - 1, 5, 0x1234000)
    assert set(second.values()) == {0}


@pytest.mark.parametrize("compress", [False, True])
def test_other_checksums(guest: Dumpable, compress: bool, tmp_path: Path) -> None:
    made = dumped(guest, tmp_path / "a", compress=compress, checksum="blake3")
    assert made.checksum == blake3.blake3((tmp_path / "a").read_bytes()).hexdigest()
    assert not dumped(guest, tmp_path / "b", compress=compress, checksum="none").checksum
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


class Restless(MappedMemory):
    """Memory that is another at each look."""

    def read(self, pa: int, size: int) -> bytes | memoryview | None:
        self.array += 1
        return super().read(pa, size)

    def gather(self, pa: U64, out: U8) -> Mask:
        self.array += 1
        return super().gather(pa, out)

    def __init__(self) -> None:
        self.array = np.zeros(32 << 20, np.uint8)
        super().__init__([(Run(0, len(self.array)), self.array)])


@pytest.mark.parametrize("compress", [False, True])
def test_the_checksum_is_of_what_was_written_though_memory_changes(
    guest: Dumpable, compress: bool, tmp_path: Path
) -> None:
    guest.space.memory = Restless()
    made = dumped(guest, tmp_path / "dump", "raw", compress=compress)
    assert made.checksum == hashlib.sha256((tmp_path / "dump").read_bytes()).hexdigest()


def test_a_compressed_dump_is_the_same_file(guest: Dumpable, tmp_path: Path) -> None:
    plain, packed = dumped(guest, tmp_path / "a"), dumped(guest, tmp_path / "b", compress=True)
    raw = (tmp_path / "b").read_bytes()
    assert hashlib.sha256(raw).hexdigest() == packed.checksum
    assert len(raw) == packed.size < plain.stored
    assert packed.zeros == plain.zeros
    with (tmp_path / "b").open("rb") as file:
        unpacked = zstandard.ZstdDecompressor().stream_reader(file).read()
    assert unpacked == (tmp_path / "a").read_bytes()


@pytest.mark.parametrize("lie", ["nowhere", "endless", "negative", "text", "none"])
def test_vmcoreinfo_that_lies(guest: Dumpable, lie: str, tmp_path: Path) -> None:
    pointer, size = guest.profile.symbols["vmcoreinfo_data"], guest.profile.symbols["vmcoreinfo_size"]
    match lie:
        case "nowhere":
            guest.word(pointer, NOWHERE)
        case "endless":
            guest.word(size, 1 << 40)
        case "negative":
            guest.word(size, -1)
        case "text":
            guest.write(guest.text, b"\x1b[31m")
        case "none":
            del guest.profile.symbols["vmcoreinfo_data"]
    made = dumped(guest, tmp_path / "core")
    assert not made.vmcoreinfo
    assert any("VMCOREINFO" in notice for notice in made.notices)
    assert open_dump(tmp_path / "core").notes.vmcoreinfo is None


@pytest.mark.parametrize("end", [IMAGE, IMAGE - 4096, IMAGE + (1 << 40), (1 << 64) - 1, IMAGE + (512 << 20)])
def test_an_image_that_cannot_be(guest: Dumpable, end: int, tmp_path: Path) -> None:
    guest.profile.symbols["_end"] = end
    dumped(guest, tmp_path / "core")
    with (tmp_path / "core").open("rb") as file:
        loads = [each["p_vaddr"] for each in ELFFile(file).iter_segments() if each["p_type"] == "PT_LOAD"]
    assert loads == [DIRECT, DIRECT + (4 << 30)]


class Torn(MappedMemory):
    """Memory of which some pages cannot be read."""

    bad = (0x5000, (4 << 30) + 0x3000)

    def read(self, pa: int, size: int) -> bytes | memoryview | None:
        return None if any(pa <= at < pa + size for at in self.bad) else super().read(pa, size)

    def gather(self, pa: U64, out: U8) -> Mask:
        ok = super().gather(pa, out) & ~np.isin(pa, np.array(self.bad, np.uint64))
        out[~ok] = 0
        return ok


def test_pages_that_cannot_be_read_are_zeros_and_counted(guest: Dumpable, tmp_path: Path) -> None:
    for run, array in zip(guest.ram.runs, guest.ram.arrays, strict=True):
        array[0x3000:0x7000] = 1 + (run.start > 0)
    guest.space.memory = Torn(zip(guest.ram.runs, guest.ram.arrays, strict=True))
    made = dumped(guest, tmp_path / "raw", "lime")
    assert made.missing == 2 * 4096
    assert any("0x2000 bytes could not be read" in notice for notice in made.notices)
    memory = open_dump(tmp_path / "raw")
    assert bytes(memory.read(0x4000, 0x3000) or b"") == b"\1" * 4096 + bytes(4096) + b"\1" * 4096
    assert memory.read((4 << 30) + 0x3000, 4096) == bytes(4096)


def test_ranges_that_do_not_end_with_a_page(guest: Dumpable, tmp_path: Path) -> None:
    """As LiME's of a real machine."""
    array = np.random.default_rng(1).integers(0, 256, 0x9FC00, np.uint8)
    other = np.zeros(48 << 20, np.uint8)
    guest.space.memory = MappedMemory([(Run(0, len(array)), array), (Run(0x100000, len(other)), other)])
    guest.profile.origin = NOWHERE  # type: ignore[attr-defined]
    guest.profile.symbols.clear()
    for form in dumping.FORMATS:
        made = dumped(guest, tmp_path / form, form)
        memory = open_dump(tmp_path / form, file_format=form)
        assert memory.read(0, len(array)) == array.tobytes()
        assert memory.read(0x100000, 4096) == bytes(4096)
        assert made.memory == len(array) + len(other)


# -- files ------------------------------------------------------------------------------------------------------------


def test_what_is_there_is_not_written_over(guest: Dumpable, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_text("precious")
    with pytest.raises(VmiError, match=r"there already; force=True"), sink.new_file(path):
        pytest.fail("a file was opened")
    with pytest.raises(VmiError, match="there already"), sink.new_file(tmp_path, force=True):
        pytest.fail("a folder was opened")
    with pytest.raises(VmiError, match="No such file"), sink.new_file(tmp_path / "none" / "dump"):
        pytest.fail("a file was opened")
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == ["dump"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, VmiError("gone"), ValueError])
def test_of_a_dump_that_fails_nothing_is_left(guest: Dumpable, tmp_path: Path, error: type[BaseException]) -> None:
    def fail(done: int, total: int) -> None:
        if done > 16 << 20:
            raise error

    for compress in (False, True):
        path = tmp_path / "dump"
        made = dumping.Dumped(str(path), "elf")
        with pytest.raises(BaseException), sink.new_file(path, compress=compress) as file:  # noqa: B017, PT011
            dumping.write_dump(guest.kernel, file, made, progress=fail)
        assert os.listdir(tmp_path) == []


@pytest.fixture
def small_disk() -> Iterator[int]:
    """No file may become larger than this. Python ignores the signal, and the write fails."""
    limit = 8 << 20
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.usefixtures("small_disk")
def test_a_disk_that_is_full(guest: Dumpable, tmp_path: Path, compress: bool) -> None:
    guest.ram.arrays[1][:] = np.random.default_rng(4).integers(0, 256, len(guest.ram.arrays[1]), np.uint8)
    path = tmp_path / "dump"
    with pytest.raises(VmiError, match=r"dump: File too large; nothing of the dump is left"):
        dumped(guest, path, compress=compress)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("package", "extra", "asked"),
    [("zstandard", "zstd", {"compress": True}), ("blake3", "blake3", {"checksum": "blake3"})],
)
def test_without_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, extra: str, asked: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Unsupported, match=rf"vmi-inside\[{extra}\]"), sink.new_file(tmp_path / "d", **asked):
        pytest.fail("a file was opened")
    assert os.listdir(tmp_path) == []
