"""Disks and partitions, held against /sys/class/block and /proc/partitions of the guest."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Callable, Iterator

import pytest

from tests.lab.guest import LabGuest

UUID = "11223344-5566-7788-99aa-bbccddeeff00"
#: A disk of 64 KiB with an ext2 file system of that UUID (mke2fs -t ext2 -N 16 -m 0 -O none), compressed.
EXT2 = """
H4sIAAAAAAACA+3au0pjQRwH4MmJIsZrvICVxgUbhSDsCyj4BuIDKCKIuhbe2i23srAT30AbexsfwFfYysbCS2NncZzkJBKzliq65/vCPzkD
k5AZ8jvMMAkByKvBWHON6+lYnbEKrR0qWQ02mjvVzo0Q0nTxoVDvl7Uzzff1hPYPCaH84+fC0trBn+PTi6u/92nY31rfXF753LGeTU2ej6fz
l4dPy0fJ7fVJ7Sv2vhrX+6rERyEnv6NuUfqWirE6Grmfjs9JvQXkQZpO1F5+p0D+dJkCyKvQsv9tVp7WP3fz2Qbo3/EX417o4/e3lbZ23uYf
APh8l7X1z+xb658kjLX0K4XsXKd2XtIXqz/WQMjOhcqxhmINxxqJNWr9A/DlJfV7eiFUX66TUK1m9/qbYilsbu/szqxt7/1aNVfwv+lpy/9j
Mcs/kBP+8gPyD8g/IP+A/APyD8g/IP+A/APyD8g/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAfJBno0aikAAA
AQA=
"""
DISK = r"""
cd /tmp; dd if=/dev/zero of=disk.img bs=1M count=8
printf 'n\np\n1\n64\n4000\nn\np\n2\n8192\n\nw\n' | fdisk disk.img
losetup -P /dev/loop3 /tmp/disk.img
losetup -r /dev/loop4 /tmp/disk.img
gunzip -c system.gz >system.img; losetup /dev/loop5 /tmp/system.img
mkdir -p system; mount -t ext2 /dev/loop5 system; dd if=/dev/zero of=system/file bs=1000 count=9
"""


@pytest.fixture(params=["6.1-cloud", "new-cloud", "6.12-cloud", "5.10-cloud"])
def guest(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> Iterator[LabGuest]:
    guest = lab_boot() if request.param == "6.1-cloud" else lab_boot(kernel=request.param)
    packed = "".join(textwrap.dedent(EXT2).split())
    assert base64.b64decode(packed)
    guest.ask(f"echo {packed} | base64 -d >/tmp/system.gz; ({DISK}) >/tmp/disk.log 2>&1")
    yield guest
    guest.ask(
        "cd /tmp; umount system; for n in 3 4 5; do losetup -d /dev/loop$n; done; "
        "rm -rf system system.gz system.img disk.img disk.log"
    )


def attribute(guest: LabGuest, name: str) -> dict[str, str]:
    """What a file of each device's folder in /sys says; nothing where there is none."""
    told = guest.ask(f"cd /sys/class/block; for d in *; do echo $d=$(cat $d/{name} 2>/dev/null); done")
    return dict(line.split("=", 1) for line in told.splitlines())


def test_every_device(guest: LabGuest) -> None:
    with guest.attach() as seen:
        table = seen.block_devices()
        few = seen.block_devices(["name", "bytes"])
    assert set(table.fault) == {""}
    rows = {row.name: row for row in table}
    size, start = attribute(guest, "size"), attribute(guest, "start")
    assert set(rows) == set(size)
    assert "loop3p2" in rows
    for name, told in size.items():
        row = rows[name]
        assert row.bytes == int(told) * 512 == row.size * row.block_size
        assert row.start == int(start[name] or 0) * 512
    for column, name in (
        ("number", "dev"),
        ("read_only", "ro"),
        ("removable", "removable"),
        ("partition", "partition"),
    ):
        told = attribute(guest, name)
        kind = {"number": str, "partition": int}.get(column, lambda value: bool(int(value)))
        assert {each: getattr(rows[each], column) for each in rows if told[each]} == {
            each: kind(value) for each, value in told.items() if value
        }, column
    blocks = attribute(guest, "queue/logical_block_size")
    assert {name: rows[name].block_size for name in rows if blocks[name]} == {
        name: int(value) for name, value in blocks.items() if value
    }
    for line in guest.ask("cat /proc/partitions").splitlines()[2:]:
        major, minor, kilobytes, name = line.split()
        assert (rows[name].number, rows[name].bytes // 1024) == (f"{major}:{minor}", int(kilobytes))
    assert [(rows[name].kind, rows[name].parent) for name in ("loop3", "loop3p1")] == [
        ("disk", ""), ("partition", "loop3"),
    ]  # fmt: skip
    events = guest.ask("cat /sys/class/block/loop3p2/uevent")
    if "PARTUUID=" in events:
        assert f"PARTUUID={rows['loop3p2'].partition_uuid}\n" in events
    assert (rows["loop5"].type, rows["loop5"].uuid) == ("ext2", UUID)
    assert few.columns == ("name", "bytes", "fault")
    backing = attribute(guest, "loop/backing_file")
    if table.notes:  # 5.10's modules come without types
        assert table.notes == ("backing: the types of the loop module are not in memory",)
        assert guest.shape.kernel == "5.10-cloud"
    else:
        assert {name: row.backing for name, row in rows.items() if row.backing} == {
            name: value for name, value in backing.items() if value and name not in ("loop3p1", "loop3p2")
        }


def test_how_full_a_file_system_on_one_is(guest: LabGuest) -> None:
    said = "stat -f -c '%S %b %f %a %c %d' /tmp/system"
    with guest.attach() as seen:
        table = seen.mounts()
        told = [int(word) for word in guest.ask(said).split()]
    row = table[table.path.tolist().index("/tmp/system")]
    assert row.fault == ""
    assert (row.device, row.type, row.number) == ("/dev/loop5", "ext2", "7:5")
    mine = [row.blocks_size, row.blocks, row.blocks_free, row.blocks_available, row.inodes, row.inodes_free]
    assert mine == told
    assert row.blocks > row.blocks_free > 0
