from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi_inside.drivers.mapped import MappedMemory
from vmi_inside.drivers.peek import MOST, PeekMemory
from vmi_inside.memory import PhysicalMemory, Run

LOW, HIGH = Run(0x1000, 8 << 20), Run(1 << 32, 1 << 20)
ARRAYS = {run: np.random.default_rng(run.start).integers(0, 256, run.size, np.uint8) for run in (LOW, HIGH)}


class Far:
    """A remote host with the two runs, that refuses what libvirt refuses, and counts."""

    def __init__(self, bad: Run | None = None) -> None:
        self.asked: list[Run] = []
        self.bad = bad or Run(0, 0)

    def __call__(self, start: int, size: int) -> bytes | None:
        self.asked.append(Run(start, size))
        assert 0 < size <= MOST
        run = next(run for run in ARRAYS if run.start <= start and start + size <= run.end)  # nothing else is asked for
        if start < self.bad.end and self.bad.start < start + size:
            return None
        return ARRAYS[run][start - run.start : start - run.start + size].tobytes()


def pages() -> st.SearchStrategy[int]:
    inside = st.sampled_from([LOW, HIGH]).flatmap(lambda run: st.integers(run.start >> 12, (run.end >> 12) - 1))
    return inside | st.integers(0, (1 << 52) - 1)


@settings(max_examples=200, deadline=None)
@given(st.lists(pages(), max_size=40), st.sampled_from([1, 8, 64, 4096]))
def test_it_reads_what_mapped_memory_reads(page: list[int], width: int) -> None:
    pa = (np.array(page, np.uint64) << np.uint64(12)) + np.uint64(4096 - width)
    near, far = np.full((len(pa), width), 1, np.uint8), np.full((len(pa), width), 2, np.uint8)
    memory = PeekMemory(Far(), [HIGH, LOW])
    assert (MappedMemory(ARRAYS.items()).gather(pa, near) == memory.gather(pa, far)).all()
    assert (near == far).all()


def test_rows_that_are_near_share_a_round_trip() -> None:
    far = Far()
    memory = PeekMemory(far, [LOW, HIGH])
    assert isinstance(memory, PhysicalMemory)
    out = np.empty((2000, 64), np.uint8)
    assert memory.gather(np.tile(np.array([0x2000, 0x2040, 0x3000, HIGH.start], np.uint64), 500), out).all()
    assert far.asked == [Run(0x2000, 0x1040), Run(HIGH.start, 64)]
    assert (out[3::4] == ARRAYS[HIGH][:64]).all()


def test_what_the_host_will_not_read_is_marked() -> None:
    memory = PeekMemory(Far(bad=Run(0x700000, 4096)), [LOW, HIGH])
    out = np.full((3, 8), 9, np.uint8)
    assert memory.gather(np.array([0x2000, 0x700008, HIGH.start], np.uint64), out).tolist() == [True, False, True]
    assert not out[1].any()
    assert memory.read(0x6FF000, 8192) is None


def test_large_reads_go_in_parts() -> None:
    far = Far()
    memory = PeekMemory(far, [LOW, HIGH])
    assert memory.read(LOW.start + 5, 3 * MOST) == ARRAYS[LOW][5 : 5 + 3 * MOST].tobytes()
    assert len(far.asked) == 3
    assert memory.read(LOW.end - 8, 16) is None
    memory.close()
    assert memory.read(LOW.start, 8) is None
