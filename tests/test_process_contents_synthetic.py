"""Processes' memory in made-up guests: every kind of page there is, and tables that lie."""

from __future__ import annotations

import io

import numpy as np
import pytest

from tests.synthetic.cache import SWAPPED, CacheGuest, hidden
from tests.synthetic.guest import DIRECT, NOWHERE
from tests.synthetic.linux import Task
from tests.synthetic.ram import GIB, LARGE, PRESENT, PageTables
from vmi_inside.errors import NoProcess, NotInMemory, PageFault
from vmi_inside.linux.contents.content import State, kernel_content, physical_content
from vmi_inside.linux.contents.core_dump import Core, _plan  # its parts are easier to see alone
from vmi_inside.linux.contents.process_contents import ProcessContents
from vmi_inside.linux.files.file_content import contents
from vmi_inside.linux.memory import user_pages

R, W, SHARED, IO = 1, 2, 0x80, 0x4000
BASE = 0x5555_0000_0000
P = 4096


def process(guest: CacheGuest) -> tuple[Task, PageTables]:
    init = guest.task(1, "init")
    guest.memory_of(init, b"init\0")
    return init, guest.user_tables(init)


def finished(guest: CacheGuest, task: Task, regions: list[int]) -> ProcessContents:
    guest.map(task, regions)
    guest.link()
    guest.finish()
    return ProcessContents(guest.kernel, task_number(guest, task))


def task_number(guest: CacheGuest, task: Task) -> int:
    return next(number for number, each in guest.tasks.items() if each is task)


def file_of(guest: CacheGuest, system: str, size: int, pages: dict[int, bytes | int]) -> int:
    """A struct file of a file with these pages in the cache."""
    file = guest.file("mapped")
    inode = guest.on_disk(system, 7, size)
    guest.cache(inode, pages)
    guest.put("file", file, f_inode=inode, f_mapping=inode + guest.offset("inode", "i_data"))
    return file


@pytest.fixture(params=[{}, {"levels": 5, "scattered": True}, {"older": True}], ids=["tree", "5 levels", "list"])
def guest(request: pytest.FixtureRequest) -> CacheGuest:
    return CacheGuest(**request.param)


def test_every_kind_of_page(guest: CacheGuest) -> None:
    init, user = process(guest)
    first, shared, secret = guest.frame(b"first"), guest.frame(b"shared"), guest.frame(b"secret")
    user.map(BASE, first)
    user.put(BASE + P, 1, hidden(secret))
    user.put(BASE + 2 * P, 1, SWAPPED)
    disk = file_of(guest, "ext4", 5 * P - 1, {0: b"zero", 1: b"one", 3: b"three", 4: 0x123 << 1 | 1})
    shmem = file_of(guest, "tmpfs", 4 * P, {1: b"held", 2: 0x123 << 1 | 1})
    user.map(BASE + 0x10000 + P, shared)  # written over, or mapped: the tables count, not the cache
    regions = [
        guest.region(init, BASE, BASE + 4 * P, R | W),
        guest.region(init, BASE + 0x10000, BASE + 0x10000 + 7 * P, R, vm_file=disk),
        guest.region(init, BASE + 0x20000, BASE + 0x20000 + 4 * P, R | SHARED, vm_file=shmem),
        guest.region(init, BASE + 0x30000, BASE + 0x30000 + 2 * P, R, vm_file=disk, vm_pgoff=3),
        guest.region(init, BASE + 0x40000, BASE + 0x40000 + P, R | IO),
    ]
    memory = finished(guest, init, regions)
    S = State  # noqa: N806
    content = memory.content(BASE - P, 6 * P)
    assert content.state.tolist() == [S.UNMAPPED, S.PRESENT, S.PRESENT, S.SWAPPED, S.UNTOUCHED, S.UNMAPPED]
    assert content.data == bytes(P) + b"first".ljust(P, b"\0") + b"secret".ljust(P, b"\0") + bytes(3 * P)
    assert [(at - BASE, end - BASE, why) for at, end, why in content.gaps()] == [
        (-P, 0, S.UNMAPPED), (2 * P, 3 * P, S.SWAPPED), (4 * P, 5 * P, S.UNMAPPED),
    ]  # fmt: skip
    content = memory.content(BASE + 0x10000, 7 * P)
    assert content.state.tolist() == [S.CACHED, S.PRESENT, S.MISSING, S.CACHED, S.MISSING, S.MISSING, S.MISSING]
    assert [content.data[at : at + 6].rstrip(b"\0") for at in range(0, 4 * P, P)] == [b"zero", b"shared", b"", b"three"]
    content = memory.content(BASE + 0x20000, 4 * P)
    assert content.state.tolist() == [S.UNTOUCHED, S.CACHED, S.SWAPPED, S.UNTOUCHED]
    content = memory.content(BASE + 0x30000, 2 * P)
    assert content.state.tolist() == [S.CACHED, S.MISSING]
    assert content.data.startswith(b"three")
    assert memory.content(BASE + 0x40000, P).state.tolist() == [S.UNREADABLE]

    assert memory.read(BASE + P - 3, 9) == b"\0\0\0secret"
    with pytest.raises(NotInMemory, match="swap"):
        memory.read(BASE + P, P + 1)
    with pytest.raises(NotInMemory, match="page cache"):
        memory.read(BASE + 0x10000 + 2 * P, 1)
    for at in (BASE - 1, NOWHERE):
        with pytest.raises(PageFault):
            memory.read(at, 2)
    parts = {part.va - BASE: part.data.tobytes()[:6].rstrip(b"\0") for part in memory.parts(size=P)}
    assert parts == {
        0: b"first", P: b"secret", 0x10000: b"zero", 0x10000 + P: b"shared", 0x10000 + 3 * P: b"three",
        0x20000 + P: b"held", 0x30000: b"three",
    }  # fmt: skip


def test_large_pages(guest: CacheGuest) -> None:
    init, user = process(guest)
    at = 0x7F00_0000_0000
    user.map(at, 4 * GIB, level=2)
    user.put(at + (2 << 20), 2, SWAPPED | LARGE & 0)
    guest.ram.write(4 * GIB + 5 * P, b"inside a large page")
    memory = finished(guest, init, [guest.region(init, at + P, at + (4 << 20), R)])
    content = memory.content(at + 5 * P, 19)
    assert content.data == b"inside a large page"
    states = memory.content(at, 4 << 20).state
    assert states[0] == State.UNMAPPED
    assert (states[1:512] == State.PRESENT).all()
    assert (states[512:] == State.SWAPPED).all()


def test_files_of_huge_pages_are_read_from_the_tables_alone(guest: CacheGuest) -> None:
    init, user = process(guest)
    file = file_of(guest, "hugetlbfs", 8 << 20, {0: b"one of huge pages", 1: b"the next huge one"})
    at = 0x7F00_0000_0000
    user.map(at, 4 * GIB, level=2)
    memory = finished(guest, init, [guest.region(init, at, at + (8 << 20), R | 1 << 22, vm_file=file)])
    states = memory.content(at, 8 << 20).state
    assert (states[:512] == State.PRESENT).all()
    assert (states[512:] == State.MISSING).all()
    (content,) = contents(guest.kernel, [guest.inodes_of["hugetlbfs"][0]])
    assert "huge pages" in content.fault
    assert content.missing() == [(0, 8 << 20)]


def test_tables_that_lie(guest: CacheGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    init, user = process(guest)
    wide = 1 << 46
    # A table that is its own child at every level maps everything, for ever.
    table = guest.ram.frames()
    for slot in range(512):
        guest.ram.write(table + 8 * slot, (table | PRESENT).to_bytes(8, "little"))
    for slot in range(64, 70):
        user.put(slot << 39, 4, table | PRESENT)
    monkeypatch.setattr(user_pages, "TABLE_LIMIT", 1000)
    memory = finished(guest, init, [guest.region(init, 64 << 39, (64 << 39) + wide // 64, R)])
    tables = user_pages.UserPages(
        guest.space.with_root(memory.root), np.array([64 << 39], np.uint64), np.array([70 << 39], np.uint64)
    )
    assert tables.cut
    count = sum(len(leaves.va) for leaves in tables.leaves(64 << 39, 70 << 39))
    assert count <= 1000 * 512
    assert len(memory.content(64 << 39, P).data) == P
    assert memory.notes == ()
    with pytest.raises(ValueError, match="in one piece"):
        memory.content(64 << 39, wide // 64)
    assert next(iter(memory.parts())).va == 64 << 39
    assert memory.notes == ("page tables: cut after 1000 of them",)

    far = guest.ram.frames()
    guest.ram.write(far, (1 << 51 | PRESENT).to_bytes(8, "little"))  # a page where there is no RAM
    user.put(BASE, 2, far | PRESENT)
    user.put(BASE + (2 << 20), 2, 1 << 51 | PRESENT)  # a table where there is no RAM
    guest.put("mm_struct", init.mm, **({"mmap": 0} if guest.older else {}))
    guest.map(init, [guest.region(init, BASE, BASE + (4 << 20), R)])
    content = memory.content(BASE, 4 << 20)
    assert content.state[0] == State.UNREADABLE
    assert (content.state[1:] == State.UNTOUCHED).all()


def test_regions_that_lie(guest: CacheGuest) -> None:
    init, user = process(guest)
    user.map(BASE, guest.frame(b"once"))
    image = guest.new("vm_special_mapping", name=guest.string("[vdso]"))
    vast = {"vm_ops": guest.special_ops, "vm_private_data": image}
    first = guest.region(init, BASE, BASE + 4 * P, R)
    others = [guest.region(init, BASE + (8 + n) * P, BASE + (9 + n) * P, R) for n in range(20)]
    vdso = guest.region(init, 0x7000_0000_0000, 0x7FFF_0000_0000, R, **vast)
    memory = finished(guest, init, [first, *others, vdso])
    for each in others:  # all of them over the first, and over each other
        guest.put("vm_area_struct", each, vm_start=BASE, vm_end=BASE + 4 * P)
    regions = memory.regions()
    assert [(region.start, region.end) for region in regions] == [
        (BASE, BASE + 4 * P), (0x7000_0000_0000, 0x7FFF_0000_0000),
    ]  # fmt: skip
    assert [part.va for part in memory.parts()] == [BASE]
    assert any("overlap" in note for note in memory.notes)
    assert memory.content(0x7000_0000_0000, P).state.tolist() == [State.UNREADABLE]


def test_tables_that_begin_inside_a_page() -> None:
    """A reading of whole pages never crosses one, whatever pointers say: the memory of these guests checks that."""
    guest = CacheGuest()
    init, user = process(guest)
    user.map(BASE, guest.frame(b"once"))
    pgd = guest.space.read_u64(init.mm + guest.offset("mm_struct", "pgd"))
    guest.put("mm_struct", init.mm, pgd=pgd + 16)
    memory = finished(guest, init, [guest.region(init, BASE, BASE + P, R)])
    assert [bytes(part.data[:4]) for part in memory.parts()] == [b"once"]  # as the processor would, by whole pages


def test_processes_without_memory() -> None:
    guest = CacheGuest()
    init, _ = process(guest)
    guest.task(2, "kthreadd", flags=0x200000)
    guest.give(guest.tasks[2], mm=init.mm)
    zombie = guest.task(3, "zombie")
    broken = guest.task(4, "broken")
    guest.give(broken, mm=guest.new("mm_struct", pgd=NOWHERE))
    wild = guest.task(5, "wild")
    guest.give(wild, mm=NOWHERE)
    assert zombie.mm == 0
    finished(guest, init, [])
    for pid, words in (
        (2, "kernel thread"),
        (3, "has ended"),
        (4, "page tables"),
        (5, "page tables"),
        (9, "no process"),
    ):
        with pytest.raises(NoProcess, match=words):
            ProcessContents(guest.kernel, pid)
    memory = ProcessContents(guest.kernel, 1)
    guest.put("task_struct", init.task, tgid=77)
    with pytest.raises(NoProcess, match="ended"):
        memory.regions()


def test_kernel_and_physical_content() -> None:
    guest = CacheGuest(scattered=True)
    at = guest.alloc(3 * P, "thing") + P - 1 & ~(P - 1)
    guest.write(at, b"kernel")
    guest.finish()
    content = kernel_content(guest.kernel, at + 1, 5)
    assert (content.data, content.whole) == (b"ernel", True)
    content = kernel_content(guest.kernel, NOWHERE - 4, 8)
    assert content.state.tolist() == [State.UNMAPPED, State.UNMAPPED]
    assert kernel_content(guest.kernel, (1 << 64) - 16, 16).state.tolist() == [State.UNMAPPED]
    pa = guest.frame(b"physical")
    assert physical_content(guest.kernel, pa + 2, 6).data == b"ysical"
    assert kernel_content(guest.kernel, DIRECT + pa, 8).data == b"physical"
    content = physical_content(guest.kernel, (48 << 20) - 4, 8)
    assert content.state.tolist() == [State.PRESENT, State.UNREADABLE]
    assert [(low, high) for low, high, _ in content.gaps()] == [(48 << 20, (48 << 20) + 4)]


def test_segments_of_a_core() -> None:
    guest = CacheGuest()
    init, user = process(guest)
    for page in (1, 2, 5):
        user.map(BASE + page * P, guest.frame(b"x"))
    user.put(BASE + 6 * P, 1, SWAPPED)
    disk = file_of(guest, "ext4", 4 * P, {1: b"one", 2: b"two"})
    far = BASE + (1 << 30)
    user.map(far, guest.frame(b"near"))
    user.map(far + (1 << 29), guest.frame(b"far"))
    memory = finished(guest, init, [
        guest.region(init, BASE, BASE + 8 * P, R | W),
        guest.region(init, BASE + 0x10000, BASE + 0x10000 + 6 * P, R, vm_file=disk),
        guest.region(init, far, far + (1 << 29) + P, R | W),
    ])  # fmt: skip
    core = Core()
    shapes = []
    for region, pages in memory.held():
        (held,) = [*pages] if region.start != far else [_joined(pages)]
        plan = _plan(region, held, core)
        shapes.append([((s.start - region.start) // P, (s.end - region.start) // P, s.filled) for s in plan.segments])
    assert shapes == [
        [(0, 6, True), (6, 7, False), (7, 8, True)],  # never written ones are zeros, what is in swap is not there
        [(0, 1, False), (1, 3, True), (3, 6, False)],
        [(0, 1, True), (1, 1 << 17, False), (1 << 17, (1 << 17) + 1, True)],  # too many zeros for a file
    ]
    assert dict(core.missing) == {State.SWAPPED: P, State.MISSING: 2 * P}


def _joined(pages: object) -> object:
    from vmi_inside.linux.contents.core_dump import _gathered

    return _gathered(pages)  # type: ignore[arg-type]


def test_a_core_of_very_many_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than fit into ELF's own count: the first section says how many there are."""
    from vmi_inside.linux.contents import core_dump
    from vmi_inside.linux.contents.regions import Region

    region = Region(BASE, BASE + P, "r--p", "", 0, 0, R, State.UNTOUCHED, BASE + P)
    segments = [core_dump._Segment(region, BASE, BASE + P, False)] * 70000
    file = io.BytesIO()
    begin = core_dump._write_headers(file, segments, b"notes")
    raw = file.getvalue()
    assert int.from_bytes(raw[56:58], "little") == 0xFFFF
    section = int.from_bytes(raw[40:48], "little")
    assert int.from_bytes(raw[section + 44 : section + 48], "little") == 70001
    assert raw[section + 64 :] == b"notes"
    assert begin % P == 0
    assert begin >= len(raw)
