"""The walker of red-black trees over random trees, and over trees that lie."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.synthetic import Layout, SyntheticGuest
from tests.synthetic.guest import NOWHERE
from vmi_inside import rbtree

NODE = Layout(
    """
rb_node 24
    __rb_parent_color 0 u64
    rb_right 8 *rb_node
    rb_left 16 *rb_node
"""
).structs["rb_node"]
LEFT, RIGHT = 16, 8


@dataclass
class Forest:
    """Plants red-black trees, coloured anyhow, in a guest."""

    guest: SyntheticGuest = field(default_factory=SyntheticGuest)
    draw: random.Random = field(default_factory=lambda: random.Random(1))

    def grow(self, count: int, parent: int = 0) -> tuple[int, list[int]]:
        """A random tree of so many nodes: its root's address, and all in order."""
        if not count:
            return 0, []
        at = self.guest.alloc(self.draw.choice((24, 200)), "rb")
        self.guest.word(at, parent | self.draw.randrange(2))
        # Balanced, but not quite.
        left = count // 2 if count < 6 else self.draw.randint(count // 3, 2 * count // 3)
        below, before = self.grow(min(left, count - 1), at)
        self.guest.word(at + LEFT, below)
        below, behind = self.grow(count - 1 - len(before), at)
        self.guest.word(at + RIGHT, below)
        return at, [*before, at, *behind]

    def walk(self, *roots: int) -> rbtree.Nodes:
        return rbtree.nodes(self.guest.space, np.array(roots, dtype=np.uint64), NODE)


def of(found: rbtree.Nodes, owner: int) -> list[int]:
    return found.address[found.owner == owner].tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(st.integers(0, 200), min_size=1, max_size=6))
def test_random_trees_side_by_side_in_order(seed: int, counts: list[int]) -> None:
    forest = Forest(draw=random.Random(seed))
    planted = [forest.grow(count) for count in counts]
    found = forest.walk(*(root for root, _ in planted))
    assert found.faults == ()
    assert found.sure.all()
    assert (np.diff(found.owner) >= 0).all()
    for owner, (_, held) in enumerate(planted):
        assert of(found, owner) == held


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 12))
def test_no_lie_is_worse_than_a_fault(seed: int, lies: int) -> None:
    """Words of nodes are overwritten: the walk ends, other trees stay whole, what is given is given once."""
    forest = Forest(draw=random.Random(seed))
    honest, held = forest.grow(50)
    liar, mine = forest.grow(100)
    for _ in range(lies):
        wild = (0, 1, (1 << 64) - 1, NOWHERE, forest.draw.choice(mine), forest.draw.randrange(1 << 64))
        forest.guest.word(forest.draw.choice(mine) + forest.draw.choice((0, LEFT, RIGHT)), forest.draw.choice(wild))
    found = forest.walk(honest, liar, 0)
    assert of(found, 0) == held
    assert len(set(found.address.tolist())) == len(found.address)
    assert found.sure.all() or found.faults
    if not found.faults:  # all that can be lost without a word is what a NULL hides
        assert set(of(found, 1)) <= set(mine)


def test_no_trees_and_empty_trees() -> None:
    forest = Forest()
    for roots in ((), (0,), (0, 0)):
        found = forest.walk(*roots)
        assert (len(found.address), len(found.owner), len(found.sure), found.faults) == (0, 0, 0, ())
        assert (found.address.dtype, found.owner.dtype, found.sure.dtype) == (np.uint64, np.int64, np.bool_)


def test_an_unreadable_node_costs_what_hangs_below_it_only() -> None:
    forest = Forest()
    root, held = forest.grow(15)
    before = held.index(root)
    forest.guest.word(root + RIGHT, NOWHERE)
    found = forest.walk(root)
    assert of(found, 0) == held[: before + 1]
    assert found.faults == ("tree: a node could not be read",)


def test_a_node_with_another_parent_is_given_and_not_followed() -> None:
    forest = Forest()
    root, held = forest.grow(15)
    other, others = forest.grow(7)
    forest.guest.word(root + RIGHT, other)
    found = forest.walk(root)
    assert of(found, 0) == [*held[: held.index(root) + 1], other]
    assert found.sure.tolist() == [True] * (len(found.address) - 1) + [False]
    assert "another parent" in found.faults[0]
    assert len(others) == 7


def test_a_circle_ends() -> None:
    forest = Forest()
    root, held = forest.grow(15)
    forest.guest.word(held[-1] + RIGHT, root)
    found = forest.walk(root)
    assert (of(found, 0), found.faults) == (held, ("tree: a node stands twice in the trees",))
    assert of(forest.walk(root, root), 1) == []


def test_a_chain_is_no_tree() -> None:
    forest = Forest()
    chain = [forest.guest.alloc(24, "rb") for _ in range(rbtree.HEIGHT_LIMIT + 1)]
    for above, here in zip([0, *chain], chain, strict=False):
        forest.guest.word(here, above)
        if above:
            forest.guest.word(above + RIGHT, here)
    assert forest.walk(chain[0]).faults == ("tree: higher than a tree can be",)
    assert of(forest.walk(chain[0]), 0) == chain[:-1]
    forest.guest.word(chain[-2] + RIGHT, 0)
    assert forest.walk(chain[0]).faults == ()


def test_the_limit_on_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rbtree, "NODE_LIMIT", 10)
    forest = Forest()
    root, held = forest.grow(15)
    found = forest.walk(root)
    assert set(of(found, 0)) < set(held)
    assert "cut after 7 nodes" in found.faults[0]


def test_rounds_are_the_height_of_the_highest_tree() -> None:
    forest = Forest()
    roots = [forest.grow(100)[0] for _ in range(20)]
    with forest.guest.space.operation():
        forest.walk(*roots)
        forest.guest.memory.reset()
        found = forest.walk(*roots)
    assert len(found.address) == 2000
    assert forest.guest.memory.gathers <= 12
