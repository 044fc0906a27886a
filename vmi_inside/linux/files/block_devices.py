"""Block devices: disks and their partitions, as /sys/class/block lists them.

Knows the class of block devices (`block_class`, block/genhd.c; `subsys_private`, drivers/base/base.h), `gendisk`, and
what a disk or partition is: `block_device` since 5.11, `hd_struct` before. Of the file systems on them it knows those
that are mounted; disks' vendors and models are their drivers' knowledge, and are left out.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.errors import NoSymbol
from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.mount_tree import file_systems
from vmi_inside.linux.files.opened import opened
from vmi_inside.linux.symbols.module_types import module_types
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask


class BlockDevices(Table):
    """One row for each disk and partition; osquery's column names where it has them."""

    name: Text
    parent: Text  # of a partition the disk; of a disk empty
    size: I64  # in blocks
    block_size: I64  # bytes of a logical block
    bytes: I64  # size times block_size
    kind: Text  # disk partition
    number: Text  # major:minor
    partition: I64  # 0 for a disk
    start: I64  # of a partition in its disk, in bytes
    read_only: Mask
    removable: Mask
    type: Text  # of the file system that is mounted from it
    uuid: Text  # of that file system
    partition_uuid: Text  # as the partition table has it
    partition_label: Text
    backing: Text  # of a loop device: the file
    address: U64  # of struct block_device, or hd_struct


DEVICE_LIMIT: Final = 1 << 16
_SECTOR: Final = 512
_MINOR_BITS: Final = 20
#: GENHD_FL_REMOVABLE (include/linux/blkdev.h).
_REMOVABLE: Final = 1
#: BD_READ_ONLY of `__bd_flags`, and the bits of it that are the partition's number (include/linux/blk_types.h, 6.10).
_READ_ONLY, _PARTITION = 1 << 8, 0xFF
#: GD_READ_ONLY of `gendisk.state` (include/linux/blkdev.h, 5.12).
_DISK_READ_ONLY: Final = 1 << 1
_LOOP_MAJOR: Final = 7
_NAME_LIMIT: Final = 64


class _View:
    """Disks and partitions: the structs of each, by whatever name this kernel has them."""

    def __init__(self, kernel: Kernel, faults: Faults, device: Structs) -> None:
        self.kernel = kernel
        self.faults = faults
        self.notes: list[str] = []
        self.device = device.fetch("kobj.name", "parent", "type", "devt")
        faults.mark(device.fault, "device unreadable")
        modern = kernel.struct("block_device")
        disk = kernel.struct("gendisk")
        kinds, _ = kernel.strings(device.follow("type").pointer("name"), _NAME_LIMIT)
        self.kind = text(kinds)
        self.is_part = self.kind == "partition"
        if modern.has("bd_device"):
            self.part = device.holder(modern, "bd_device")
            self.disk = self.part.follow("bd_disk", disk)
        else:
            self.part = device.holder(kernel.struct("hd_struct"), "__dev")
            of = np.where(self.is_part, device.pointer("parent"), device.address)
            self.disk = kernel.structs("device", of).holder(disk, "part0.__dev")
        faults.mark(self.part.fetch(("bd_start_sect", "start_sect")).fault, "device unreadable")
        faults.mark(self.disk.fetch("flags", "queue").fault, "disk unreadable")

    def name(self) -> Text:
        """Names (n,) of the devices."""
        return self.named(self.device)

    def named(self, devices: Structs) -> Text:
        """Names of other devices; of 0 an empty one."""
        names, ok = self.kernel.strings(devices.pointer("kobj.name"), _NAME_LIMIT)
        self.faults.mark(~ok | devices.fault, "name unreadable")
        return text(names)

    def parent(self) -> Text:
        """Names of the disks that partitions are of."""
        above = np.where(self.is_part, self.device.pointer("parent"), np.uint64(0))
        return self.named(self.kernel.structs("device", above))

    def sectors(self) -> I64:
        """Sizes (n,) in sectors of 512 bytes."""
        if self.part.has("bd_nr_sectors", "nr_sects"):
            return self.part.number(("bd_nr_sectors", "nr_sects"))
        return self.part.follow("bd_inode").number("i_size") // _SECTOR  # from 5.11 to 5.14

    def block_size(self) -> I64:
        """Logical blocks (n,), in bytes."""
        queues = self.disk.follow("queue")
        size = queues.number("limits.logical_block_size")
        self.faults.mark(queues.fault, "queue unreadable")
        sane = (size >= _SECTOR) & (size & (size - 1) == 0)
        self.faults.mark(~sane & ~queues.fault, "block size makes no sense")
        return np.where(sane, size, _SECTOR)

    def partition(self) -> I64:
        """Numbers (n,) of the partitions in their disks."""
        if self.part.has("__bd_flags"):
            return self.part.number("__bd_flags.counter") & _PARTITION
        return self.part.number(("bd_partno", "partno"))

    def read_only(self) -> Mask:
        """Which cannot be written: by themselves, or because their disk cannot (`bdev_read_only`, block/genhd.c)."""
        if not self.part.type.has("bd_device"):
            refused: Mask = self.part.number("policy") != 0
            return refused
        whole = self.disk.follow("part0", self.part.type)
        out: Mask = self.disk.number("state") & _DISK_READ_ONLY != 0
        for rows in (self.part, whole):
            if rows.has("__bd_flags"):
                out |= rows.number("__bd_flags.counter") & _READ_ONLY != 0
            else:
                out |= rows.number("bd_read_only") != 0
        return out

    def meta(self) -> Structs:
        """What the partition table says beside the numbers."""
        rows = self.part.follow(("bd_meta_info", "info")).fetch("uuid", "volname")
        self.faults.mark(rows.fault, "partition's label unreadable")
        return rows

    def mounted(self) -> tuple[Text, Text]:
        """Types and UUIDs (n,) of the file systems that are mounted from them."""
        blocks, _ = file_systems(self.kernel)
        blocks.fetch("s_dev", "s_type", "s_uuid")
        names, _ = self.kernel.strings(blocks.follow("s_type").pointer("name"), _NAME_LIMIT)
        raw = blocks["s_uuid"].view(np.uint8)  # (n, 16)
        by_number = dict(zip(blocks.number("s_dev").tolist(), zip(names, raw, strict=True), strict=True))
        kinds, ids = [], []
        for number in self.device.number("devt").tolist():
            name, at = by_number.get(number, ("", _NO_UUID)) if number else ("", _NO_UUID)
            kinds.append(name)
            ids.append(str(uuid.UUID(bytes=at.tobytes())) if len(at) == len(_NO_UUID) and at.any() else "")
        return text(kinds), text(ids)

    def backing(self) -> Text:
        """Files behind loop devices."""
        out = np.full(len(self.device), "", dtype=object)
        rows = np.flatnonzero(self.device.number("devt") >> _MINOR_BITS == _LOOP_MAJOR)
        ctype = self.kernel.find_struct("loop_device")
        if ctype is None and len(rows):
            module = module_types(self.kernel, "loop")
            ctype = module.struct("loop_device") if module else None
        if ctype is None:
            if len(rows):
                self.notes.append("backing: the types of the loop module are not in memory")
            return out
        loops = self.kernel.structs(ctype, self.disk.select(rows).pointer("private_data"))
        files = self.kernel.structs("file", loops.pointer("lo_backing_file"))
        behind = opened(self.kernel, files)
        out[rows] = behind.path
        wrong = np.zeros(len(out), dtype=np.bool_)
        wrong[rows] = loops.fault | files.fault | ~behind.path_whole
        self.faults.mark(wrong, "backing file unreadable")
        return out


_NO_UUID: Final = np.zeros(16, dtype=np.uint8)


def block_devices(kernel: Kernel, columns: Iterable[str] | None = None) -> BlockDevices:
    """All disks and partitions, by their numbers. `columns` asks for some columns only."""
    wanted = list(BlockDevices.schema if columns is None else columns)
    BlockDevices.check(wanted)
    with kernel.operation():
        devices, notes = _devices(kernel)
        faults = Faults(len(devices))
        view = _View(kernel, faults, devices)
        block_size, sectors = view.block_size(), view.sectors()
        number = view.device.number("devt")
        data: dict[str, Column] = {
            "name": view.name(),
            "size": sectors * _SECTOR // block_size,
            "block_size": block_size,
            "bytes": sectors * _SECTOR,
            "kind": view.kind,
            "number": text(f"{each >> _MINOR_BITS}:{each & (1 << _MINOR_BITS) - 1}" for each in number.tolist()),
            "partition": view.partition(),
            "start": view.part.number(("bd_start_sect", "start_sect")) * _SECTOR,
            "read_only": view.read_only(),
            "removable": view.disk.number("flags") & _REMOVABLE != 0,
            "address": view.part.address,
        }
        if "parent" in wanted:
            data["parent"] = view.parent()
        if "backing" in wanted:
            data["backing"] = view.backing()
        if {"type", "uuid"} & set(wanted):
            data["type"], data["uuid"] = view.mounted()
        if {"partition_uuid", "partition_label"} & set(wanted):
            meta = view.meta()
            data["partition_uuid"], data["partition_label"] = text(meta.text("uuid")), text(meta.text("volname"))
        data["fault"] = faults.column()
    table = BlockDevices({name: data[name] for name in dict.fromkeys((*wanted, "fault"))}, (*notes, *view.notes))
    return table.where(np.argsort(number, kind="stable"))


def _devices(kernel: Kernel) -> tuple[Structs, tuple[str, ...]]:
    """The devices of the class, in the order in which they came, and what cut the list short."""
    private, faults = _subsystem(kernel)
    if not private:
        return kernel.structs("device", np.empty(0, dtype=np.uint64)), faults
    inner = kernel.struct("subsys_private").member("klist_devices.k_list").offset
    listed = walk.serial(kernel.space, private + inner, what="block devices", limit=DEVICE_LIMIT)
    holder = kernel.struct("device_private")
    nodes = kernel.structs(holder, listed.address - np.uint64(holder.member("knode_class.n_node").offset))
    return nodes.follow("device"), (*faults, *listed.faults)


def _subsystem(kernel: Kernel) -> tuple[int, tuple[str, ...]]:
    """The address of what the driver core keeps of the class; 0 where it is not found."""
    symbol = kernel.symbol("block_class")
    ctype = kernel.struct("class")
    if ctype.has("p"):
        return int(kernel.structs(ctype, [symbol]).pointer("p")[0]), ()
    # Since 6.4 a class does not know it: it is among those of all classes.
    private = kernel.struct("subsys_private")
    try:
        kset = kernel.pointer("class_kset")
    except NoSymbol as error:
        return 0, (f"block devices: {error}",)
    entry = kernel.struct("kobject").member("entry").offset
    listed = walk.serial(
        kernel.space, kset + kernel.struct("kset").member("list").offset, what="classes", limit=DEVICE_LIMIT
    )
    base = listed.address - np.uint64(private.member("subsys.kobj").offset + entry)
    rows = kernel.structs(private, base)
    mine = base[rows.pointer("class") == symbol]
    if not len(mine):
        return 0, (*listed.faults, "block devices: no class of that name is registered")
    return int(mine[0]), listed.faults
