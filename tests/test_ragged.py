from __future__ import annotations

import numpy as np
import pytest

from tests.synthetic import LinuxGuest
from tests.synthetic.guest import NOWHERE
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
