from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.synthetic import SyntheticGuest
from tests.synthetic.guest import HOLE, NOWHERE
from tests.synthetic.layout import Layout
from vmi_inside.errors import NoMember, PageFault, WrongProfile
from vmi_inside.profile.ctypes import CType, Member
from vmi_inside.structs import MEMBER_LIMIT, Structs, texts

LAYOUT = """
inner 16
    low 0 u32
    high 8 i64
thing 4000
    a 0 u8
    b 1 i8
    c 2 u16
    d 4 i32
    e 8 u64
    f 16 i64
    next 24 *thing
    name 32 char[16]
    flags 48 u32:3+2
    delta 48 i32:4+5
    wide 56 u64:40+24
    nested 64 inner
    array 96 inner[4]
    |anonymous 200 inner
    far 3000 u32
    farther 3600 u16
"""
WIDTHS = {
    "a": (0, 1, False),
    "b": (1, 1, True),
    "c": (2, 2, False),
    "d": (4, 4, True),
    "e": (8, 8, False),
    "f": (16, 8, True),
}


@pytest.fixture
def guest() -> SyntheticGuest:
    guest = SyntheticGuest(scattered=True)
    guest.profile.layout.structs.update(Layout(LAYOUT).structs)
    return guest


def things(guest: SyntheticGuest, *address: int) -> Structs:
    return Structs(guest.space, guest.profile.struct("thing"), np.array(address, dtype=np.uint64))


def test_numbers_and_texts_are_what_the_types_say(guest: SyntheticGuest) -> None:
    """Types of modules come out of the guest, and may say anything."""
    rows = things(guest, guest.new("thing"))
    for read in (rows.number, rows.unsigned, rows.pointer):
        with pytest.raises(WrongProfile, match="name is no number"):
            read("name")
    with pytest.raises(WrongProfile, match="e is no text"):
        rows.text("e")


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.lists(st.sampled_from([*WIDTHS, "far", "nested.high", "array[3].low", "next", "name"]), min_size=1),
)
def test_fetch_equals_reading_each_member(seed: int, members: list[str]) -> None:
    guest = SyntheticGuest(scattered=True)
    guest.profile.layout.structs.update(Layout(LAYOUT).structs)
    rnd = random.Random(seed)
    raw = [rnd.randbytes(4000) for _ in range(9)]
    at = [guest.alloc(4000, "thing") for _ in raw]
    for address, data in zip(at, raw, strict=True):
        guest.write(address, data)
    rows = things(guest, *at).fetch(*members)
    assert not rows.fault.any()
    for name in members:
        member = rows.type.member(name)
        for cell, data in zip(rows[name], raw, strict=True):
            want = data[member.offset : member.offset + member.size]
            if member.type.kind in ("int", "pointer"):
                assert int(cell) == int.from_bytes(want, "little", signed=member.type.signed)
            else:
                assert cell.tobytes() == want


def test_bit_fields(guest: SyntheticGuest) -> None:
    at = guest.alloc(4000)
    guest.write(at + 48, (0b101 << 2 | 0b1000 << 5 | 0xFFFF_FE03 & ~0x1FC).to_bytes(4, "little"))
    guest.word(at + 56, 0xAB_CDEF_0123 << 24 | 0xFFFFFF)
    rows = things(guest, at).fetch("flags", "delta", "wide")
    assert rows.number("flags").tolist() == [0b101]
    assert rows.number("delta").tolist() == [-8]
    assert rows.unsigned("wide").tolist() == [0xAB_CDEF_0123]


@pytest.mark.parametrize(("size", "signed"), [(1, False), (1, True), (2, True), (4, True), (4, False), (8, True)])
@pytest.mark.parametrize("kind", ["int", "enum"])
def test_integers_and_enums_of_all_sizes(guest: SyntheticGuest, kind: Any, size: int, signed: bool) -> None:
    member = Member("it", 3, size, CType(kind, "it", size, signed=signed))
    ctype = CType("struct", "holder", 16, members=lambda: {"it": member})
    at = guest.alloc(16)
    guest.write(at + 3, b"\xfe" + b"\xff" * (size - 1))
    rows = Structs(guest.space, ctype, np.array([at], dtype=np.uint64)).fetch("it")
    assert rows["it"].tolist() == [-2 if signed else (1 << 8 * size) - 2]


def test_dtypes(guest: SyntheticGuest) -> None:
    rows = things(guest, guest.alloc(4000)).fetch("b", "c", "d", "next", "name")
    assert [rows[name].dtype.str for name in ("b", "c", "d", "next")] == ["|i1", "<u2", "<i4", "<u8"]
    assert rows["name"].shape == (1, 16)
    assert rows.number("c").dtype == np.int64
    assert rows.pointer("next").dtype == np.uint64


def test_nobody_is_not_read_and_no_fault(guest: SyntheticGuest) -> None:
    good = guest.alloc(4000)
    guest.put("thing", good, d=-7, name=b"yes")
    rows = things(guest, 0, good, NOWHERE, HOLE, 0).fetch("d", "name")
    assert rows.fault.tolist() == [False, False, True, True, False]
    assert rows.number("d").tolist() == [0, -7, 0, 0, 0]
    assert rows.text("name") == ["", "yes", "", "", ""]
    guest.memory.reset()
    assert things(guest, 0, 0).number("d").tolist() == [0, 0]
    assert guest.memory.gathers == 0


def test_near_members_are_one_reading_and_far_ones_not(guest: SyntheticGuest) -> None:
    at = [guest.alloc(4000, "thing") for _ in range(50)]
    guest.memory.reset()
    with guest.space.operation():
        things(guest, *at).fetch("a", "e", "name", "nested.high")
        near = guest.memory.gathers + guest.memory.reads
        guest.memory.reset()
        rows = things(guest, *at).fetch("a", "name")
        assert guest.memory.gathers + guest.memory.reads <= 2 < near
        guest.memory.reset()
        rows.fetch("name", "a")
        rows.number("a")
        assert guest.memory.gathers == 0, "what is there is not read again"
        rows.fetch("a", "far", "farther")
        assert guest.memory.gathers >= 2


@pytest.mark.parametrize(
    ("members", "readings"),
    [(("nested.high", "low"), 1), (("low", "nested.high", "a"), 1), (("far", "low", "nested.high"), 2),
     (("a", "far", "farther"), 3)],
)  # fmt: skip
def test_how_many_readings_members_take(guest: SyntheticGuest, members: tuple[str, ...], readings: int) -> None:
    page = guest.alloc(8192) + 4095 & -4096
    guest.memory.reset()
    things(guest, page).fetch(*members)
    assert guest.memory.gathers == readings


def test_the_first_alternative_that_is_there_counts(guest: SyntheticGuest) -> None:
    at = guest.alloc(4000)
    guest.put("thing", at, d=5)
    rows = things(guest, at)
    assert rows.number(("renamed", "d")).tolist() == [5]
    assert rows["renamed"].tolist() == [5]
    assert rows.has("nothing", "d")
    assert not rows.has("nothing")
    guest.memory.reset()
    with pytest.raises(NoMember, match="struct thing has no member 'x or y'"):
        rows.fetch("a", ("x", "y"))
    assert guest.memory.gathers == 0


def test_following_and_embedding(guest: SyntheticGuest) -> None:
    one, two = guest.alloc(4000), guest.alloc(4000)
    guest.put("thing", one, next=two, nested__high=-1)
    guest.put("thing", two, d=2, low=9)
    rows = things(guest, one, two)
    following = rows.follow("next")
    assert following.type.name == "thing"
    assert following.address.tolist() == [two, 0]
    assert following.number("d").tolist() == [2, 0]
    assert rows.inside("nested").number("high").tolist() == [-1, 0]
    assert rows.number("low").tolist() == [0, 9], "through an anonymous struct"
    assert things(guest, one, 0).at("far").tolist() == [one + 3000, 0]
    inner = things(guest, one, 0).inside("array[2]")
    assert inner.address.tolist() == [one + 128, 0]
    back = inner.holder(guest.profile.struct("thing"), "array[2]")
    assert back.address.tolist() == [one, 0]


def test_selecting_keeps_columns_and_faults(guest: SyntheticGuest) -> None:
    at = [guest.alloc(4000, "thing") for _ in range(3)]
    for index, address in enumerate(at):
        guest.put("thing", address, d=index)
    rows = things(guest, *at, NOWHERE).fetch("d")
    some = rows.select(np.array([3, 1]))
    assert some["d"].tolist() == [0, 1]
    assert some.fault.tolist() == [True, False]
    assert some.address.tolist() == [NOWHERE, at[1]]
    assert (some.fetched("d"), some.fetched("e")) == (True, False)
    assert rows.select(rows["d"] > 0)["d"].tolist() == [1, 2]
    some.fault[:] = True
    assert rows.fault.tolist() == [False, False, False, True]


def test_a_member_of_absurd_size_is_cut(guest: SyntheticGuest) -> None:
    size = 1 << 40
    lie = CType("array", size=size, count=size)
    ctype = CType("struct", "lie", size, members=lambda: {"huge": Member("huge", 0, size, lie)})
    rows = Structs(guest.space, ctype, np.array([guest.alloc(64)], dtype=np.uint64)).fetch("huge")
    assert rows["huge"].shape == (1, MEMBER_LIMIT)


@given(st.lists(st.binary(min_size=8, max_size=8), max_size=20))
def test_texts_end_at_the_first_nul(raw: list[bytes]) -> None:
    cells = np.frombuffer(b"".join(raw), np.uint8).reshape(-1, 8)
    assert texts(cells) == [cell.split(b"\0", 1)[0].decode("utf-8", "backslashreplace") for cell in raw]
    assert texts(np.empty((3, 0), np.uint8)) == ["", "", ""]


# -- strings and globals, the kernel's short ways ----------------------------------------------------------------------


def test_strings(guest: SyntheticGuest) -> None:
    words = ["", "x", "größer", "y" * 63, "z" * 64, "w" * 200, "v" * 300]
    at = [guest.string(word) for word in words]
    found, ok = guest.kernel.strings(np.array([*at, 0, NOWHERE], dtype=np.uint64))
    assert found == [*words[:-1], "v" * 256, "", ""]
    assert ok.tolist() == [True] * 8 + [False]


def test_a_string_that_runs_into_nowhere(guest: SyntheticGuest) -> None:
    at = guest.alloc(1 << 15, "alone")
    guest.write(at + 4096 - 10, b"A" * 10)
    guest.write(at + 8192 - 10, b"A" * 9 + b"\0")
    guest.unmap(at + 4096)
    guest.unmap(at + 8192)
    found, ok = guest.kernel.strings(np.array([at + 4096 - 10, at + 8192 - 10], dtype=np.uint64))
    assert (found[0], ok.tolist()) == ("A" * 10, [False, False])
    guest.write(at + 4 * 4096 - 10, b"A" * 9 + b"\0")
    assert guest.kernel.strings(np.array([at + 4 * 4096 - 10], dtype=np.uint64))[0] == ["A" * 9]


def test_cpus_that_lie_are_limited(guest: SyntheticGuest) -> None:
    assert guest.kernel.cpus == 1
    guest.write(guest.global_("nr_cpu_ids", 4), b"\xff" * 4)
    guest.kernel.__dict__.pop("cpus")
    assert guest.kernel.cpus == 8192


def test_globals(guest: SyntheticGuest) -> None:
    at = guest.global_("thing_table", 8)
    guest.word(at, 0x1234)
    assert guest.kernel.pointer("nothing", "thing_table") == 0x1234
    assert guest.kernel.number(1, "thing_table") == 0x34
    assert guest.kernel.object("thing", "thing_table").address.tolist() == [at]
    guest.profile.symbols["lost"] = NOWHERE
    with pytest.raises(PageFault):
        guest.kernel.pointer("lost")
    assert guest.kernel.find_struct("nothing") is None
