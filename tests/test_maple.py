"""The maple walker over random trees, and over trees that lie."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.synthetic import Layout, SyntheticGuest
from tests.synthetic.guest import NOWHERE
from vmi_inside import maple

NODE = Layout(
    """
range64 256
    parent 0 *void
    pivot 8 u64[15]
    slot 128 *void[16]
arange64 256
    parent 0 *void
    pivot 8 u64[9]
    slot 80 *void[10]
    gap 160 u64[10]
maple_node 256
    parent 0 *void
    slot 8 *void[31]
    mr64 0 range64
    ma64 0 arange64
"""
).structs["maple_node"]
TOP = (1 << 64) - 1
SLOTS = {maple.DENSE: 31, maple.LEAF: 16, maple.RANGE: 16, maple.ARANGE: 10}
Entry = tuple[int, int, int]  # address, first, last


@dataclass
class Forest:
    """Plants maple trees in a guest."""

    guest: SyntheticGuest = field(default_factory=SyntheticGuest)
    nodes: list[int] = field(default_factory=list)

    def node(self, kind: int, parts: list[tuple[int, int]], high: int = TOP, *, meta: int = 0) -> int:
        """A node of (last index, slot) pairs, as its parent names it."""
        at = self.guest.alloc(512, "maple") + 255 & ~255
        self.nodes.append(at)
        if kind == maple.DENSE:
            for slot, (_, value) in enumerate(parts):
                self.guest.word(at + 8 + 8 * slot, value)
        else:
            pivots = SLOTS[kind] - 1
            slots = 128 if kind != maple.ARANGE else 80
            for slot, (last, value) in enumerate(parts):
                self.guest.word(at + slots + 8 * slot, value)
                if slot < pivots:
                    self.guest.word(at + 8 + 8 * slot, last)
            if meta and len(parts) < SLOTS[kind]:
                # What lies behind the last slot: the count of slots, and what was there before.
                self.guest.word(at + slots + 8 * pivots, meta)
        return at | kind << 3 | 4

    def root(self, node: int) -> int:
        return node | 2

    def walk(self, *roots: int) -> maple.Entries:
        return maple.entries(self.guest.space, np.array(roots, dtype=np.uint64), NODE)


def rows(found: maple.Entries, owner: int = 0) -> list[Entry]:
    mine = found.owner == owner
    columns = (found.entry[mine], found.first[mine], found.last[mine])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def grow(forest: Forest, draw: random.Random, low: int, high: int, height: int) -> tuple[int, list[Entry]]:
    """A random subtree of those indices, and what it holds. Like the kernel's, it may end in a pivot or without one."""
    kind = draw.choice((maple.RANGE, maple.ARANGE)) if height else draw.choice((maple.LEAF, maple.LEAF, maple.DENSE))
    if kind == maple.DENSE:
        count = min(31, high - low + 1)
        values = [draw.choice((0, 0xFFFF_8880_0000_0000 + 8 * draw.randrange(1 << 20))) for _ in range(count)]
        return forest.node(kind, [(0, value) for value in values]), [
            (value, low + at, low + at) for at, value in enumerate(values) if value
        ]
    most = min(SLOTS[kind], high - low + 1)
    inner = {draw.randint(low, high - 1) for _ in range(draw.randint(0, most - 1))} if high > low else set()
    # A limit of 0 in any slot but the tree's first would mean that there is none.
    lasts = [*sorted(inner - {0} if low or draw.random() < 0.5 else inner), high]
    parts: list[tuple[int, int]] = []
    held: list[Entry] = []
    start = low
    for number, last in enumerate(lasts):
        if height:
            value, below = grow(forest, draw, start, last, height - 1)
            held += below
        else:
            value = draw.choice((0, 0xFFFF_8880_0000_0000 + 8 * draw.randrange(1 << 20)))
            held += [(value, start, last)] if value else []
        implied = number == len(lasts) - 1 and number and draw.random() < 0.5
        parts.append((0 if implied else last, value))
        start = last + 1
    return forest.node(kind, parts, high, meta=draw.choice((0, 3, 0xFFFF_8880_1234_5678))), held


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_random_trees_side_by_side(seed: int, heights: list[int]) -> None:
    forest, draw = Forest(), random.Random(seed)
    planted = [grow(forest, draw, 0, TOP, min(height, 2)) for height in heights]
    found = forest.walk(*(forest.root(node) for node, _ in planted))
    assert found.faults == ()
    assert found.whole.all()
    for owner, (_, held) in enumerate(planted):
        assert rows(found, owner) == held


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 12))
def test_no_lie_is_worse_than_a_fault(seed: int, lies: int) -> None:
    """Words of nodes are overwritten: the walk ends, other trees stay, and what is given lies within its tree."""
    forest, draw = Forest(), random.Random(seed)
    honest, held = grow(forest, draw, 0, TOP, 1)
    before = len(forest.nodes)
    liar, _ = grow(forest, draw, 0, TOP, 2)
    mine = forest.nodes[before:]
    for _ in range(lies):
        node = draw.choice(mine)
        wild = (0, 1, TOP, NOWHERE, draw.choice(mine) | 0x1C, draw.choice(mine) | 0x0C, draw.randrange(TOP))
        forest.guest.word(node + 8 * draw.randrange(32), draw.choice(wild))
    found = forest.walk(forest.root(liar), forest.root(honest), 0)
    assert rows(found, 1) == held
    assert found.whole.tolist()[1:] == [True, True]
    assert bool(found.faults) != found.whole[0]
    told = rows(found, 0)
    assert all(first <= last for _, first, last in told)
    if found.whole[0]:
        assert all(before[2] < after[1] for before, after in itertools.pairwise(told))


def test_roots_without_nodes() -> None:
    forest = Forest()
    entry = 0xFFFF_8880_0000_0010
    found = forest.walk(0, entry, 0x406, 3)  # none; the entry of index 0; the kernel's mark; a value
    assert rows(found, 1) == [(entry, 0, 0)]
    assert len(found.entry) == 1
    assert found.whole.all()
    assert len(forest.walk().entry) == 0


def test_marks_in_leaves_are_no_entries() -> None:
    forest = Forest()
    entry = 0xFFFF_8880_0000_0010
    leaf = forest.node(maple.LEAF, [(9, 0x406), (19, entry), (29, 0x15), (TOP, 0)])
    found = forest.walk(forest.root(leaf))
    assert (rows(found), found.faults) == ([(entry, 10, 19)], ())


@pytest.mark.parametrize(
    ("child", "words"),
    [
        (0, "lacks a child"),
        (NOWHERE | 0x0C, "could not be read"),
        (0xFFFF_8880_0000_0000 | 9 << 3 | 4, "makes no sense"),
    ],
)
def test_a_bad_child_costs_its_own_indices_only(child: int, words: str) -> None:
    forest = Forest()
    entry = 0xFFFF_8880_0000_0010
    good = forest.node(maple.LEAF, [(150, entry), (TOP, 0)])
    found = forest.walk(forest.root(forest.node(maple.RANGE, [(99, child), (TOP, good)])))
    assert rows(found) == [(entry, 100, 150)]
    assert found.whole.tolist() == [False]
    assert words in found.faults[0]


def test_a_circle_ends() -> None:
    forest = Forest()
    top = forest.node(maple.ARANGE, [(TOP, 0)])
    forest.guest.word(forest.nodes[0] + 80, top)
    found = forest.walk(forest.root(top), forest.root(top))
    assert len(found.entry) == 0
    assert found.whole.tolist() == [False, False]
    assert "stands twice" in found.faults[0]
    alone = forest.walk(forest.root(top))
    assert (len(alone.entry), alone.faults) == (0, ("maple tree: a node stands twice in the trees",))


def test_limits_that_do_not_ascend_cut_the_node_there() -> None:
    forest = Forest()
    a, b = 0xFFFF_8880_0000_0010, 0xFFFF_8880_0000_0020
    leaf = forest.node(maple.LEAF, [(50, a), (40, b), (60, b)])
    found = forest.walk(forest.root(leaf))
    assert rows(found) == [(a, 0, 50)]
    assert "ascend" in found.faults[0]


def test_a_chain_of_nodes_is_no_deeper_than_a_tree() -> None:
    forest = Forest()
    node = forest.node(maple.LEAF, [(TOP, 0xFFFF_8880_0000_0010)])
    for _ in range(maple.HEIGHT_LIMIT - 1):
        node = forest.node(maple.RANGE, [(TOP, node)])
    assert len(forest.walk(forest.root(node)).entry) == 1
    found = forest.walk(forest.root(forest.node(maple.RANGE, [(TOP, node)])))
    assert len(found.entry) == 0
    assert "higher than" in found.faults[0]


def test_the_limit_on_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maple, "NODE_LIMIT", 3)
    forest = Forest()
    leaves = [forest.node(maple.LEAF, [(TOP, 0xFFFF_8880_0000_0010)]) for _ in range(4)]
    found = forest.walk(forest.root(forest.node(maple.RANGE, list(zip((9, 19, 29, TOP), leaves, strict=True)))))
    assert not found.whole[0]
    assert "cut after 1 nodes" in found.faults[0]


def test_rounds_are_the_height_of_the_highest_tree() -> None:
    forest, draw = Forest(), random.Random(7)
    trees = [forest.root(grow(forest, draw, 0, TOP, 2)[0]) for _ in range(20)]
    with forest.guest.space.operation():
        forest.walk(*trees)
        forest.guest.memory.reset()
        found = forest.walk(*trees)
    assert len(found.entry) > 200
    assert forest.guest.memory.gathers <= 3 + 1
