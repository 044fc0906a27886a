"""Trees of ranges of made-up guests, and trees that lie."""

from __future__ import annotations

import pytest

from tests.synthetic import SyntheticGuest
from tests.synthetic.guest import HOLE, NOWHERE
from vmi_inside.linux.resources import iomem, ioports
from vmi_inside.linux.trees import DEPTH_LIMIT

STRUCTS = """
resource 64
    start 0 u64
    end 8 u64
    name 16 *char
    flags 24 u64
    parent 40 *resource
    sibling 48 *resource
    child 56 *resource
"""
Shape = tuple[str, list["Shape"]]


class Ranges:
    """A guest with a tree of ranges, by their names."""

    def __init__(self, *shapes: Shape) -> None:
        self.guest = SyntheticGuest()
        self.guest.profile.extend(STRUCTS)
        self.at: dict[str, int] = {}
        self.root = self.guest.global_("iomem_resource", 64)
        self.guest.put("resource", self.root, child=self.plant(list(shapes)))

    def plant(self, shapes: list[Shape]) -> int:
        """Siblings; the first one's address."""
        behind = 0
        for name, children in reversed(shapes):
            behind = self.guest.new(
                "resource", start=16 * len(self.at), end=16 * len(self.at) + 15, name=self.guest.string(name),
                flags=1 << 31, sibling=behind, child=self.plant(children),
            )  # fmt: skip
            self.at[name] = behind
        return behind

    def lines(self) -> list[str]:
        return [" " * row.depth + row.name for row in iomem(self.guest.kernel)]


def tree() -> Ranges:
    return Ranges(("RAM", [("code", []), ("data", [("bss", [])])]), ("hole", []), ("PCI", [("card", [])]))


def test_each_before_those_in_it() -> None:
    ranges = tree()
    assert ranges.lines() == ["RAM", " code", " data", "  bss", "hole", "PCI", " card"]
    table = iomem(ranges.guest.kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert table.busy.all()
    assert (table.end - table.start == 15).all()
    assert len(iomem(Ranges().guest.kernel)) == 0


@pytest.mark.parametrize("wild", [NOWHERE, HOLE, (1 << 64) - 8])
def test_wild_pointers_cost_little(wild: int) -> None:
    ranges = tree()
    ranges.guest.put("resource", ranges.at["data"], child=wild, name=wild)
    table = iomem(ranges.guest.kernel)
    assert [row.fault for row in table if row.fault] == ["name unreadable"]
    assert len(table) == 6
    assert table.notes == ("iomem_resource: a node could not be read",)
    ranges.guest.put("resource", ranges.at["RAM"], sibling=wild, name=0)
    assert iomem(ranges.guest.kernel).name.tolist() == ["<BAD>", "code", ""]


def test_circles_end() -> None:
    ranges = tree()
    ranges.guest.put("resource", ranges.at["card"], child=ranges.at["PCI"], sibling=ranges.at["card"])
    ranges.guest.put("resource", ranges.at["bss"], child=ranges.root)
    table = iomem(ranges.guest.kernel)
    assert len(table) == 7
    assert any("circle" in note for note in table.notes)


def test_a_tree_without_a_floor() -> None:
    shape: Shape = ("leaf", [])
    for level in range(DEPTH_LIMIT + 5):
        shape = (f"level {level}", [shape])
    table = iomem(Ranges(shape).guest.kernel)
    assert len(table) == DEPTH_LIMIT
    assert "cut after" in table.notes[0]


def test_a_range_that_ends_before_it_starts() -> None:
    ranges = tree()
    ranges.guest.put("resource", ranges.at["hole"], start=100, end=9)
    assert [row.fault for row in iomem(ranges.guest.kernel)] == ["", "", "", "", "ends before it starts", "", ""]


def test_columns_and_ports() -> None:
    ranges = tree()
    assert iomem(ranges.guest.kernel, ["depth"]).columns == ("depth", "fault")
    ranges.guest.profile.symbols["ioport_resource"] = ranges.root
    assert len(ioports(ranges.guest.kernel)) == 7
    with pytest.raises(AttributeError, match="no column 'size'"):
        iomem(ranges.guest.kernel, ["size"])
