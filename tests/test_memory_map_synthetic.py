"""Memory maps of made-up guests: in lists and in trees, every kind of region, and guests that lie about theirs."""

from __future__ import annotations

import numpy as np
import pytest

from tests.synthetic.files import FilesGuest
from tests.synthetic.guest import HOLE, NOWHERE
from tests.synthetic.linux import Task
from vmi_inside.linux.memory import vmas
from vmi_inside.linux.memory.memory_map import process_memory_map

R, W, X, SHARED = 1, 2, 4, 0x80
BASE = 0x5555_0000_0000
KINDS = pytest.mark.parametrize(
    "kind",
    [{}, {"levels": 5, "scattered": True}, {"older": True}, {"older": True, "scattered": True}],
    ids=["tree", "tree, scattered", "list", "list, scattered"],
)


def populate(guest: FilesGuest) -> tuple[Task, list[int]]:
    """A process with regions of all kinds, ascending."""
    init = guest.task(1, "init")
    guest.memory_of(init, b"init\0")
    guest.put("mm_struct", init.mm, start_brk=BASE + 0x10000, brk=BASE + 0x20000, start_stack=BASE + 0x90500,
              context__flags=2)  # fmt: skip
    special = guest.new("vm_special_mapping", name=guest.string("[vdso]"))
    name = guest.alloc(16, "anon_vma_name")
    guest.write(name + 4, b"my heap\0")
    exe = guest.regular("bin", "a b", number=31)

    def region(number: int, flags: int, **members: int) -> int:
        start = BASE + 0x10000 * number
        return guest.region(init, start, start + 0x2000, flags, **members)

    regions = [
        region(0, R | X, vm_file=exe, vm_pgoff=3),
        region(1, R | W),  # the heap
        region(2, R | W),  # begins where the heap ends
        region(3, R | W | SHARED, vm_file=guest.made("tmpfs", "dev/zero", 5, 0o100777)),
        region(4, 0, vm_pgoff=99),
        region(5, R | W, anon_name=name),
        region(6, R | X, vm_ops=guest.special_ops, vm_private_data=special),
        region(7, R | W | X | SHARED),
        region(8, R, vm_file=guest.regular("lib", "gone", deleted=True)),
        region(9, R | W | 0x100),  # the stack
    ]
    guest.map(init, regions)
    return init, regions


@KINDS
def test_every_kind_of_region(kind: dict) -> None:
    guest = FilesGuest(**kind)
    init, regions = populate(guest)
    guest.task(2, "kthreadd", flags=0x200000)
    guest.give(guest.tasks[2], mm=init.mm)  # borrowed
    twin = guest.task(70000, "vfork")
    guest.give(twin, mm=init.mm)
    guest.finish()
    table = process_memory_map(guest.kernel)
    assert (table.notes, set(table.fault)) == ((), {""})
    assert sorted(set(table.pid)) == [1, 70000]
    mine = table.where(table.pid == 1)
    assert mine.address.tolist() == regions
    assert mine.start.tolist() == [BASE + 0x10000 * number for number in range(10)]
    assert (mine.end - mine.start).tolist() == [0x2000] * 10
    assert mine.permissions.tolist() == [
        "r-xp", "rw-p", "rw-p", "rw-s", "---p", "rw-p", "r-xp", "rwxs", "r--p", "rw-p",
    ]  # fmt: skip
    assert mine.path.tolist() == [
        "/bin/a b", "[heap]", "", "/dev/zero (deleted)", "", "[anon:my heap]", "[vdso]", "", "/lib/gone (deleted)",
        "[stack]",
    ]  # fmt: skip
    assert mine.pseudo.tolist() == [False, True, True, True, True, True, True, True, False, True]
    assert mine.offset.tolist() == [0x3000, *[0] * 9]
    assert (mine.inode.tolist()[:4], mine.device.tolist()[:2]) == ([31, 0, 0, 5], ["8:1", ""])
    other = table.where(table.pid == 70000)
    assert other.select("start", "path").to_dicts() == mine.select("start", "path").to_dicts()


def test_the_kernels_own_region() -> None:
    guest = FilesGuest()
    populate(guest)
    gate = guest.global_("gate_vma", guest.size("vm_area_struct"))
    guest.put("vm_area_struct", gate, vm_start=0xFFFF_FFFF_FF60_0000, vm_end=0xFFFF_FFFF_FF60_1000, vm_flags=X)
    mode = guest.global_("vsyscall_mode", 4)
    guest.write(mode, b"\1\0\0\0")
    guest.finish()
    last = process_memory_map(guest.kernel)[-1]
    assert last[:4] == (1, 0xFFFF_FFFF_FF60_0000, 0xFFFF_FFFF_FF60_1000, "--xp")
    assert (last.path, last.pseudo, last.address) == ("[vsyscall]", True, gate)
    guest.write(mode, b"\2\0\0\0")
    assert "[vsyscall]" not in process_memory_map(guest.kernel).path


def test_some_processes_cost_less() -> None:
    guest = FilesGuest()
    _, regions = populate(guest)
    other = guest.task(5, "other")
    guest.memory_of(other, b"other\0")
    guest.map(other, [guest.region(other, BASE + 0x1000 * at, BASE + 0x1000 * (at + 1)) for at in range(60)])
    guest.finish()
    assert len(process_memory_map(guest.kernel)) == len(regions) + 60
    everything = guest.memory.rows
    guest.memory.reset()
    table = process_memory_map(guest.kernel, ["start"], pids=frozenset((1,)))
    assert (len(table), table.columns) == (len(regions), ("start", "fault"))
    assert guest.memory.rows < everything / 3


@KINDS
@pytest.mark.parametrize("wild", [NOWHERE, HOLE, (1 << 64) - 8, 8])
def test_wild_pointers(kind: dict, wild: int) -> None:
    guest = FilesGuest(**kind)
    init, regions = populate(guest)
    honest = guest.task(9, "honest")
    guest.memory_of(honest, b"honest\0")
    guest.map(honest, [guest.region(honest, BASE, BASE + 0x1000)])
    guest.put("vm_area_struct", regions[0], vm_file=wild)
    guest.put("vm_area_struct", regions[1], vm_end=1)
    guest.put("vm_area_struct", regions[2], vm_mm=honest.mm)
    guest.put("vm_area_struct", regions[6], vm_private_data=wild)
    guest.put("vm_area_struct", regions[7], vm_ops=wild)
    guest.finish()
    table = process_memory_map(guest.kernel)
    faults = table.where(table.pid == 1).fault.tolist()
    assert [bool(fault) for fault in faults] == [True, True, True, *[False] * 7]
    assert "file unreadable" in faults[0]
    assert "not believable" in faults[1]
    assert len(table) == len(regions) + 1
    guest.give(init, mm=wild)
    left = process_memory_map(guest.kernel)
    assert set(left.pid) - {1} == {9}
    assert left.notes


@KINDS
def test_circles_and_cuts_are_said(kind: dict) -> None:
    guest = FilesGuest(**kind)
    init, regions = populate(guest)
    if guest.older:
        guest.put("vm_area_struct", regions[4], vm_next=regions[2])
    else:
        root = guest.space.read_u64(init.mm + guest.offset("mm_struct", "mm_mt.ma_root"))
        guest.word((root & ~255) + 80 + 8, root & ~2)  # the second child is the root again
    guest.finish()
    table = process_memory_map(guest.kernel)
    assert table.notes
    assert 0 < len(table) < len(regions)
    assert set(table.fault) == {"memory map incomplete"}


@KINDS
def test_regions_for_others(kind: dict) -> None:
    guest = FilesGuest(**kind)
    init, regions = populate(guest)
    guest.finish()
    mms = guest.kernel.structs("mm_struct", np.array([0, init.mm, init.mm], dtype=np.uint64))
    with guest.kernel.operation():
        found = vmas.regions(guest.kernel, mms)
    assert found.owner.tolist() == [1] * 10 + [2] * 10
    assert found.vma.address.tolist() == regions * 2
    assert found.flags[0] == R | X
    assert found.offset[4] == 99 << 12
    assert found.whole.tolist() == [True] * 3
    assert not found.fault.any()
