"""The walker of xarrays with all that they hold, over random arrays, and over arrays that lie."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.synthetic.cache import CacheGuest
from tests.synthetic.guest import NOWHERE, SyntheticGuest
from vmi_inside import xarray
from vmi_inside.profile.ctypes import CType

POINTER = 0xFFFF_8880_0000_0000
ARRAYS = st.lists(
    st.dictionaries(
        st.one_of(st.integers(0, 200), st.integers(0, (1 << 30) - 1)), st.integers(1, 1 << 40), max_size=30
    ),
    max_size=4,
)  # fmt: skip


@pytest.fixture
def guest() -> CacheGuest:
    return CacheGuest()


def heads(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def node_of(guest: SyntheticGuest, shift: int, slots: dict[int, int], marks: dict[int, int] | None = None) -> int:
    at = guest.new("xa_node", shift=shift)
    for slot, value in slots.items():
        guest.word(at + 40 + 8 * slot, value)
    for kind, bits in (marks or {}).items():
        guest.word(at + 552 + 8 * kind, bits)
    return at | 2


@settings(deadline=None, max_examples=40)
@given(ARRAYS)
def test_all_that_was_stored_in_several_arrays(arrays: list[dict[int, int]]) -> None:
    guest = CacheGuest(scattered=True)
    # Every third one is a value, as shadows and swap entries are.
    stored = [
        {index: value << 1 | 1 if value % 3 == 0 else POINTER + 8 * value for index, value in each.items()}
        for each in arrays
    ]
    guest.memory.reset()
    roots = heads(*(guest.xarray(each) for each in stored))
    with guest.space.operation():
        found = xarray.entries(guest.space, roots, guest.profile.struct("xa_node"))
    assert found.faults == ()
    assert found.whole.all()
    assert (found.count == 1).all()
    for row, each in enumerate(stored):
        mine = found.owner == row
        assert found.index[mine].tolist() == sorted(each)
        assert dict(zip(found.index[mine].tolist(), found.entry[mine].tolist(), strict=True)) == each
    assert found.value.tolist() == [bool(entry & 1) for entry in found.entry.tolist()]


def test_entries_for_several_indices_and_marks(guest: CacheGuest) -> None:
    # A large page of four at index 8, one of 64 beside: in the node above, without siblings.
    sibling = 8 << 2 | 2
    low = node_of(guest, 0, {0: 0x1000, 8: 0x2000, 9: sibling, 10: sibling, 11: sibling, 12: 0x3000}, {0: 1 << 8 | 1})
    root = node_of(guest, 6, {0: low, 2: 0x4000, 3: 2 << 2 | 2}, {0: 1, 2: 1 << 2})
    found = xarray.entries(guest.space, heads(root), guest.profile.struct("xa_node"))
    rows = list(
        zip(*(each.tolist() for each in (found.index, found.count, found.entry, found.marks)), strict=True)
    )  # fmt: skip
    assert rows == [(0, 1, 0x1000, 1), (8, 4, 0x2000, 1), (12, 1, 0x3000, 0), (128, 128, 0x4000, 4)]
    assert found.faults == ()


def test_arrays_of_one_entry_and_of_none(guest: CacheGuest) -> None:
    found = xarray.entries(guest.space, heads(0, POINTER, 7, 0x402, 2), guest.profile.struct("xa_node"))
    assert (found.owner.tolist(), found.entry.tolist()) == ([1, 2], [POINTER, 7])
    assert found.whole.all()


def test_nodes_that_lie_cost_only_themselves(guest: CacheGuest) -> None:
    honest = node_of(guest, 0, {5: 0x5000})
    itself = node_of(guest, 0, {})
    guest.word((itself & ~3) + 40, itself)
    bad = node_of(
        guest, 6, {1: honest, 2: itself, 3: node_of(guest, 255, {0: 0x6660}), 4: NOWHERE | 2,
                   7: node_of(guest, 60, {0: 0x7770}), 8: honest},
    )  # fmt: skip
    good = node_of(guest, 6, {1: node_of(guest, 0, {1: 0x1110})})
    found = xarray.entries(guest.space, heads(bad, good), guest.profile.struct("xa_node"), what="thing")
    assert list(zip(found.owner.tolist(), found.index.tolist(), found.entry.tolist(), strict=True)) == [
        (0, 69, 0x5000), (1, 65, 0x1110),
    ]  # fmt: skip
    assert found.whole.tolist() == [False, True]
    assert set(found.faults) == {
        "thing: a node could not be read or makes no sense", "thing: a node stands twice in the trees",
    }  # fmt: skip


def test_a_node_that_stands_twice_in_one_array(guest: CacheGuest) -> None:
    """On different levels, too: each time with a shift that falls."""
    leaf = node_of(guest, 0, {3: 0x3000})
    root = node_of(guest, 12, {0: node_of(guest, 6, {1: leaf}), 5: leaf})
    found = xarray.entries(guest.space, heads(root), guest.profile.struct("xa_node"))
    assert found.index.tolist() == [(5 << 12) + 3]
    assert (found.whole.tolist(), found.faults) == ([False], ("xarray: a node stands twice in the trees",))


@pytest.mark.parametrize("depth", [xarray.DEPTH_LIMIT, xarray.DEPTH_LIMIT + 1])
def test_a_chain_of_nodes_is_no_deeper_than_an_array(guest: CacheGuest, depth: int) -> None:
    root = node_of(guest, 0, {0: 0x1000})
    for shift in range(1, depth):
        root = node_of(guest, shift, {0: root})
    found = xarray.entries(guest.space, heads(root), guest.profile.struct("xa_node"))
    deep = depth > xarray.DEPTH_LIMIT
    assert found.entry.tolist() == ([] if deep else [0x1000])
    assert found.whole.tolist() == [not deep]
    assert found.faults == (("xarray: deeper than an xarray can be",) if deep else ())


def test_nodes_without_marks(guest: CacheGuest) -> None:
    known = guest.profile.struct("xa_node")
    plain = CType(
        "struct", "xa_node", known.size, members=lambda: {name: known.member(name) for name in ("shift", "slots")}
    )
    found = xarray.entries(guest.space, heads(node_of(guest, 0, {0: 0x1200, 9: 0x2200}, {0: 1})), plain)
    assert (found.entry.tolist(), found.marks.tolist()) == ([0x1200, 0x2200], [0, 0])


def test_a_bomb_of_nodes_ends(guest: CacheGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [[guest.new("xa_node", shift=6 * level) for _ in range(8)] for level in range(10, -1, -1)]
    for upper, lower in itertools.pairwise(levels):
        for node in upper:
            for slot in range(64):
                guest.word(node + 40 + 8 * slot, lower[slot % 8] | 2)
    for slot in range(64):
        guest.word(levels[-1][0] + 40 + 8 * slot, 0x1000)
    node = guest.profile.struct("xa_node")
    found = xarray.entries(guest.space, heads(levels[0][0] | 2), node)
    assert len(found.entry) == 64
    assert not found.whole.all()
    monkeypatch.setattr(xarray, "ENTRY_LIMIT", 10)
    wide = node_of(guest, 6, {slot: node_of(guest, 0, dict.fromkeys(range(64), 0x1000)) for slot in range(8)})
    monkeypatch.setattr(xarray, "_BATCH", 2)
    cut = xarray.entries(guest.space, heads(wide), node)
    assert len(cut.entry) < 300
    assert any("cut after" in fault for fault in cut.faults)
