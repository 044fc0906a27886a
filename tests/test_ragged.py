from __future__ import annotations

import numpy as np
import pytest

from tests.synthetic import LinuxGuest
from tests.synthetic.guest import NOWHERE
from tests.synthetic.ram import PageTables
from vmi_inside import ragged


@pytest.fixture
def guest() -> LinuxGuest:
    return LinuxGuest(scattered=True)


def sizes(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def addresses(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def test_many_ranges_are_few_rounds(guest: LinuxGuest) -> None:
    data = [bytes([i % 255 + 1]) * (i * 7 % 300) for i in range(500)]
    at = [guest.string(part) for part in data]
    guest.memory.reset()
    got = ragged.gather(guest.space, addresses(*at), sizes(*map(len, data)))
    assert got.rows() == data
    assert got.ok.all()
    assert guest.memory.gathers + guest.memory.reads == 5  # down four levels, whole tables at a time, the ranges


def test_words_know_their_range(guest: LinuxGuest) -> None:
    at = [guest.alloc(4000, "words") for _ in range(3)]
    for index, base in enumerate(at):
        for word in range(500):
            guest.word(base + 8 * word, index * 1000 + word)
    got = ragged.gather(guest.space, addresses(*at), sizes(16, 0, 4000))
    words, owner, number = got.words()  # zeros are left out
    assert words.tolist() == [1, *range(2000, 2500)]
    assert owner.tolist() == [0] + [2] * 500
    assert number.tolist() == [1, *range(500)]
    empty = ragged.gather(guest.space, addresses(), sizes())
    assert [len(part) for part in empty.words()] == [0, 0, 0]
    assert empty.rows() == []


def test_every_beginning_with_every_size(guest: LinuxGuest) -> None:
    held = bytes(range(1, 80)) + bytes(9) + bytes(range(80, 248))
    base = guest.alloc(4096, "bytes")
    guest.write(base, held)
    cases = [(begin, size) for begin in range(70) for size in range(140)]
    begins, size = np.array(cases, dtype=np.int64).T
    got = ragged.gather(guest.space, np.uint64(base) + begins.astype(np.uint64), size)
    assert got.ok.all()
    assert got.rows() == [held[begin : begin + size] for begin, size in cases]
    expected = [
        (int.from_bytes(held[begin + 8 * number : begin + 8 * number + 8], "little"), index, number)
        for index, (begin, size) in enumerate(cases)
        if begin % 8 == 0
        for number in range(size // 8)
    ]
    found = zip(*(part.tolist() for part in got.words()), strict=True)
    assert list(found) == [one for one in expected if one[0]]


def test_ranges_of_several_page_tables(guest: LinuxGuest) -> None:
    """Of one size or of several: each is what its own tables say."""
    roots = []
    for number in range(3):
        tables, frame = PageTables(guest.ram), guest.ram.frames()
        if number:
            tables.map(0x40_0000, frame)
        guest.ram.write(frame, bytes([number]) * 4096)
        roots.append(tables.root)
    for size in ((64, 64, 64), (64, 100, 7)):
        got = ragged.gather(guest.space, addresses(*[0x40_0000] * 3), sizes(*size), addresses(*roots))
        assert got.ok.tolist() == [False, True, True]
        assert got.rows() == [bytes([number]) * each for number, each in enumerate(size)]


def test_the_last_bytes_before_a_page_that_is_not_there(guest: LinuxGuest) -> None:
    end = guest.alloc(1 << 15, "pages") + 4096
    guest.write(end - 100, bytes(range(100)))
    guest.unmap(end)
    left = [1, 3, 63, 64, 99, 100]
    got = ragged.gather(guest.space, np.uint64(end) - addresses(*left), sizes(*left))
    assert got.ok.all()
    assert got.rows() == [bytes(range(100))[-each:] for each in left]
    got = ragged.gather(guest.space, np.uint64(end) - addresses(*left), sizes(*left) + 1)
    assert not got.ok.any()


def test_of_an_empty_range_nothing_can_be_missing(guest: LinuxGuest) -> None:
    at = addresses(NOWHERE + 7, guest.string("good"), guest.string("x"))
    got = ragged.gather(guest.space, at, sizes(0, 4, 1))
    assert got.ok.all()
    assert got.rows() == [b"", b"good", b"x"]


@pytest.mark.parametrize(
    ("size", "most"),
    [
        ([64] * 3, 192),  # of one size: these and nothing else
        ([8] * 3, 24),
        ([4096] * 2, 8192),
        ([64, 0, 0, 0, 64], 128),
        ([8, 8, 128, 128, 128], 512),  # most of one size: the others in pieces of 64
        ([100, 200, 8], 512),  # in pieces of 128
        ([4001, 4000], 8192),  # in whole pages
        ([0, 0, 0, 4001, 4000, 0], 8192),
    ],
)
def test_little_is_read_that_was_not_asked_for(guest: LinuxGuest, size: list[int], most: int) -> None:
    base = guest.alloc(1 << 15, "pages")
    at = addresses(*[base + 4096 * index + 8 for index in range(len(size))])
    guest.memory.reset()
    got = ragged.gather(guest.space, at, sizes(*size))
    assert got.ok.all()
    assert [len(row) for row in got.rows()] == size
    assert len(got.data) <= most
    assert guest.memory.rows <= len(size) + 4  # pieces, and tables


def test_words_of_ranges_that_end_within_one(guest: LinuxGuest) -> None:
    at = [guest.alloc(16, "words") for _ in range(3)]
    for base in at:
        guest.word(base, 7)
        guest.word(base + 8, 8)
    got = ragged.gather(guest.space, addresses(*at), sizes(12, 12, 12))
    assert [part.tolist() for part in got.words()] == [[7, 7, 7], [0, 1, 2], [0, 0, 0]]


@pytest.mark.parametrize(
    ("size", "limit", "fits"),
    [
        ([5, 5], 10, [True, True]),
        ([5, 6], 10, [True, False]),
        ([10], 10, [True]),
        ([11, 10], 10, [False, True]),
        ([7, 2, 3, 1], 10, [False, True, True, True]),
        ([4, 5] * 500, 3000, [True, True] * 200 + [True, False] * 300),
    ],
)
def test_of_what_does_not_fit_the_largest_are_left_out(size: list[int], limit: int, fits: list[bool]) -> None:
    assert ragged.fitting(sizes(*size), limit).tolist() == fits


def test_sizes_that_lie(guest: LinuxGuest) -> None:
    at = guest.string("good")
    huge = [1 << 32, (1 << 63) - 1, -1, -(1 << 63), ragged.TOTAL_LIMIT + 1]
    guest.memory.reset()
    got = ragged.gather(guest.space, addresses(*[at] * 6), sizes(*huge, 4))
    assert got.row(5) == b"good"
    assert got.ok.tolist() == [False, False, True, True, False, True]
    assert got.rows()[:5] == [b""] * 5
    assert guest.memory.rows < 100


def test_the_whole_is_limited(guest: LinuxGuest) -> None:
    at = guest.string("good")
    got = ragged.gather(guest.space, addresses(*[at] * 40), sizes(*[4] * 4, *[4 << 20] * 36))
    assert len(got.data) <= ragged.TOTAL_LIMIT + 41 * 2 * 4096
    assert got.rows()[:4] == [b"good"] * 4
    assert not got.ok[20:].any()


def test_a_range_that_ends_in_nowhere(guest: LinuxGuest) -> None:
    at = guest.string("good")
    got = ragged.gather(guest.space, addresses(NOWHERE, at, (1 << 64) - 2), sizes(100, 4, 100))
    assert got.ok.tolist() == [False, True, False]
    assert got.row(1) == b"good"
    assert got.row(0) == bytes(100)


def test_no_range_that_begins_as_arrays_do(guest: LinuxGuest) -> None:
    got = ragged.gather(guest.space, addresses(guest.string("12345678") + 3), sizes(64))
    assert [len(part) for part in got.words()] == [0, 0, 0]


def test_ranges_of_one_size_among_others(guest: LinuxGuest) -> None:
    # Most are of one size and read as they are, the others by units: what is given is in the order of the ranges.
    size = [64, 1000, 64, 0, 64, 64, 24, 64, 64]
    at = [guest.alloc(max(each, 8), "words") for each in size]
    for index, base in enumerate(at):
        for word in range(size[index] // 8):
            guest.word(base + 8 * word, index * 1000 + word + 1)
    guest.memory.reset()
    got = ragged.gather(guest.space, addresses(*at), sizes(*size))
    assert got.ok.all()
    assert [len(row) for row in got.rows()] == size
    words, owner, number = got.words()
    expected = [(index, word) for index, each in enumerate(size) for word in range(each // 8)]
    assert list(zip(owner.tolist(), number.tolist(), strict=True)) == expected
    assert words.tolist() == [index * 1000 + word + 1 for index, word in expected]


def test_of_ranges_of_one_size_one_is_half_there(guest: LinuxGuest) -> None:
    at = [guest.alloc(64, "words") for _ in range(3)]
    for base in at:
        guest.word(base + 8, 7)
    got = ragged.gather(guest.space, addresses(*at, NOWHERE), sizes(64, 64, 64, 64))
    assert got.ok.tolist() == [True, True, True, False]
    assert got.words()[0].tolist() == [7, 7, 7]


def test_what_is_wrong_with_ranges_among_many_of_one_size(guest: LinuxGuest) -> None:
    """One of another size that cannot be read, and one that is too large to be."""
    at = guest.alloc(64, "words")
    got = ragged.gather(guest.space, addresses(at, NOWHERE, at, at, at), sizes(64, 24, 64, ragged.TOTAL_LIMIT + 1, 64))
    assert got.ok.tolist() == [True, False, True, False, True]
    assert got.size.tolist() == [64, 24, 64, 0, 64]
    assert got.row(1) == bytes(24)
