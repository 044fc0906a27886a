from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.synthetic import SyntheticGuest
from tests.synthetic.guest import HOLE, NOWHERE
from vmi_inside import walk
from vmi_inside.types import U64


def addresses(*values: int) -> U64:
    return np.array(values, dtype=np.uint64)


def by_owner(found: walk.Walk) -> dict[int, list[int]]:
    out: dict[int, list[int]] = {}
    for node, owner in zip(found.address.tolist(), found.owner.tolist(), strict=True):
        out.setdefault(owner, []).append(node)
    return out


@pytest.fixture
def guest() -> SyntheticGuest:
    return SyntheticGuest(scattered=True)


# -- chains ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["null", "nulls", "circular"])
@pytest.mark.parametrize("offset", [0, 40])
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=30))
def test_chains_equal_what_was_linked(lengths: list[int], offset: int, kind: str) -> None:
    guest = SyntheticGuest(scattered=True)
    heads, want = [], {}
    for index, length in enumerate(lengths):
        nodes = [guest.alloc(64, "node") for _ in range(length)]
        head = guest.alloc(64, "head")
        heads.append(head)
        end = {"null": 0, "nulls": index << 1 | 1, "circular": head}[kind]
        for at, to in zip([head, *nodes], [*nodes, end], strict=True):
            guest.word(at + offset, to)
        if nodes:
            want[index] = nodes
    first = addresses(*(guest.space.read_u64(head + offset) for head in heads))
    guest.memory.reset()
    end = addresses(*heads) if kind == "circular" else None
    found = walk.chains(guest.space, first, offset, end=end, nulls=kind == "nulls")
    assert by_owner(found) == want
    assert found.faults == ()
    assert guest.memory.gathers <= (max(lengths, default=0)) * 6, "rounds are the longest chain's"
    if kind == "circular":
        for index, head in enumerate(heads):
            one = walk.serial(guest.space, head, offset)
            assert one.address.tolist() == want.get(index, [])
            assert one.faults == ()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_chains_over_arbitrary_pointers_end(seed: int) -> None:
    """Every node once, nothing that the pointers do not reach, and a word on each lie."""
    rnd = random.Random(seed)
    guest = SyntheticGuest()
    nodes = [guest.alloc(16, "node") for _ in range(20)]
    choices = [*nodes, 0, 1, NOWHERE, HOLE, 1 << 63, (1 << 64) - 2]
    links = {node: rnd.choice(choices) for node in nodes}
    for node, to in links.items():
        guest.word(node, to)
    heads = [rnd.choice(choices) for _ in range(6)]
    found = walk.chains(guest.space, addresses(*heads))
    reached, todo = set(), list(heads)
    lies = False
    while todo:
        node = todo.pop()
        if node == 0 or node & 1:
            continue
        if node in reached:
            lies = True
        elif node in links:
            reached.add(node)
            todo.append(links[node])
        else:
            lies = True
    assert sorted(found.address.tolist()) == sorted(reached)
    assert bool(found.faults) == lies


def test_chains_that_run_into_each_other(guest: SyntheticGuest) -> None:
    a, b, c, shared = (guest.alloc(16) for _ in range(4))
    for node in (a, b, c):
        guest.word(node, shared)
    found = walk.chains(guest.space, addresses(a, b, 0, c), what="thing")
    assert by_owner(found) == {0: [a, shared], 1: [b], 3: [c]}
    assert found.faults == ("thing: a chain runs in a circle or into another",)


def test_a_node_that_points_at_itself(guest: SyntheticGuest) -> None:
    node, honest = guest.alloc(16), guest.alloc(16)
    guest.word(node, node)
    found = walk.chains(guest.space, addresses(node, honest))
    assert by_owner(found) == {0: [node], 1: [honest]}
    assert len(found.faults) == 1


@pytest.mark.parametrize("circular", [False, True])
def test_an_end_in_the_middle_is_told(guest: SyntheticGuest, circular: bool) -> None:
    """Of a list without markers an odd pointer is a lie, as is NULL in a circle: nothing is left out in silence."""
    head, a, b, c = (guest.alloc(16) for _ in range(4))
    guest.chain(a, [b, c], head if circular else 0)
    end = addresses(head) if circular else None
    assert walk.chains(guest.space, addresses(a), end=end).faults == ()
    for lie in (0xFFF, *([0] if circular else [])):
        guest.word(b, lie)
        found = walk.chains(guest.space, addresses(a), end=end, what="thing")
        assert by_owner(found) == {0: [a, b]}
        assert found.faults == ("thing: a chain ends in what is no pointer, or before its end",)
    assert walk.chains(guest.space, addresses(0), end=end).faults == ()  # never made


def test_an_unreadable_node_ends_its_chain_only(guest: SyntheticGuest) -> None:
    a, b, c = (guest.alloc(16) for _ in range(3))
    guest.word(a, NOWHERE)
    guest.word(b, c)
    found = walk.chains(guest.space, addresses(a, b), what="thing")
    assert by_owner(found) == {0: [a], 1: [b, c]}
    assert found.faults == ("thing: a node could not be read",)


def long_list(guest: SyntheticGuest, count: int) -> int:
    at = guest.alloc(16 * count)
    for start in range(0, count, 4096):
        chunk = at + 16 * np.arange(start + 1, min(start + 4096, count) + 1, dtype=np.uint64)
        pairs = np.zeros((len(chunk), 2), dtype="<u8")
        pairs[:, 0] = chunk
        guest.write(at + 16 * start, pairs.tobytes())
    return at


def test_a_list_without_an_end_is_cut(guest: SyntheticGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "NODE_LIMIT", 500)
    at = long_list(guest, 2000)
    honest = guest.alloc(16)
    with guest.space.operation():
        found = walk.chains(guest.space, addresses(at, honest), what="thing")
    assert found.faults == ("thing: cut after 500 nodes",)
    assert len(found.address) == 500
    assert honest in found.address.tolist()
    one = walk.serial(guest.space, at, what="thing", limit=300)
    assert one.faults == ("thing: cut after 300 nodes",)
    assert len(one.address) == 300


def test_a_list_of_a_million_nodes_is_cut_by_rounds(guest: SyntheticGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert walk.ROUND_LIMIT <= 1 << 14 < walk.NODE_LIMIT <= 1 << 20
    monkeypatch.setattr(walk, "ROUND_LIMIT", 3000)
    at = long_list(guest, 1_000_000)
    guest.memory.reset()
    with guest.space.operation():
        found = walk.chains(guest.space, addresses(at), what="thing")
    assert found.faults == ("thing: cut after 3000 nodes",)
    assert found.address.tolist() == [at + 16 * index for index in range(3000)]
    assert guest.memory.gathers <= 3000 + 4 + 3000 * 16 // 4096 + 1


def test_a_round_of_too_many_nodes_is_cut(guest: SyntheticGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = addresses(*(guest.alloc(16) for _ in range(8)))
    monkeypatch.setattr(walk, "NODE_LIMIT", 7)
    found = walk.chains(guest.space, wide, what="thing")
    assert found.faults == ("thing: cut after 0 nodes",)


# -- one list ----------------------------------------------------------------------------------------------------------


def test_serial_says_what_it_met(guest: SyntheticGuest) -> None:
    head, a, b = (guest.alloc(16) for _ in range(3))
    for last, word in (
        (a, "runs in a circle"),
        (0, "ends in NULL"),
        (NOWHERE, "not mapped"),
        (HOLE, "no readable guest memory"),
    ):
        guest.chain(head, [a, b], last)
        found = walk.serial(guest.space, head, what="thing")
        assert found.address.tolist() == [a, b]
        assert len(found.faults) == 1
        assert found.faults[0].startswith("thing: ")
        assert word in found.faults[0]
    assert len(walk.serial(guest.space, NOWHERE).address) == 0
    assert walk.serial(guest.space, NOWHERE).faults


@pytest.mark.parametrize("length", [1025, 2500])
def test_a_long_circle_is_walked_once(guest: SyntheticGuest, length: int) -> None:
    """However far back the node lies that a chain comes to again."""
    at = long_list(guest, 6000)
    for back in (0, 1, length - 1):
        guest.word(at + 16 * (length - 1), at + 16 * back)
        for found in (
            walk.chains(guest.space, addresses(at), what="thing"),
            walk.serial(guest.space, at, what="thing"),
            walk.dense(guest.space, addresses(at), what="thing"),
        ):
            first = 0 if len(found.address) == length else 1  # a head is not among the nodes
            assert found.address.tolist() == [at + 16 * index for index in range(first, length)]
            assert bool(found.faults) == (back > 0 or first == 0)


# -- lists whose nodes lie close together ------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 40])
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 12), max_size=20), seed=st.integers(0, 1 << 32))
def test_dense_lists_equal_what_was_linked(lengths: list[int], offset: int, seed: int) -> None:
    guest = SyntheticGuest(scattered=True)
    heads, want, pages = [0], {}, set()
    for row, length in enumerate(lengths, 1):
        nodes = [guest.alloc(64, "node") for _ in range(length)]
        random.Random(seed).shuffle(nodes)
        head = guest.alloc(64, "head")
        heads.append(head)
        for at, to in itertools.pairwise((head, *nodes, head)):
            guest.word(at + offset, to)
            pages.add(at + offset & -4096)
        if nodes:
            want[row] = nodes
    with guest.space.operation():
        guest.space.translate(addresses(*pages, *pages))  # the page tables are known
        guest.memory.reset()
        found = walk.dense(guest.space, addresses(*heads), offset)
    assert by_owner(found) == want
    assert found.faults == ()
    assert guest.memory.reads <= len(pages), "no page is read twice"


@pytest.mark.parametrize(
    ("last", "told"),
    [("a", "runs in a circle or into another"), ("other", "runs in a circle or into another"), (0, "ends in NULL"),
     (NOWHERE, "a node could not be read"), (HOLE, "a node could not be read"), (4, "a node could not be read")],
)  # fmt: skip
def test_a_dense_list_that_lies_costs_only_itself(guest: SyntheticGuest, last: str | int, told: str) -> None:
    head, a, b, empty, honest, other = (guest.alloc(16) for _ in range(6))
    wrong = {"a": a, "other": other}.get(last, last) if isinstance(last, str) else last
    guest.chain(head, [a, b], a + 4 if wrong == 4 else wrong)  # a pointer to the middle of a word
    guest.word(empty, empty)
    guest.chain(honest, [other], honest)
    found = walk.dense(guest.space, addresses(honest, head, empty), what="thing")
    assert by_owner(found) == {0: [other], 1: [a, b]}
    assert found.faults == (f"thing: {told}",)
    of_no_memory = walk.dense(guest.space, addresses(NOWHERE, honest), what="thing")
    assert by_owner(of_no_memory) == {1: [other]}
    assert of_no_memory.faults == ("thing: a node could not be read",)


def test_a_dense_list_without_an_end_is_cut(guest: SyntheticGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "NODE_LIMIT", 300)
    at = long_list(guest, 1000)
    found = walk.dense(guest.space, addresses(at), what="thing")
    assert found.address.tolist() == [at + 16 * index for index in range(1, 301)]
    assert found.faults == ("thing: cut after 300 nodes",)


# -- the xarray --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.one_of(st.integers(0, 200), st.integers(0, (1 << 22) - 1)), st.integers(1, 1 << 40), max_size=60)
)
def test_xarray_equals_what_was_stored(entries: dict[int, int]) -> None:
    guest = SyntheticGuest(scattered=True)
    stored = {index: 0xFFFF_8880_0000_0000 + 8 * value for index, value in entries.items()}
    head = guest.xarray(stored)
    node = guest.profile.struct("xa_node")
    guest.memory.reset()
    with guest.space.operation():
        found = walk.xarray(guest.space, head, node)
    assert found.faults == ()
    assert dict(zip(found.owner.tolist(), found.address.tolist(), strict=True)) == stored
    assert guest.memory.gathers <= 4 * 8, "rounds are the tree's depth"


def node_of(guest: SyntheticGuest, shift: int, slots: dict[int, int]) -> int:
    at = guest.new("xa_node", shift=shift)
    for slot, value in slots.items():
        guest.word(at + guest.offset("xa_node", "slots") + 8 * slot, value)
    return at


def test_value_and_internal_entries_are_left_out(guest: SyntheticGuest) -> None:
    head = node_of(guest, 0, {0: 0x1000, 1: 7, 2: 2, 3: 258, 4: 0x2000}) | 2
    found = walk.xarray(guest.space, head, guest.profile.struct("xa_node"))
    assert found.owner.tolist() == [0, 4]
    assert found.address.tolist() == [0x1000, 0x2000]
    assert found.faults == ()


def test_an_xarray_of_one_entry_without_a_node(guest: SyntheticGuest) -> None:
    found = walk.xarray(guest.space, 0xFFFF_8880_0000_1000, guest.profile.struct("xa_node"))
    assert (found.address.tolist(), found.owner.tolist(), found.faults) == ([0xFFFF_8880_0000_1000], [0], ())


def test_nodes_that_lie_cost_only_themselves(guest: SyntheticGuest) -> None:
    honest = node_of(guest, 0, {5: 0x5000})
    lies = {
        "itself": node_of(guest, 0, {}),
        "absurd shift": node_of(guest, 255, {0: 0x6660}),
        "rising shift": node_of(guest, 60, {0: 0x7770}),
    }
    guest.word(lies["itself"] + guest.offset("xa_node", "slots"), lies["itself"] | 2)
    root = node_of(
        guest,
        6,
        {
            1: honest | 2,
            2: lies["itself"] | 2,
            3: lies["absurd shift"] | 2,
            4: NOWHERE | 2,
            7: lies["rising shift"] | 2,
        },
    )
    found = walk.xarray(guest.space, root | 2, guest.profile.struct("xa_node"), what="thing")
    assert dict(zip(found.owner.tolist(), found.address.tolist(), strict=True)) == {64 + 5: 0x5000}
    assert "thing: a node could not be read or makes no sense" in found.faults
    assert "thing: a node stands twice in the tree" in found.faults


@pytest.mark.parametrize("depth", [walk.XARRAY_DEPTH, walk.XARRAY_DEPTH + 1])
def test_a_chain_of_nodes_is_no_deeper_than_an_xarray(guest: SyntheticGuest, depth: int) -> None:
    root = node_of(guest, 0, {0: 0x1000})
    for shift in range(1, depth):
        root = node_of(guest, shift, {0: root | 2})
    found = walk.xarray(guest.space, root | 2, guest.profile.struct("xa_node"), what="thing")
    deep = depth > walk.XARRAY_DEPTH
    assert found.address.tolist() == ([] if deep else [0x1000])
    assert found.faults == (("thing: deeper than an xarray can be",) if deep else ())


@pytest.mark.parametrize("shift", [None, 64, 255])
def test_an_xarray_whose_root_makes_no_sense(guest: SyntheticGuest, shift: int | None) -> None:
    root = NOWHERE if shift is None else node_of(guest, shift, {0: 0x1000})
    found = walk.xarray(guest.space, root | 2, guest.profile.struct("xa_node"), what="thing")
    assert (len(found.address), len(found.owner)) == (0, 0)
    assert found.faults == ("thing: a node could not be read or makes no sense",)


def test_a_node_that_stands_twice(guest: SyntheticGuest) -> None:
    leaf = node_of(guest, 0, {1: 0x1000})
    root = node_of(guest, 6, {0: leaf | 2, 9: leaf | 2})
    found = walk.xarray(guest.space, root | 2, guest.profile.struct("xa_node"))
    assert found.owner.tolist() == [1]
    assert len(found.faults) == 1


def test_a_bomb_of_nodes_is_cut(guest: SyntheticGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 nodes that each point at all the others, with shifts that fall: every node is visited once."""
    levels = [[guest.new("xa_node", shift=6 * level) for _ in range(8)] for level in range(10, -1, -1)]
    for upper, lower in itertools.pairwise(levels):
        for node in upper:
            for slot in range(64):
                guest.word(node + guest.offset("xa_node", "slots") + 8 * slot, lower[slot % 8] | 2)
    node = guest.profile.struct("xa_node")
    found = walk.xarray(guest.space, levels[0][0] | 2, node)
    assert len(found.address) == 0
    assert found.faults
    monkeypatch.setattr(walk, "NODE_LIMIT", 64 * 4)
    assert any("cut after" in fault for fault in walk.xarray(guest.space, levels[0][0] | 2, node).faults)


def test_a_list_that_was_walked_is_read_at_once(guest: SyntheticGuest) -> None:
    head, *nodes = (guest.alloc(16) for _ in range(21))
    guest.chain(head, nodes, head)
    first = walk.serial(guest.space, head)
    guest.memory.reset()
    again = walk.serial(guest.space, head)
    assert again.address.tolist() == first.address.tolist() == nodes
    assert guest.memory.gathers + guest.memory.reads <= 5  # down the tables, and all nodes


def test_a_list_that_changed_is_walked_anew(guest: SyntheticGuest) -> None:
    head, *nodes = (guest.alloc(16) for _ in range(21))
    more = guest.alloc(16)
    guest.chain(head, nodes, head)
    walk.serial(guest.space, head)
    for changed in (nodes[1:], [*nodes, more], [*nodes[:5], more, *nodes[5:]], nodes[::-1], nodes[:9]):
        guest.chain(head, changed, head)
        found = walk.serial(guest.space, head)
        assert found.address.tolist() == changed
        assert not found.faults
    guest.chain(head, nodes, nodes[3])  # a lie, of which nothing is to be remembered
    for _ in range(2):
        found = walk.serial(guest.space, head, what="thing")
        assert found.address.tolist() == nodes
        assert found.faults
    guest.chain(head, nodes, head)
    assert len(walk.serial(guest.space, head).address) == 20
    assert len(walk.serial(guest.space, head, limit=7).address) == 7
