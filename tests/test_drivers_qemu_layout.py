from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi_inside.drivers import qemu_layout
from vmi_inside.drivers.qemu_layout import (
    GIB,
    MIB,
    Block,
    Extent,
    Layout,
    LayoutUnknown,
    Mapping,
    extents,
    find,
    layout,
    pc_runs,
)
from vmi_inside.errors import Unsupported
from vmi_inside.memory import Run

QEMU = "/usr/bin/qemu-system-x86_64"
FOUR = 4 * GIB


@pytest.mark.parametrize(
    ("machine", "ram", "limit", "low"),
    [  # as `info mtree -f` of QEMU 7.2 shows them
        ("q35", 256 * MIB, None, 256 * MIB),
        ("q35", 0xB0000000 - MIB, None, 0xB0000000 - MIB),
        ("q35", 0xB0000000, None, 0x80000000),
        ("pc-q35-7.2", 6 * GIB, None, 0x80000000),
        ("pc-q35-rhel9.2.0", 3 * GIB, None, 0x80000000),
        ("q35", 3 * GIB, GIB, GIB),
        ("pc", 3 * GIB, None, 3 * GIB),
        ("pc", 3584 * MIB, None, 0xC0000000),
        ("pc-i440fx-7.2", 4 * GIB, None, 0xC0000000),
        ("pc", 0xE0000000 - MIB, None, 0xE0000000 - MIB),
        ("pc", 3 * GIB, 2 * GIB, 2 * GIB),
        ("microvm", 4 * GIB, None, 0xC0000000),
    ],
)
def test_pc_machines_split_their_ram(machine: str, ram: int, limit: int | None, low: int) -> None:
    assert pc_runs(machine, ram, limit) == ((Run(0, low), Run(FOUR, ram - low)) if ram > low else (Run(0, ram),))


@pytest.mark.parametrize("machine", ["", "isapc", "xenfv", "virt", "ubuntu-q35", "pc-q35-2.0", "pc-i440fx-1.4", "pcx"])
def test_other_machines_are_not_guessed(machine: str) -> None:
    with pytest.raises(LayoutUnknown):
        pc_runs(machine, GIB)


def test_ram_that_amd_hosts_may_move_is_not_guessed() -> None:
    assert pc_runs("q35", 1000 * GIB)[1].end < 0xFD_0000_0000
    with pytest.raises(LayoutUnknown, match="1 TiB"):
        pc_runs("q35", 1024 * GIB)


def test_a_domain_of_libvirts() -> None:
    argv = [
        QEMU,
        "-name",
        "guest=web01,debug-threads=on",
        "-S",
        "-machine",
        "pc-q35-7.2,usb=off,memory-backend=pc.ram",
        "-accel",
    ]
    argv += [
        "kvm",
        "-m",
        "size=4194304k",
        "-object",
        json.dumps({"qom-type": "memory-backend-memfd", "id": "pc.ram", "share": True, "size": FOUR}),
    ]
    argv += [
        "-append",
        "-m 1G",
        "-no-shutdown",
        "-device",
        '{"driver":"virtio-net-pci","id":"net0","addr":"0x0"}',
        "-msg",
        "timestamp=on",
    ]
    assert layout(argv) == Layout(
        (Run(0, 0x80000000), Run(FOUR, 0x80000000)), (Block("pc.ram", "memfd", FOUR),), (qemu_layout.VGA_HOLE,)
    )


def test_numa_nodes_are_in_the_order_of_their_numbers() -> None:
    argv = [QEMU, "--machine", "q35", "-m", "3G", "-object", "memory-backend-ram,id=a,size=1G", "-object"]
    argv += [
        "memory-backend-file,id=b,size=2G,mem-path=/x,,y,share=on,offset=4096",
        "-numa",
        "node,nodeid=1,memdev=a",
        "-numa",
        "node,nodeid=0,memdev=b",
    ]
    found = layout(argv)
    assert found.blocks == (Block("b", "file", 2 * GIB, "/x,y", 4096), Block("a", "ram", GIB))
    assert extents(found, [0x1000_0000_0000, 0x2000_0000_0000]) == [
        Extent(Run(0, 0xA0000), 0x1000_0000_0000),
        Extent(Run(0xC0000, 0x80000000 - 0xC0000), 0x1000_000C_0000),
        Extent(Run(FOUR, GIB), 0x2000_0000_0000),
    ]


def test_defaults_are_qemus() -> None:
    assert layout([QEMU]).runs == (Run(0, 128 * MIB),)
    assert layout([QEMU, "-m", "256", "-m", "maxmem=256M"]).runs == (Run(0, 256 * MIB),)
    assert layout([QEMU, "-m", "2.5G"]).runs == (Run(0, 2560 * MIB),)
    with pytest.raises(LayoutUnknown):  # which machine another build takes is not known
        layout(["/usr/libexec/qemu-kvm"])


@pytest.mark.parametrize(
    "more",
    [
        ["-m", "1G,slots=4,maxmem=8G"],
        ["-device", "pc-dimm,memdev=d0,id=dimm0"],
        ["-device", '{"driver":"virtio-mem-pci","id":"vm0"}'],
        ["-device", "virtio-pmem-pci,memdev=x"],
        ["-readconfig", "qemu.cfg"],
        ["-mem-path", "/dev/hugepages"],
        ["-global", "memory-backend-file.share=on"],
        ["-machine", "memory-backend=nowhere"],
        ["-numa", "node,memdev=nowhere"],
        ["-object", "memory-backend-ram,id=r,size=1G", "-numa", "node,memdev=r"],  # not the size of -m
        ["-object", "memory-backend-epc,id=r,size=256M", "-machine", "memory-backend=r", "-m", "256M"],
        ["-m", "lots"],
        ["-object", "{"],
    ],
)
def test_what_is_not_sure_is_refused(more: list[str]) -> None:
    with pytest.raises(LayoutUnknown):
        layout([QEMU, "-machine", "q35", *more])


def test_encrypted_memory_is_refused_for_what_it_is() -> None:
    with pytest.raises(Unsupported, match="encrypted"):
        layout([QEMU, "-machine", "q35", "-object", "sev-guest,id=sev0,cbitpos=47"])


@settings(deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
        | st.sampled_from(["-m", "-object", "-numa", "-machine", "-M", "node"]),
        max_size=12,
    )
)
def test_any_command_line_gives_a_layout_or_a_refusal(argv: list[str]) -> None:
    try:
        found = layout([QEMU, *argv])
    except Unsupported:
        return
    assert sum(run.size for run in found.runs) == sum(block.size for block in found.blocks)


@settings(deadline=None)
@given(st.text())
def test_any_text_can_be_maps(text: str) -> None:
    assert isinstance(qemu_layout.parse_maps(text), list)


def test_maps_are_read_as_the_kernel_writes_them() -> None:
    text = (
        "7f17f7e00000-7f18f7e00000 rw-p 00000000 00:00 0 \n"
        "7f18f7e00000-7f18f7e01000 ---p 00000000 00:00 0 \n"
        "7f2000000000-7f2040000000 rw-s 00001000 00:01 1029           /memfd:memory-backend-memfd (deleted)\n"
    )
    ram, guard, shared = qemu_layout.parse_maps(text)
    assert ram.anonymous
    assert not ram.shared
    assert guard.permissions == "---p"
    assert shared == Mapping(
        0x7F2000000000, 0x7F2040000000, "rw-s", 0x1000, (0, 1), 1029, "/memfd:memory-backend-memfd (deleted)"
    )
    assert shared.shared


def anonymous(start: int, size: int, permissions: str = "rw-p") -> Mapping:
    return Mapping(start, start + size, permissions, 0, (0, 0), 0, "")


def guarded(start: int, size: int) -> list[Mapping]:
    return [anonymous(start, size), anonymous(start + size, 4096, "---p")]


def shared(start: int, size: int, path: str, inode: int = 1) -> Mapping:
    return Mapping(start, start + size, "rw-s", 0, (0, 1), inode, path)


RAM = Block("", "ram", 256 * MIB)
AT = 0x7F00_0000_0000


def test_the_one_range_that_fits_is_the_ram() -> None:
    others = [*guarded(AT - GIB, 16 * MIB), *guarded(AT + GIB, 8 * MIB), anonymous(AT + 2 * GIB, 256 * MIB)]
    assert find([RAM], [*others[:2], *guarded(AT, 256 * MIB), *others[2:]]) == [AT]


def test_ram_that_the_kernel_joined_or_split_is_found() -> None:
    below = anonymous(AT - 3 * MIB, 259 * MIB)
    assert find([RAM], [below, anonymous(below.end, 4096, "---p")]) == [AT]
    split = [anonymous(AT, 100 * MIB), anonymous(AT + 100 * MIB, 156 * MIB), anonymous(AT + 256 * MIB, 4096, "---p")]
    assert find([RAM], split) == [AT]


@pytest.mark.parametrize(
    "maps",
    [
        [],
        [anonymous(AT, 256 * MIB)],  # no guard
        guarded(AT + MIB, 256 * MIB),  # not aligned
        guarded(AT, 255 * MIB),
        [*guarded(AT, 256 * MIB), *guarded(AT + GIB, 256 * MIB)],
        [*guarded(AT, 256 * MIB), *guarded(AT + GIB, 512 * MIB)],  # the end of a larger one
        [*guarded(AT, 256 * MIB), shared(AT + GIB, 256 * MIB, "/dev/zero (deleted)")],
    ],
)
def test_when_none_or_several_fit_none_is_taken(maps: list[Mapping]) -> None:
    with pytest.raises(LayoutUnknown, match="could be"):
        find([RAM], maps)


def test_nodes_of_different_size_are_told_apart_and_equal_ones_are_not() -> None:
    small, large = Block("a", "ram", 256 * MIB), Block("b", "ram", 512 * MIB)
    maps = [*guarded(AT, 512 * MIB), *guarded(AT + GIB, 256 * MIB)]
    assert find([small, large], maps) == [AT + GIB, AT]
    with pytest.raises(LayoutUnknown):
        find([small, small], [*guarded(AT, 256 * MIB), *guarded(AT + GIB, 256 * MIB)])


def test_files_are_told_by_their_names() -> None:
    maps = [
        shared(AT, GIB, "/huge/qemu_back_mem._objects_ram-node1.a1B2c3 (deleted)"),
        shared(AT + GIB, GIB, "/huge/qemu_back_mem._objects_ram-node0.x1B2c3 (deleted)", 2),
        shared(AT + 2 * GIB, GIB, "/other/qemu_back_mem.ram-node0.x1B2c3 (deleted)", 3),
        shared(AT + 3 * GIB, GIB, "/ram/vm", 4),
        shared(AT + 4 * GIB, GIB, "/memfd:memory-backend-memfd (deleted)", 5),
    ]
    nodes = [Block(f"ram-node{n}", "file", GIB, "/huge/") for n in (0, 1)]
    assert find(nodes, maps) == [AT + GIB, AT]
    assert find([Block("r", "file", GIB, "/ram/vm"), Block("m", "memfd", GIB)], maps) == [AT + 3 * GIB, AT + 4 * GIB]
    with pytest.raises(LayoutUnknown):
        find([Block("r", "file", GIB, "/ram/vm")], maps[:3])


def test_a_block_that_the_kernel_split_is_one_mapping_again() -> None:
    first, second = shared(AT, MIB, "/ram/vm"), shared(AT + MIB, MIB, "/ram/vm")
    second = Mapping(second.start, second.end, "rw-s", MIB, second.device, 1, second.path)
    assert find([Block("r", "file", 2 * MIB, "/ram/vm")], [first, second]) == [AT]
