"""Swap files and zones of made-up guests, and guests that lie about theirs."""

from __future__ import annotations

import pytest

from tests.synthetic.files import FilesGuest
from tests.synthetic.guest import HOLE, NOWHERE
from tests.synthetic.layout import Layout
from tests.synthetic.watched import EnumProfile, WatchedGuest
from vmi_inside.errors import Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.memory.buddy_info import buddy_info
from vmi_inside.linux.memory.swaps import swaps

PAGE = 4096
_SWAP = """
long 8
    counter 0 i64
swap_info_struct 600
    flags 16 u64
    prio 24 i16
    pages 440 u32
    inuse_pages 448 long
    swap_file 488 *file
"""


class SwapGuest(FilesGuest):
    """A guest with swap files."""

    def __init__(self) -> None:
        super().__init__()
        self.profile = EnumProfile(self.profile.layout, self.profile.symbols)
        self.profile.enums = {"flags": {"SWP_USED": 1, "SWP_WRITEOK": 2}}
        more = Layout(_SWAP)
        more.structs = self.profile.layout.structs | more.structs
        self.profile.layout.structs = more.structs
        self.kernel = Kernel(self.space, self.profile)  # type: ignore[arg-type]

    def swap(self, *rows: int) -> int:
        """`swap_info` with these; gives its address."""
        at = self.global_("swap_info", 8 * 32)
        for number, row in enumerate(rows):
            self.word(at + 8 * number, row)
        self.write(self.global_("nr_swapfiles", 4), len(rows).to_bytes(4, "little"))
        self.finish()
        return at


def swap_files(guest: SwapGuest) -> tuple[int, int]:
    device = guest.regular("dev", "vda2")
    inode = guest.inode("devtmpfs", 0o60660, 5)
    guest.put("file", device, f_inode=inode)
    guest.put("dentry", guest.space.read_u64(device + guest.offset("file", "f_path.dentry")), d_inode=inode)
    one = guest.new("swap_info_struct", flags=3, pages=100, inuse_pages__counter=7 | 1 << 30, prio=-2, swap_file=device)
    two = guest.new("swap_info_struct", flags=1, pages=50, swap_file=guest.regular("swap", "file", deleted=True))
    return one, two


def test_swaps() -> None:
    guest = SwapGuest()
    one, two = swap_files(guest)
    guest.swap(one, guest.new("swap_info_struct"), two)  # one that was given back is kept for the next
    table = swaps(guest.kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert [row[:6] for row in table] == [
        ("/dev/vda2", "partition", 100 * PAGE, 7 * PAGE, -2, True),
        ("/swap/file (deleted)", "file", 50 * PAGE, 0, 0, False),
    ]


@pytest.mark.parametrize("wild", [NOWHERE, HOLE, 8, (1 << 64) - 8])
def test_swaps_that_lie(wild: int) -> None:
    guest = SwapGuest()
    one, two = swap_files(guest)
    guest.swap(one, wild, two)
    guest.put("swap_info_struct", two, swap_file=wild, inuse_pages__counter=-5)
    guest.write(guest.profile.symbols["nr_swapfiles"], b"\xff" * 4)
    table = swaps(guest.kernel)
    assert len(table) == 3
    assert table.fault[0] == ""
    assert "swap_info_struct unreadable" in table.fault[1]
    assert "file unreadable" in table.fault[2]
    assert (table.used >= 0).all()


def test_a_kernel_without_swap_says_so() -> None:
    with pytest.raises(Unsupported, match="does not swap"):
        swaps(SwapGuest().kernel)


# -- zones ----------------------------------------------------------------------------------------------------------


def zones(guest: WatchedGuest) -> list[int]:
    """One node of two zones, of which one has memory, and a second node that cannot be read."""
    guest.number("nr_node_ids", 2, 4)
    node = guest.new("pglist_data")
    first = node + guest.offset("pglist_data", "node_zones")
    guest.put(
        "zone", first, present_pages=4000, managed_pages__counter=3900, zone_start_pfn=1, name=guest.string("DMA")
    )
    for order, count in ((0, 5), (3, 2), (10, 1)):
        guest.poke("zone", first, f"free_area[{order}].nr_free", count)
    nodes = guest.global_("node_data", 16)
    guest.word(nodes, node)
    guest.finish()
    return [first, nodes]


@pytest.mark.parametrize("levels", [4, 5])
def test_free_memory_of_zones(levels: int) -> None:
    guest = WatchedGuest(levels, scattered=levels == 5)
    zones(guest)
    (row,) = buddy_info(guest.kernel)
    assert row[:13] == (0, "DMA", 5, 0, 0, 2, 0, 0, 0, 0, 0, 0, 1)
    assert (row.free, row.managed, row.present, row.first_page, row.fault) == (
        (5 + 16 + 1024) * PAGE, 3900 * PAGE, 4000 * PAGE, 1, "",
    )  # fmt: skip
    assert buddy_info(guest.kernel, ["zone", "free"]).columns == ("zone", "free", "fault")


@pytest.mark.parametrize("wild", [NOWHERE, HOLE, 8, (1 << 64) - 8])
def test_zones_that_lie(wild: int) -> None:
    guest = WatchedGuest()
    first, nodes = zones(guest)
    guest.word(nodes + 8, wild)
    guest.put("zone", first, name=wild)
    guest.poke("zone", first, "free_area[10].nr_free", (1 << 64) - 1)
    guest.write(guest.profile.symbols["nr_node_ids"], b"\xff" * 4)
    table = buddy_info(guest.kernel)
    assert "name unreadable" in table.fault[0]
    assert "more is free than there is" in table.fault[0]
    assert any("zone unreadable" in fault for fault in table.fault[1:])
    assert len(table) < 1 << 12
