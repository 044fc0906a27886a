"""Disks and partitions of made-up guests, and of guests that lie about theirs."""

from __future__ import annotations

import pytest

from tests.synthetic.files import FilesGuest
from tests.synthetic.guest import HOLE, NOWHERE
from vmi_inside.linux.files.block_devices import block_devices

COMMON = """
kobject 64
    name 0 *char
    entry 8 list_head
kset 96
    list 0 list_head
    kobj 24 kobject
klist 40
    k_list 8 list_head
klist_node 32
    n_node 8 list_head
subsys_private 400
    subsys 0 kset
    klist_devices 160 klist
    class 392 *class
device_private 216
    knode_class 136 klist_node
    device 200 *device
device_type 48
    name 0 *char
device 128
    kobj 0 kobject
    parent 64 *device
    type 88 *device_type
    devt 96 u32
queue_limits 64
    logical_block_size 48 u32
request_queue 128
    limits 64 queue_limits
partition_meta_info 104
    uuid 0 char[37]
    volname 37 u8[64]
uuid 16
    b 0 u8[16]
super_block 1000
    s_list 0 list_head
    s_dev 16 u32
    s_type 40 *file_system_type
    s_uuid 64 uuid
"""
NEW = """
class 96
    name 0 *char
block_device 400
    bd_start_sect 0 u64
    bd_nr_sectors 8 u64
    bd_disk 16 *gendisk
    __bd_flags 24 atomic
    bd_meta_info 32 *partition_meta_info
    bd_device 64 device
gendisk 64
    queue 8 *request_queue
    flags 16 i32
    private_data 24 *void
    state 32 u64
    part0 40 *block_device
loop_device 64
    lo_backing_file 8 *file
"""
OLD = """
class 120
    name 0 *char
    p 112 *subsys_private
block_device 100
    bd_dev 0 u32
hd_struct 400
    start_sect 0 u64
    nr_sects 8 u64
    policy 16 i32
    partno 20 i32
    info 24 *partition_meta_info
    __dev 64 device
gendisk 600
    part0 64 hd_struct
    queue 8 *request_queue
    flags 16 i32
    private_data 24 *void
"""


class BlockGuest(FilesGuest):
    """A disk with two partitions, and a loop device."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.profile.extend(COMMON + (NEW if kind == "new" else OLD))
        self.cls = self.global_("block_class", 128)
        self.private = self.new("subsys_private", **{"class": self.cls})
        if kind == "new":
            kset = self.new("kset")
            self.word(self.global_("class_kset", 8), kset)
            entry = self.private + self.offset("subsys_private", "subsys.kobj.entry")
            self.chain(kset, [self.new("subsys_private") + 32, entry], kset)
        else:
            self.put("class", self.cls, p=self.private)
        self.types = {
            name: self.new("device_type", name=self.string(name)) for name in ("disk", "partition")
        }  # fmt: skip
        self.queue = self.new("request_queue", limits__logical_block_size=4096)
        self.nodes: list[int] = []
        self.parts: list[int] = []
        self.disks: list[int] = []
        self.blocks = self.global_("super_blocks", 16)
        self.word(self.blocks, self.blocks)

    def plant(
        self, name: str, number: tuple[int, int], sectors: int, parent: int = -1, bits: int = 0, **members: int
    ) -> int:
        """A disk, or a partition of the disk of that row; its place among `parts`."""
        holder, inner = ("block_device", "bd_device") if self.kind == "new" else ("hd_struct", "__dev")
        if parent < 0:
            disk = self.new("gendisk", queue=self.queue, flags=members.pop("flags", 0))
            part = self.new(holder) if self.kind == "new" else disk + self.offset("gendisk", "part0")
            above = 0
        else:
            disk, part = self.disks[parent], self.new(holder)
            above = self.parts[parent] + self.offset(holder, inner)
        if parent < 0 and self.kind == "new":
            self.put("gendisk", disk, part0=part)
        self.put(holder, part, bd_nr_sectors=sectors, nr_sects=sectors, bd_disk=disk, **members)
        if self.kind == "new":
            self.poke(holder, part, "__bd_flags.counter", bits)
        device = part + self.offset(holder, inner)
        self.put("device", device, kobj__name=self.string(name), devt=number[0] << 20 | number[1], parent=above,
                 type=self.types["disk" if parent < 0 else "partition"])  # fmt: skip
        private = self.new("device_private", device=device)
        self.nodes.append(private + self.offset("device_private", "knode_class.n_node"))
        self.parts.append(part)
        self.disks.append(disk)
        head = self.private + self.offset("subsys_private", "klist_devices.k_list")
        self.chain(head, self.nodes, head)
        return len(self.parts) - 1


def populate(kind: str) -> BlockGuest:
    guest = BlockGuest(kind)
    disk = guest.plant("vda", (254, 0), 1 << 20, flags=1)
    meta = guest.new("partition_meta_info", uuid=b"1234-01", volname=b"EFI")
    guest.plant("vda1", (254, 1), 800, disk, bd_start_sect=64, start_sect=64, bd_meta_info=meta, info=meta,
                bits=1 | 1 << 8, partno=1, policy=1)  # fmt: skip
    guest.plant("vda2", (254, 2), 1600, disk, bits=2, partno=2)
    loop = guest.plant("loop0", (7, 0), 0)
    if kind == "new":
        guest.put(
            "gendisk", guest.disks[loop], private_data=guest.new("loop_device", lo_backing_file=guest.regular("a"))
        )
    kinds = guest.new("file_system_type", name=guest.string("ext4"))
    block = guest.new("super_block", s_dev=254 << 20 | 2, s_type=kinds, s_uuid=bytes(range(16)))
    guest.chain(guest.blocks, [block], guest.blocks)
    return guest


@pytest.mark.parametrize("kind", ["new", "old"])
def test_every_column(kind: str) -> None:
    table = block_devices(populate(kind).kernel)
    assert set(table.fault) == {""}
    rows = [row[:15] for row in table]
    none = ("", "", "", "")
    filesystem = ("ext4", "00010203-0405-0607-0809-0a0b0c0d0e0f", "", "")
    assert rows == [
        ("loop0", "", 0, 4096, 0, "disk", "7:0", 0, 0, False, False, *none),
        ("vda", "", 1 << 17, 4096, 1 << 29, "disk", "254:0", 0, 0, False, True, *none),
        ("vda1", "vda", 100, 4096, 409600, "partition", "254:1", 1, 32768, True, True, "", "", "1234-01", "EFI"),
        ("vda2", "vda", 200, 4096, 819200, "partition", "254:2", 2, 0, False, True, *filesystem),
    ]
    assert table.backing.tolist() == (["/a", "", "", ""] if kind == "new" else [""] * 4)
    assert len(table.notes) == (kind == "old")


def test_a_disk_that_cannot_be_written_has_no_partition_that_can() -> None:
    for members in ({"state": 2}, {}):
        guest = populate("new")
        guest.put("gendisk", guest.disks[0], **members)
        if not members:
            guest.poke("block_device", guest.parts[0], "__bd_flags.counter", 1 << 8)
        assert block_devices(guest.kernel).read_only.tolist() == [False, True, True, True]


@pytest.mark.parametrize("wild", [NOWHERE, HOLE, (1 << 64) - 8, 0x1234_5678_9ABC_DEF0])
def test_wild_pointers_mark_their_rows_only(wild: int) -> None:
    guest = populate("new")
    guest.put("block_device", guest.parts[0], bd_disk=wild)
    guest.put("block_device", guest.parts[1], bd_meta_info=wild)
    guest.put("device", guest.parts[2] + guest.offset("block_device", "bd_device"), kobj__name=wild, parent=wild)
    guest.put("gendisk", guest.disks[3], private_data=wild)
    table = block_devices(guest.kernel)
    faults = dict(zip(table.number.tolist(), table.fault.tolist(), strict=True))
    assert "disk unreadable" in faults["254:0"]
    assert faults["254:1"] == "partition's label unreadable"
    assert faults["254:2"] == "name unreadable"
    assert "backing file unreadable" in faults["7:0"]


@pytest.mark.parametrize("kind", ["new", "old"])
def test_sizes_that_lie(kind: str) -> None:
    guest = populate(kind)
    for size in (0, 3, 1 << 31, (1 << 32) - 1):
        guest.put("request_queue", guest.queue, limits__logical_block_size=size)
        table = block_devices(guest.kernel)
        assert len(table) == 4
        assert ("no sense" in table.fault[0]) == (size != 1 << 31)


def test_a_circle_and_a_wild_device() -> None:
    guest = populate("new")
    guest.word(guest.nodes[2], guest.nodes[1])
    assert len(block_devices(guest.kernel)) == 3
    assert "circle" in block_devices(guest.kernel).notes[0]
    guest.word(guest.nodes[2], NOWHERE)
    assert block_devices(guest.kernel).notes
    guest.put("device_private", guest.nodes[0] - guest.offset("device_private", "knode_class.n_node"), device=NOWHERE)
    assert "device unreadable" in " ".join(block_devices(guest.kernel).fault)


def test_no_class() -> None:
    guest = populate("new")
    guest.put("subsys_private", guest.private, **{"class": 0})
    table = block_devices(guest.kernel, ["name"])
    assert (len(table), table.notes[-1]) == (0, "block devices: no class of that name is registered")


@pytest.mark.parametrize("kind", ["new", "old"])
def test_no_file_systems(kind: str) -> None:
    guest = populate(kind)
    guest.word(guest.blocks, guest.blocks)
    table = block_devices(guest.kernel)
    assert table.type.tolist() == table.uuid.tolist() == [""] * 4
