"""Learning a kernel from memory, with kernels made of bytes: real tables, types, notes and page tables, little else."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tests.test_btf import Blob
from tests.test_kallsyms import LAYOUTS, Line, encode
from vmi_inside.drivers.mapped import MappedMemory
from vmi_inside.errors import NoMember, NoSymbol, UnknownKernel
from vmi_inside.memory import Run
from vmi_inside.profile import find, kallsyms, vmcoreinfo
from vmi_inside.profile.cache import Cache
from vmi_inside.profile.learn import Learned, learn
from vmi_inside.types import U8

MIB = 1 << 20
SLOT = 2 * MIB
RELEASE = "6.1.0-9-amd64"

# Places behind _text, in the order of a kernel's image.
RODATA = 1 * SLOT
SPARE, BANNER, NOTES, BTF, TABLES = RODATA + 0xE0, RODATA + 0x5000, RODATA + 0x6000, RODATA + 0x7000, RODATA + 0x10000
DATA = 2 * SLOT
ROOT, UTS, TASK, KEEPER, END = DATA, DATA + 0x8000, DATA + 0x9000, DATA + 0xA000, DATA + 0x10000
COMM, XTIME = 0x40, 0x18


def banner(release: str, number: str = "1 ") -> bytes:
    return f"Linux version {release} (builder@host) (gcc 12) #{number}SMP Debian\n".encode()


def types() -> bytes:
    blob = Blob()
    char, u64 = blob.integer("char", 1), blob.integer("u64", 8)
    blob.struct("task_struct", 128, ("pid", u64, 0), ("comm", blob.array(char, 16), COMM * 8))
    blob.struct("timekeeper", 64, ("xtime_sec", u64, XTIME * 8))
    blob.struct("seqcount", 4, ("sequence", blob.integer("unsigned int", 4), 0))
    blob.enum("pid_type", ("PIDTYPE_PID", 0), ("PIDTYPE_TGID", 1))
    blob.struct("list_head", 16, ("next", blob.pointer(blob.next_id + 1), 0))
    return blob.blob()


@dataclass
class FakeKernel:
    """One kernel in memory: `text` is its physical, `origin` its virtual address; both are multiples of 2 MiB."""

    text: int = 8 * MIB
    origin: int = 0xFFFF_FFFF_A9E0_0000
    layout: str = "6.1"
    levels: int = 4
    release: str = RELEASE
    clock: int = 1_800_000_000
    build_id: bytes = bytes(range(20))
    btf: bytes = field(default_factory=types)
    spare: bool = True
    without: tuple[str, ...] = ()

    def lines(self) -> list[Line]:
        places = {"_text": 0, "linux_banner": BANNER, "__start_notes": NOTES, "__stop_notes": NOTES + 36}
        places |= {"__start_BTF": BTF, "__stop_BTF": BTF + len(self.btf), "init_top_pgt": ROOT, "init_uts_ns": UTS}
        places |= {"init_task": TASK, "tk_core": KEEPER, "_end": END}
        lines = [Line(name, "D", at) for name, at in places.items() if name not in self.without]
        lines += [Line(f"sys_function_{row}", "t", 0x1000 + 16 * row) for row in range(1200)]
        if self.layout in ("5.10", "6.1", "6.4"):
            lines.append(Line("current_task", "A", 0x1FBC0, True))
        return sorted(lines, key=lambda line: (not line.absolute, line.value))

    def write(self, ram: U8, base: int = 0) -> FakeKernel:
        """Into `ram`, whose first byte is at the physical address `base`."""

        def put(at: int, data: bytes) -> None:
            ram[self.text - base + at :][: len(data)] = np.frombuffer(data, np.uint8)

        if self.spare:
            put(SPARE, banner(self.release, "") + b"\0%s version %s (builder@host)\0")
        put(BANNER, banner(self.release) + b"\0")
        put(NOTES, struct.pack("<III4s", 4, 20, 3, b"GNU\0") + self.build_id)
        put(BTF, self.btf)
        put(TABLES, encode(self.lines(), self.layout, at=TABLES, base=self.origin)[0])
        put(UTS + 4, b"Linux\0" + bytes(59) + b"guest\0" + bytes(59) + self.release.encode() + b"\0")
        put(TASK + COMM, b"swapper/0\0")
        put(KEEPER + 8 + XTIME, struct.pack("<Q", self.clock))
        indexes = [(self.origin >> shift) & 511 for shift in (48, 39, 30)][5 - self.levels :]
        for level, index in enumerate(indexes):
            put(ROOT + 0x1000 * level + 8 * index, struct.pack("<Q", self.text + ROOT + 0x1000 * (level + 1) | 0x63))
        for slot in range(3):
            index = (self.origin >> 21 & 511) + slot
            put(ROOT + 0x1000 * len(indexes) + 8 * index, struct.pack("<Q", self.text + slot * SLOT | 0x1E3))
        return self


def memory_of(ram: U8) -> MappedMemory:
    return MappedMemory([(Run(0, len(ram)), ram)])


@pytest.fixture
def ram() -> U8:
    """32 MiB that are not all zero."""
    ram = np.zeros(32 * MIB, np.uint8)
    ram[: 64 * 1024] = np.random.default_rng(5).integers(0, 256, 64 * 1024, np.uint8)
    return ram


def check(found: Learned, kernel: FakeKernel) -> None:
    assert (found.text, found.profile.origin) == (kernel.text, kernel.origin)
    assert found.delta == kernel.text - kernel.origin
    assert found.root == kernel.text + ROOT
    assert found.levels == kernel.levels
    assert found.profile.release == kernel.release
    assert found.profile.build_id == kernel.build_id.hex()
    assert found.profile.symbol("init_task") == kernel.origin + TASK


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("levels", [4, 5])
def test_a_kernel_is_learned(ram: U8, layout: str, levels: int) -> None:
    kernel = FakeKernel(layout=layout, levels=levels).write(ram)
    found = learn(memory_of(ram))
    check(found, kernel)
    assert found.warnings == ()
    assert not found.known


def test_the_profile_knows_symbols_and_types(ram: U8) -> None:
    kernel = FakeKernel().write(ram)
    profile = learn(memory_of(ram)).profile
    assert profile.banner == banner(RELEASE).decode().strip()
    assert profile.slide == kernel.origin - 0xFFFF_FFFF_8100_0000
    assert profile.symbol("current_task") == 0x1FBC0  # per-CPU: does not move
    assert profile.find_symbol("gone", "init_uts_ns") == kernel.origin + UTS
    assert profile.find_symbol("gone") is None
    assert profile.symbol_at(kernel.origin + 0x1000 + 16 * 7 + 3) == ("sys_function_7", 3)
    assert profile.symbol_at(kernel.origin - 1) is None
    assert profile.symbol_at(kernel.origin + END) is None
    assert profile.room("sys_function_7") == 16
    with pytest.raises(NoSymbol):
        profile.room("nonsense")
    assert dict(profile.symbols_like("sys_function_119"))["sys_function_1199"] == kernel.origin + 0x1000 + 16 * 1199
    assert profile.symbols_named("init_task") == [kernel.origin + TASK]
    assert profile.struct("gone", "task_struct").member("comm").offset == COMM
    assert profile.enum("pid_type")["PIDTYPE_TGID"] == 1
    assert profile.enumerator("gone", "PIDTYPE_TGID") == 1
    assert profile.global_type("init_task").name == "task_struct"
    assert profile.global_type("ptype_base").target.name == "list_head"
    assert profile.global_type("ptype_base").count == 16
    assert profile.global_type("saved_command_line").target.size == 1
    with pytest.raises(NoSymbol, match="gone"):
        profile.symbol("gone")
    with pytest.raises(NoMember, match="gone or neither"):
        profile.struct("gone", "neither")
    with pytest.raises(NoMember):
        profile.global_type("gone")


def test_a_hint_spares_the_search(ram: U8, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel().write(ram)
    monkeypatch.setattr(find, "everywhere", lambda memory: pytest.fail("searched all of RAM"))
    check(learn(memory_of(ram), hint=kernel.text + 0x12345), kernel)


def test_a_wrong_hint_does_no_harm(ram: U8) -> None:
    kernel = FakeKernel().write(ram)
    check(learn(memory_of(ram), hint=20 * MIB), kernel)
    check(learn(memory_of(ram), hint=1 << 45), kernel)


def test_a_banner_that_is_not_at_the_start_of_a_slot_is_found_too(ram: U8) -> None:
    kernel = FakeKernel(spare=False).write(ram)
    check(learn(memory_of(ram)), kernel)


def test_what_was_learned_is_kept(ram: U8, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel().write(ram)
    learn(memory_of(ram), cache=Cache(tmp_path))
    monkeypatch.setattr(kallsyms, "find", lambda *args: pytest.fail("decoded again"))
    again = learn(memory_of(ram), cache=Cache(tmp_path))
    check(again, kernel)
    assert again.known
    ram[:] = 0
    moved = FakeKernel(text=16 * MIB, origin=0xFFFF_FFFF_8100_0000, levels=5).write(ram)  # rebooted
    check(learn(memory_of(ram), cache=Cache(tmp_path)), moved)


def test_another_build_of_the_same_release_is_not_taken_for_the_first(ram: U8, tmp_path: Path) -> None:
    FakeKernel().write(ram)
    learn(memory_of(ram), cache=Cache(tmp_path))
    other = FakeKernel(build_id=bytes(20)).write(ram)
    found = learn(memory_of(ram), cache=Cache(tmp_path))
    check(found, other)
    assert not found.known
    assert len(list(tmp_path.iterdir())) == 2


def test_a_kept_profile_that_lies_is_not_believed(ram: U8, tmp_path: Path) -> None:
    kernel = FakeKernel().write(ram)
    cache = Cache(tmp_path)
    learn(memory_of(ram), cache=cache)
    (path,) = tmp_path.iterdir()
    (entry,) = cache.entries(banner(RELEASE, ""))
    for meta, arrays in [
        ({}, entry.arrays),
        ({**entry.meta, "anchor": "x"}, entry.arrays),
        ({**entry.meta, "anchor": 0}, entry.arrays),
        (entry.meta, {}),
        (entry.meta, {**entry.arrays, "starts": entry.arrays["starts"][:-1]}),
        (entry.meta, {**entry.arrays, "values": entry.arrays["values"] + SLOT}),
        (entry.meta, {**entry.arrays, "btf": entry.arrays["btf"][:100]}),
        (entry.meta, {**entry.arrays, "btf.offsets": entry.arrays["btf.offsets"][:1]}),
        (entry.meta, {**entry.arrays, "order": np.full_like(entry.arrays["order"], 1 << 30)}),
        (entry.meta, {**entry.arrays, "buckets": np.full_like(entry.arrays["buckets"], 1 << 31)}),
        (entry.meta, {**entry.arrays, "starts": np.full_like(entry.arrays["starts"], 1 << 31)}),
        (entry.meta, {**entry.arrays, "btf.order": np.full_like(entry.arrays["btf.order"], 1 << 30)}),
    ]:
        cache.save(banner(RELEASE, ""), kernel.build_id.hex(), meta, arrays)
        found = learn(memory_of(ram), cache=Cache(tmp_path))
        check(found, kernel)
        assert not found.known
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_kernels_the_one_with_the_later_clock_runs(ram: U8) -> None:
    FakeKernel(text=2 * MIB, release="5.10.0-1-amd64", layout="5.10", clock=1_700_000_000).write(ram)
    kernel = FakeKernel(text=10 * MIB).write(ram)
    FakeKernel(text=20 * MIB, origin=0xFFFF_FFFF_9000_0000, clock=1_799_999_999).write(ram)
    found = learn(memory_of(ram))
    check(found, kernel)
    assert "several kernels" in found.warnings[0]
    assert "5.10.0-1-amd64 at 0x200000" in found.warnings[0]
    stale = learn(memory_of(ram), hint=2 * MIB + 5)
    assert stale.profile.release == "5.10.0-1-amd64"  # the hint's word is law
    assert stale.warnings == ()


def test_ram_above_4_gib_and_behind_a_hole(ram: U8) -> None:
    high = 4 << 30
    kernel = FakeKernel(text=high + 8 * MIB).write(ram, base=high)
    memory = MappedMemory([(Run(0, 3 * MIB), np.ones(3 * MIB, np.uint8)), (Run(high, len(ram)), ram)])
    check(learn(memory), kernel)


def test_a_dump_without_some_pages_is_enough(ram: U8) -> None:
    kernel = FakeKernel().write(ram)
    pages = ram.reshape(-1, 4096)
    kept = np.flatnonzero(pages.any(axis=1))  # makedumpfile leaves out pages of zeros
    pieces = [(Run(int(page) * 4096, 4096), pages[page]) for page in kept]
    check(learn(MappedMemory(pieces)), kernel)


def fails(memory: MappedMemory, *words: str) -> None:
    with pytest.raises(UnknownKernel) as caught:
        learn(memory)
    for word in words:
        assert word in str(caught.value)


def test_what_is_no_linux_is_told_from_what_is_none_yet(ram: U8) -> None:
    fails(MappedMemory([]), "no memory")
    fails(memory_of(np.zeros(4 * MIB, np.uint8)), "all 4 MiB", "started")
    fails(memory_of(ram), "no Linux kernel in 32 MiB", "boot loader")
    ram[5 * MIB + 7 :][:12] = np.frombuffer(b"ntkrnlmp.pdb", np.uint8)
    fails(memory_of(ram), "Windows")


def test_vmcoreinfo_alone_tells_what_was_there(ram: U8) -> None:
    text = b"OSRELEASE=6.1.0-9-amd64\nPAGESIZE=4096\n"
    ram[9 * MIB :][: len(text)] = np.frombuffer(text, np.uint8)
    fails(memory_of(ram), "Linux 6.1.0-9-amd64 left its VMCOREINFO at 0x900000")


@pytest.mark.parametrize(
    ("without", "words"),
    [
        (("__start_BTF",), ("CONFIG_DEBUG_INFO_BTF", "a profile of it is needed")),
        (("linux_banner",), ("CONFIG_KALLSYMS_ALL",)),
        (("init_task",), ("init_task",)),
        (("init_top_pgt",), ("swapper_pg_dir",)),
        (("_text",), ("kallsyms",)),
    ],
)
def test_what_a_kernel_lacks_is_named(ram: U8, without: tuple[str, ...], words: tuple[str, ...]) -> None:
    FakeKernel(without=without).write(ram)
    fails(memory_of(ram), f"Linux {RELEASE} at 0xa000e0", *words)


@pytest.mark.parametrize(
    ("at", "what", "word"),
    [
        (ROOT, bytes(4096), "page tables"),
        (TASK + COMM, b"systemd", "init_task"),
        (UTS, bytes(512), "init_uts_ns"),
        (BTF + 24, bytes(64), "damaged"),
        (BTF, bytes(24), "damaged"),
        (TABLES, bytes(40_000), "kallsyms"),
        (BANNER, b"Linux version 9", "not its own"),
    ],
)
def test_a_kernel_that_contradicts_itself_is_not_believed(ram: U8, at: int, what: bytes, word: str) -> None:
    kernel = FakeKernel().write(ram)
    ram[kernel.text + at :][: len(what)] = np.frombuffer(what, np.uint8)
    fails(memory_of(ram), RELEASE, word)


def test_tables_that_say_another_address_are_not_believed(ram: U8) -> None:
    kernel = FakeKernel().write(ram)
    tables = encode(kernel.lines(), "6.1", at=TABLES, base=kernel.origin + SLOT)[0]
    ram[kernel.text + TABLES :][: len(tables)] = np.frombuffer(tables, np.uint8)
    fails(memory_of(ram), "not where its symbol table says")


def test_a_guest_full_of_banners_ends_the_search(ram: U8) -> None:
    raw = np.frombuffer(banner(RELEASE) + b"\0", np.uint8)
    for at in range(0, len(ram), 64 * 1024):
        ram[at + 64 :][: len(raw)] = raw
    fails(memory_of(ram), RELEASE)


def test_copies_of_a_banner_are_not_kernels(ram: U8) -> None:
    raw = np.frombuffer(banner(RELEASE, "") + b"\0", np.uint8)
    for at in (2 * MIB, 24 * MIB):
        ram[at + 0xE0 :][: len(raw)] = raw
    kernel = FakeKernel().write(ram)
    check(learn(memory_of(ram)), kernel)


def test_banners_are_told_from_their_format() -> None:
    raw = b"Linux version %s\0" + banner(RELEASE) + b"\0" + banner("5.10") + b"[ 0.0]"
    (found,) = find.match(raw, 100)
    assert (found.pa, found.release) == (117, RELEASE)
    assert found.text == banner(RELEASE)


def test_vmcoreinfo_is_read_and_found(ram: U8) -> None:
    text = b"OSRELEASE=6.1.0\nKERNELOFFSET=28e00000\nNUMBER(phys_base)=-5\nnonsense\nSYMBOL(_stext)=zz\n\0junk=1\n"
    for at in (3 * MIB, 4 * MIB + 100, 4 * MIB - 4096):
        ram[at:][: len(text)] = np.frombuffer(text, np.uint8)
    memory = memory_of(ram)
    found = list(vmcoreinfo.scan(memory))
    assert [at for at, _ in found] == [3 * MIB, 4 * MIB - 4096]  # at the start of a page only
    info = found[0][1]
    assert info["OSRELEASE"] == "6.1.0"
    assert "junk" not in info
    assert vmcoreinfo.number(info, "KERNELOFFSET", 16) == 0x28E0_0000
    assert vmcoreinfo.number(info, "NUMBER(phys_base)") == -5
    assert vmcoreinfo.number(info, "SYMBOL(_stext)", 16) is None
    assert vmcoreinfo.number(info, "missing") is None
    assert vmcoreinfo.parse(b"PAGESIZE=4096\n") == {}
    ram[64:72] = np.frombuffer(struct.pack("<Q", 0xFFFF_8880_0030_0000), np.uint8)
    assert vmcoreinfo.read(memory, 64, {0xFFFF_8880_0030_0000: 3 * MIB}.get) == info
    assert vmcoreinfo.read(memory, 64, lambda va: None) == {}
    assert vmcoreinfo.read(memory, 1 << 40, lambda va: va) == {}
