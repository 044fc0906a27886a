from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmi_inside.space
from tests.synthetic import CountingMemory, PageTables, Ram
from vmi_inside import ragged
from vmi_inside.arch.paging import BY_LEVELS
from vmi_inside.errors import NoMemory, PageFault
from vmi_inside.space import AddressSpace, _Known
from vmi_inside.types import U8, U64, Mask

RUNS = ((0, 1 << 19), (1 << 32, 1 << 19))
SIZES = {1: 1 << 12, 2: 1 << 21, 3: 1 << 30}
#: Corners from which random pages are taken, so that they come to lie side by side.
BASES = (0, 0x5555_0000_0000, 0x7FFF_FFFF_0000, 0xFFFF_8880_0000_0000, 0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_FFE0_0000)


#: What entries of a paravirtual guest's tables differ by from those of any other.
MACHINE = 0x0000_5A50_0000_0000


class MachineTables(PageTables):
    """Tables as a paravirtual guest has them: their entries hold the machine's addresses."""

    def _entry(self, table: int, va: int, level: int, entry: int) -> None:
        super()._entry(table, va, level, entry ^ MACHINE)


class ParavirtualMemory(CountingMemory):
    """The memory of such a guest."""

    def entries(self, entry: U64) -> U64:
        return entry ^ np.uint64(MACHINE)


class World:
    """Random tables of both kinds of leaf, with lies among them, and the space that reads them."""

    def __init__(self, seed: int, levels: int, paravirtual: bool = False) -> None:
        rnd = random.Random(seed)
        self.ram = Ram(*RUNS, seed=seed)
        for array in self.ram.arrays:
            array[:] = np.frombuffer(rnd.randbytes(len(array)), np.uint8)
            array[: 1 << 18] = 0  # half of it is fit for tables
        self.ram._blocks = [at for at in self.ram._blocks if at & 0x7FFFF < 1 << 18]
        kind = MachineTables if paravirtual else PageTables
        self.tables = [kind(self.ram, levels) for _ in range(2)]
        self.corners = [
            *BASES,
            1 << 46,
            1 << 47,
            -(1 << 47) - 4096 & (1 << 64) - 1,
            -(1 << 56) & (1 << 64) - 1,
            1 << 56,
        ]
        if levels == 5:
            self.corners += [0x00AB_CDEF_1234_5000]
        self.pages: list[int] = []
        for _ in range(rnd.randint(1, 25)):
            tables, level = rnd.choice(self.tables), rnd.choice((1, 1, 1, 2, 3))
            va = rnd.choice(self.corners) + rnd.randrange(6) * SIZES[level]
            va = va & (1 << 64) - 1 & -SIZES[level]
            lie = rnd.random()
            frame = rnd.choice(RUNS)[0] + rnd.randrange(1 << 19) & ~4095
            if lie < 0.7:
                tables.map(va, frame & -SIZES[level] if rnd.random() < 0.8 else frame, level)
            elif lie < 0.8:
                tables.put(va, rnd.randint(1, levels), rnd.getrandbits(64))
            elif lie < 0.9:
                tables.put(va, rnd.randint(1, levels), tables.root | 1)  # a table that is its own
            else:
                tables.put(va, rnd.randint(1, levels), 0xDEAD_BEEF_F000 | 1)  # where there is no RAM
            self.pages.append(va)
        self.memory = (ParavirtualMemory if paravirtual else CountingMemory)(self.ram.memory)
        self.space = AddressSpace(self.memory, BY_LEVELS[levels], self.tables[0].root)
        self.other = self.space.with_root(self.tables[1].root)

    def addresses(self, rnd: random.Random, count: int) -> U64:
        near = [page + rnd.choice((-1, 0, 1, rnd.randrange(1 << rnd.choice((12, 21, 30))))) for page in self.pages]
        near += [rnd.getrandbits(64) for _ in range(3)] + [c + rnd.randrange(-2, 3) * 4096 for c in self.corners]
        return np.array([rnd.choice(near) & (1 << 64) - 1 for _ in range(count)], dtype=np.uint64)


def one(space: AddressSpace, va: int) -> int | None:
    try:
        return space.translate_one(va)
    except PageFault:
        return None


def piecewise(space: AddressSpace, va: int, size: int) -> list[int] | None:
    """What a range holds, none of its pieces within a page longer than 64 bytes."""
    held: list[int] = []
    while len(held) < size:
        at = va + len(held) & (1 << 64) - 1
        try:
            held += space.read(at, min(size - len(held), 64, 4096 - at % 4096))
        except (PageFault, NoMemory):
            return None
    return held


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from((4, 5)), st.sampled_from((0, 48)))
def test_batch_and_integer_walks_agree(seed: int, levels: int, few: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vmi_inside.space, "_FEW", few)  # side by side, or one by one
        agree(seed, levels)


def agree(seed: int, levels: int) -> None:
    world = World(seed, levels)
    rnd = random.Random(seed)
    va = world.addresses(rnd, 60)
    expected = [one(world.space, address) for address in va.tolist()]

    def check(pa: U64, ok: np.ndarray) -> None:
        assert [a if fine else None for a, fine in zip(pa.tolist(), ok.tolist(), strict=True)] == expected
        assert not pa[~ok].any()

    check(*world.space.translate(va))
    alone = [world.space.translate(va[row : row + 1]) for row in range(len(va))]  # one is not walked as many are
    assert all(pa.shape == ok.shape == (1,) for pa, ok in alone)
    check(np.concatenate([pa for pa, _ in alone]), np.concatenate([ok for _, ok in alone]))
    with world.space.operation():  # remembered translations say the same as fresh ones
        world.space.translate(va[:20])
        world.space.translate(world.addresses(rnd, 30))
        check(*world.space.translate(va))
        check(*world.space.translate(va))
    mine = np.array([rnd.random() < 0.5 for _ in va])
    roots = np.where(mine, np.uint64(world.space.root), np.uint64(world.other.root))
    expected = [one(world.space if own else world.other, a) for own, a in zip(mine.tolist(), va.tolist(), strict=True)]
    check(*world.space.translate(va, roots))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from((4, 5)), st.sampled_from((0, 48)))
def test_tables_of_machine_frames_say_the_same(seed: int, levels: int, few: int) -> None:
    """A paravirtual guest's addresses are translated as any other's, whichever way its tables are walked."""
    told = []
    assert World(seed, levels).space.entry(1 << 50) == 0, "what cannot be read maps nothing"
    for paravirtual in (False, True):
        world = World(seed, levels, paravirtual)
        space, other = world.space, world.other
        va = world.addresses(random.Random(seed), 40)
        roots = np.where(np.arange(40) % 2 == 0, np.uint64(space.root), np.uint64(other.root))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vmi_inside.space, "_FEW", few)
            answers = [space.translate(va), space.translate(va, roots), other.translate(va)]
            answers.append(space.over(world.memory).translate(va, roots))
            for _ in range(2):
                with space.operation():
                    answers += [space.translate(va[:1]), space.translate(va)]
        singly = [(one(space, at), one(other, at)) for at in va.tolist()]
        # What a range holds may be a table itself: only what can be read is the same.
        read = [at if isinstance(at, tuple) else len(at) for at in (whole(space, at, 20_000) for at in va.tolist())]
        entries, ok = space.tables(np.array([space.root, 1 << 50], dtype=np.uint64))
        assert ok.tolist() == [True, False]
        assert entries[0].tolist() == [space.entry(space.root + 8 * index) for index in range(512)]
        root = [entry for entry in entries[0].tolist() if entry & 1]
        told.append(([[part.tolist() for part in answer] for answer in answers], singly, read, root))
    assert told[0] == told[1]


def whole(space: AddressSpace, va: int, size: int) -> bytes | tuple[type, int]:
    """What is read of a range at once; where it failed, where: of a virtual address its page."""
    try:
        return space.read(va, size)
    except PageFault as fault:
        return PageFault, fault.va & ~4095
    except NoMemory as fault:
        return NoMemory, fault.pa & ~4095


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from((4, 5)), st.integers(0, 60_000))
def test_reading_at_once_equals_reading_piece_by_piece(seed: int, levels: int, size: int) -> None:
    """Also where it fails: at the first page that is not mapped, or whose memory cannot be read."""
    world = World(seed, levels)
    for va in world.addresses(random.Random(seed), 12).tolist():
        held = piecewise(world.space, va, size)
        found = whole(world.space, va, size)
        if held is not None:
            assert found == bytes(held)
        else:
            assert isinstance(found, tuple)
            if found[0] is PageFault:
                assert one(world.space, found[1]) is None
                assert (found[1] - va & (1 << 64) - 1) < size or found[1] == va & ~4095


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from((4, 5)), st.sampled_from((1, 2, 8, 64, 576, 4096, 4097, 9000)))
def test_gather_equals_reading_piece_by_piece(seed: int, levels: int, width: int) -> None:
    world = World(seed, levels)
    rnd = random.Random(seed)
    va = world.addresses(rnd, 3 if width > 1000 else 12)
    mine = np.array([rnd.random() < 0.5 for _ in va])
    roots = np.where(mine, np.uint64(world.space.root), np.uint64(world.other.root))
    for given_roots in (None, roots):
        rows, ok = world.space.gather(va, width, given_roots)
        assert rows.shape == (len(va), width)
        for row, fine, address, own in zip(rows, ok.tolist(), va.tolist(), mine.tolist(), strict=True):
            space = world.space if given_roots is None or own else world.other
            cells = piecewise(space, address, width)
            assert fine == (cells is not None)
            assert row.tolist() == (cells or [0] * width), "an unreadable row is zero"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from((4, 5)), st.sampled_from((1, 8, 64, 576, 4096, 9000)))
def test_flat_memory_is_read_as_any_other(seed: int, levels: int, width: int) -> None:
    world = World(seed, levels)
    rnd = random.Random(seed)
    flat = world.space.over(world.ram.memory)
    assert flat.memory.flat  # type: ignore[attr-defined]  # rows that cross pages are read in one piece
    with world.space.operation(), flat.operation():
        for count in (12, 12, 1, 3):
            va = world.addresses(rnd, count)
            if rnd.random() < 0.7:  # mostly what is mapped, and close together
                near = np.array(
                    [rnd.choice(world.pages) + rnd.randrange(1 << 13) & (1 << 64) - 1 for _ in va], np.uint64
                )
                va = near
            rows, ok = world.space.gather(va, width)
            for _ in range(2):  # with tables that were not read yet, and with those that were
                other, fine = flat.gather(va, width)
                assert fine.tolist() == ok.tolist()
                assert np.array_equal(other, rows)


def test_rows_that_cross_pages_of_one_range_are_one_reading() -> None:
    ram = Ram()
    tables, base = PageTables(ram), 0xFFFF_8880_0000_0000
    tables.map(base, 0, 2)
    ram.write(0x1FF8, bytes(range(16)))
    memory = CountingMemory(ram.memory)

    class Flat(CountingMemory):
        flat = True

        def gather(self, pa: U64, out: U8) -> Mask:
            self.gathers += 1
            return self.memory.gather(pa, out)

    for kind, gathers in ((memory, 2), (Flat(ram.memory), 1)):
        space = AddressSpace(kind, BY_LEVELS[4], tables.root)
        va = np.array([base + 0x1FF8, base + 0x4000, base + 0x5FF9], dtype=np.uint64)
        with space.operation():
            space.translate(va)
            kind.reset()
            rows, ok = space.gather(va, 16)
            assert kind.gathers == gathers
        assert ok.all()
        assert rows[0].tolist() == list(range(16))


def test_small_gaps_in_a_range_are_looked_into_once() -> None:
    # The direct map is of large pages, but for some parts that are split into small ones.
    ram, size = Ram(), SIZES[2]
    tables, base = PageTables(ram), 0xFFFF_8880_0000_0000
    for part in (0, 2, 4):
        tables.map(base + part * size, part * size, 2)
    for part in (1, 3):
        for page in range(512):
            tables.map(base + part * size + page * 4096, part * size + page * 4096)
    memory = CountingMemory(ram.memory)
    space = AddressSpace(memory, BY_LEVELS[4], tables.root)
    ends = np.array([base, base + 2 * size, base + 4 * size], dtype=np.uint64)
    within = np.arange(base, base + 5 * size, 4096 * 77, dtype=np.uint64)
    for asked, most in ((ends, 10), (ends, 1 + 2 * 4), (within, 1), (within, 1)):
        memory.reset()
        with space.operation():
            pa, ok = space.translate(asked)
        assert ok.all()
        assert np.array_equal(pa, asked - np.uint64(base))
        assert memory.gathers + memory.reads <= most


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(st.integers(0, 9000), min_size=1, max_size=8))
def test_ragged_equals_reading_one_by_one(seed: int, sizes: list[int]) -> None:
    world = World(seed, 4)
    va = world.addresses(random.Random(seed), len(sizes))
    va &= np.uint64(~7 & (1 << 64) - 1)
    got = ragged.gather(world.space, va, np.array(sizes, dtype=np.int64))
    for index, (address, size) in enumerate(zip(va.tolist(), sizes, strict=True)):
        try:
            whole = world.space.read(address, size)
        except (PageFault, NoMemory):
            assert not got.ok[index]
        else:
            # Neighbouring bytes come along; they are in the same page, and cannot make the row fail.
            assert got.ok[index]
            assert got.row(index) == got.rows()[index] == whole


def linear(
    ram: Ram, pages: int, levels: int = 4, missing: tuple[int, ...] = ()
) -> tuple[AddressSpace, CountingMemory, int]:
    tables, base = PageTables(ram, levels), 0xFFFF_C900_0000_0000
    for index in range(pages):
        if index not in missing:
            frame = ram.frames()
            ram.write(frame, bytes([index % 251 + 1]) * 4096)
            tables.map(base + 4096 * index, frame)
    memory = CountingMemory(ram.memory)
    return AddressSpace(memory, BY_LEVELS[levels], tables.root), memory, base


def test_a_row_across_two_scattered_pages() -> None:
    space, _, base = linear(Ram(*RUNS), 4, missing=(3,))
    rows, ok = space.gather(np.array([base + 4090, base + 100, base + 3 * 4096 - 4], dtype=np.uint64), 10)
    assert rows.tolist() == [[1] * 6 + [2] * 4, [1] * 10, [0] * 10]
    assert ok.tolist() == [True, True, False]


def test_a_row_wider_than_a_page() -> None:
    space, _, base = linear(Ram(*RUNS), 6, missing=(5,))
    rows, ok = space.gather(np.array([base + 4095, base + 3 * 4096 + 5], dtype=np.uint64), 2 * 4096 + 2)
    assert ok.tolist() == [True, False]
    assert rows[0].tolist() == [1] + [2] * 4096 + [3] * 4096 + [4]
    assert not rows[1].any()


def test_the_last_row_does_not_wrap_around() -> None:
    ram = Ram(*RUNS)
    tables = PageTables(ram)
    for va in (0, 0xFFFF_FFFF_FFFF_F000):
        tables.map(va, ram.frames())
    space = AddressSpace(ram.memory, BY_LEVELS[4], tables.root)
    top = np.array([0xFFFF_FFFF_FFFF_FFF8], dtype=np.uint64)
    assert space.gather(top, 8)[1].tolist() == [True]
    assert space.gather(np.array([0xFFFF_FFFF_FFFF_FFF9], dtype=np.uint64), 7)[1].tolist() == [True]


@pytest.mark.parametrize("levels", [4, 5])
def test_rounds_do_not_grow_with_rows(levels: int) -> None:
    space, memory, base = linear(Ram(*RUNS), 100, levels)
    few = np.uint64(base) + 4096 * np.arange(2, dtype=np.uint64)
    many = np.uint64(base) + 4 * np.arange(100 * 1024, dtype=np.uint64)
    space.gather(few, 4)
    assert memory.gathers + memory.reads == levels + 1
    memory.reset()
    space.gather(many, 4)
    assert memory.gathers + memory.reads == levels + 1  # a table is read whole, and tells of all its pages


@pytest.mark.parametrize(
    ("begin", "size"), [(0, 600 * 4096), (4000, 600 * 4096 - 4000), (4095, 700 * 4096), (4096, 8192)]
)
def test_a_range_is_read_in_as_few_pieces_as_it_lies_in(begin: int, size: int) -> None:
    """Of small pages a table is read once for all that it has of the range, and pages that lie side by side at once."""
    ram = Ram((0, 8 << 20))
    tables, base = PageTables(ram), 0xFFFF_C900_0010_0000  # 256 pages before the end of a table
    data = random.Random(1).randbytes(1024 * 4096)
    ram.write(4 << 20, data)
    for index in range(1024):
        tables.map(base + 4096 * index, (4 << 20) + 4096 * (index if index < 300 else 1323 - index))
    memory = CountingMemory(ram.memory)
    space = AddressSpace(memory, BY_LEVELS[4], tables.root)
    mirrored = data[: 300 * 4096] + b"".join(data[at : at + 4096] for at in range(1023 * 4096, 299 * 4096, -4096))
    assert space.read(base + begin, size) == mirrored[begin : begin + size]
    last = (begin + size - 1) // 4096
    walks = 2 if last >= 256 else 1
    assert memory.reads == walks * 5 + walks + max(0, last - 299)


def test_a_page_that_is_missing_is_named() -> None:
    space, _, base = linear(Ram(*RUNS), 40, missing=(7, 20))
    for begin, page in ((0, 7), (4095, 7), (8 * 4096 + 1, 20), (7 * 4096 + 5, 7)):
        with pytest.raises(PageFault) as fault:
            space.read(base + begin, 30 * 4096)
        assert (fault.value.va & ~4095, fault.value.level) == (base + page * 4096, 1)


def test_a_number_is_little_endian() -> None:
    ram = Ram(*RUNS)
    tables, frame = PageTables(ram), ram.frames()
    tables.map(0x1000, frame)
    ram.write(frame + 16, bytes(range(1, 9)))
    assert AddressSpace(ram.memory, BY_LEVELS[4], tables.root).read_u64(0x1010) == 0x0807_0605_0403_0201


def test_another_copy_of_the_memory_is_read_through_the_same_tables() -> None:
    first, second = Ram(*RUNS), Ram(*RUNS)
    spaces = [linear(ram, 2) for ram in (first, second)]
    second.write(spaces[1][0].translate_one(spaces[1][2]), b"other")
    other = spaces[0][0].over(second.memory)
    assert other.root == spaces[0][0].root
    assert other.read(spaces[0][2], 5) == b"other"
    assert spaces[0][0].read(spaces[0][2], 5) == b"\x01" * 5


class Held(CountingMemory):
    """Memory whose pieces stay mapped as long as one holds it."""

    depth = most = 0

    @contextmanager
    def hold(self) -> Iterator[None]:
        self.depth += 1
        self.most = max(self.most, self.depth)
        yield
        self.depth -= 1


def test_memory_is_held_for_as_long_as_an_operation_lasts() -> None:
    space, memory, base = linear(Ram(*RUNS), 1)
    held = Held(memory)
    space = space.over(held)
    with space.operation():
        assert held.depth == 1
        space.read(base, 1)
    assert (held.depth, held.most) == (0, 1)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6), st.integers(0, 2)), max_size=8), max_size=6),
    st.integers(0, 1),
)
def test_ranges_that_are_remembered(batches: list[list[tuple[int, int, int]]], base: int) -> None:
    """The last one that begins at or before an address counts, as it was told last; joining changes no answer."""
    known, want = _Known(), {0: (0, 0)}
    for batch in batches:
        batch.sort(key=lambda one: one[0])
        start, size, number = (np.array([part[at] for part in batch], dtype=np.uint64) for at in range(3))
        known.add(start + np.uint64(base), size, number)
        want |= {one[0] + base: one[1:] for one in reversed(batch)}
    va = np.arange(60, dtype=np.uint64)
    expected = []
    for address in range(60):
        at = max(start for start in want if start <= address)
        expected.append(want[at][1] if address < at + want[at][0] else None)
    for _ in range(2):
        number, hit = known.find(va)
        assert [n if fine else None for n, fine in zip(number.tolist(), hit.tolist(), strict=True)] == expected
        known.join()
    ends = known.start + known.size
    assert not ((ends[:-1] == known.start[1:]) & (known.number[:-1] == known.number[1:])).any()


@pytest.mark.parametrize(("limit", "rounds"), [(4, 2), (3, 5)])
def test_of_too_many_tables_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, limit: int, rounds: int) -> None:
    monkeypatch.setattr(vmi_inside.space, "_KEPT_LIMIT", limit)
    space, memory, base = linear(Ram(*RUNS), 100)
    pages = np.uint64(base) + 4096 * np.arange(100, dtype=np.uint64)
    for want in (5, rounds):
        memory.reset()
        with space.operation():
            assert space.gather(pages, 8)[1].all()
        assert memory.gathers + memory.reads == want


@pytest.mark.parametrize(("limit", "rounds"), [(10_000, 1), (20, 5)])
def test_of_too_many_translations_none_is_kept(monkeypatch: pytest.MonkeyPatch, limit: int, rounds: int) -> None:
    monkeypatch.setattr(vmi_inside.space, "_CACHE_LIMIT", limit)
    space, memory, base = linear(Ram(*RUNS), 100)
    pages = np.uint64(base) + 4096 * np.arange(100, dtype=np.uint64)
    with space.operation():
        for want in (5, rounds):
            memory.reset()
            assert space.gather(pages, 8)[1].all()
            assert memory.gathers + memory.reads == want


def test_translations_are_remembered_inside_an_operation_only() -> None:
    ram = Ram(*RUNS)
    tables = PageTables(ram)
    old, new = ram.frames(), ram.frames()
    ram.write(old, b"old!")
    ram.write(new, b"new!")
    va = 0xFFFF_C900_0000_0000
    tables.map(va, old)
    memory = CountingMemory(ram.memory)
    space = AddressSpace(memory, BY_LEVELS[4], tables.root)
    pair = np.array([va, va], dtype=np.uint64)
    with space.operation():
        with space.operation():
            space.gather(pair, 4)
        memory.reset()
        assert space.gather(pair, 4)[0][0].tobytes() == b"old!"
        assert memory.gathers == 1, "an inner operation forgets nothing"
        tables.map(va, new)
    assert space.gather(pair, 4)[0][0].tobytes() == b"new!"
    with pytest.raises(RuntimeError), space.operation():
        raise RuntimeError
    tables.map(va, old)
    assert space.gather(pair, 4)[0][0].tobytes() == b"old!"


def test_an_operation_goes_on_with_translations_whose_tables_are_as_they_were() -> None:
    space, memory, base = linear(Ram(*RUNS), 200)
    pages = np.uint64(base) + 4096 * np.arange(200, dtype=np.uint64)
    with space.operation():
        first, _ = space.gather(pages, 8)
    memory.reset()
    with space.operation():
        again, ok = space.gather(pages, 8)
        assert memory.gathers + memory.reads == 2, "the tables, all in one, and the rows"
        assert space.translate_one(base) >= 0
        assert memory.gathers + memory.reads == 2
    assert ok.all()
    assert again.tolist() == first.tolist()


def test_a_table_that_changed_since_is_walked_anew() -> None:
    ram = Ram(*RUNS)
    tables = PageTables(ram)
    old, new = ram.frames(), ram.frames()
    ram.write(old, b"old!")
    ram.write(new, b"new!")
    va = 0xFFFF_C900_0000_0000
    tables.map(va, old)
    space = AddressSpace(CountingMemory(ram.memory), BY_LEVELS[4], tables.root)
    pair = np.array([va, va], dtype=np.uint64)
    for frame, said in ((old, b"old!"), (new, b"new!"), (old, b"old!"), (old, b"old!")):
        tables.map(va, frame)
        with space.operation():
            assert space.gather(pair, 4)[0][0].tobytes() == said
            assert space.read(va, 4) == said


def test_empty_batches() -> None:
    space, memory, base = linear(Ram(*RUNS), 1)
    nothing = np.empty(0, dtype=np.uint64)
    assert space.gather(nothing, 8)[0].shape == (0, 8)
    assert space.gather(np.array([base], dtype=np.uint64), 0)[0].shape == (1, 0)
    assert [part.dtype for part in space.translate(nothing)] == [np.uint64, np.bool_]
    assert len(space.translate(nothing)[0]) == 0
    assert memory.gathers == 0


def test_read_names_the_level_that_failed() -> None:
    ram = Ram(*RUNS)
    tables = PageTables(ram)
    tables.map(0x1000, 3 << 30)
    tables.put(0x3000, 1, 0x1234_5000)
    space = AddressSpace(ram.memory, BY_LEVELS[4], tables.root)
    with pytest.raises(NoMemory, match="0xc0000000"):
        space.read(0x1000, 8)
    tables.map(0, ram.frames())
    with pytest.raises(NoMemory, match="0xc0000000"):
        space.read(0x0FFF, 8)
    with pytest.raises(PageFault, match="0x3000") as fault:
        space.read(0x2FFF + 1, 8)
    assert (fault.value.level, fault.value.entry) == (1, 0x1234_5000)
    with pytest.raises(PageFault) as fault:
        space.read(1 << 47, 8)
    assert fault.value.level == 4
    with pytest.raises(PageFault) as fault:
        space.read(1 << 40, 8)
    assert fault.value.level == 4
