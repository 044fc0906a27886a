from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi_inside.drivers.mapped import MappedMemory, map_file
from vmi_inside.errors import AttachError
from vmi_inside.memory import PhysicalMemory, Run, Words


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[tuple[Run, np.ndarray]], dict[int, int]]:
    """Pieces, some of which adjoin, some at the top of the address space; and every byte of them by its address."""
    start = draw(st.sampled_from([0, 1, 0x9FC00, (1 << 64) - 900]))
    pieces = []
    for n in range(draw(st.integers(1, 5))):
        size = draw(st.integers(1, 70))
        array = np.random.default_rng(n).integers(0, 256, size, np.uint8)
        pieces.append((Run(start, size), array))
        start += size + draw(st.sampled_from([0, 0, 1, 100]))
    return pieces, {run.start + i: int(byte) for run, array in pieces for i, byte in enumerate(array)}


@settings(deadline=None)
@given(worlds(), st.data())
def test_gather_and_read_say_what_is_there(
    world: tuple[list[tuple[Run, np.ndarray]], dict[int, int]], data: st.DataObject
) -> None:
    pieces, truth = world
    memory = MappedMemory(data.draw(st.permutations(pieces)))
    near = st.builds(lambda a, d: (a + d) % (1 << 64), st.sampled_from(sorted(truth)), st.integers(-3, 3))
    pa = data.draw(st.lists(near | st.integers(0, (1 << 64) - 1), max_size=20))
    width = data.draw(st.integers(1, 80))
    out = np.full((len(pa), width), 0xEE, np.uint8)
    ok = memory.gather(np.array(pa, np.uint64), out)
    for address, row, good in zip(pa, out, ok, strict=True):
        wanted = [truth.get(address + i) for i in range(width)]
        assert good == (None not in wanted)
        assert row.tolist() == (wanted if good else [0] * width)
        found = memory.read(address, width)
        assert (None if found is None else list(bytes(found))) == (wanted if good else None)


def test_words() -> None:
    array = np.arange(4096, dtype=np.uint64).view(np.uint8)[: 4096 + 12]
    memory = MappedMemory([(Run(0x1000, 4096), array[:4096].copy()), (Run(0x8000, 12), array[:12].copy())])
    assert isinstance(memory, Words)
    assert memory.word(0x1000) == 0
    assert memory.word(0x1000 + 8 * 511) == 511
    assert [memory.word(at) for at in (0, 0xFF8, 0x1004, 0x2000, 0x2000 - 4, 0x8000, 1 << 63)] == [None] * 7
    memory.close()
    assert memory.word(0x1000) is None


def test_it_is_a_physical_memory_that_does_not_copy() -> None:
    array = np.zeros(8192, np.uint8)
    memory = MappedMemory([(Run(4096, 8192), array)], how="so", notices=["n"])
    assert isinstance(memory, PhysicalMemory)
    view = memory.read(4096 + 10, 4)
    assert isinstance(view, memoryview)
    assert view.readonly
    array[10:14] = 7
    assert bytes(view) == b"\7\7\7\7"
    assert (memory.how, memory.notices) == ("so", ["n"])


def test_what_is_wrong_with_a_range_is_no_error() -> None:
    memory = MappedMemory([(Run(4096, 4096), np.ones(4096, np.uint8))])
    assert memory.read(-1, 4) is None
    assert memory.read(4096, -4) is None
    assert memory.read(1 << 70, 4) is None
    assert memory.read(8188, 5) is None


def test_pieces_must_fit() -> None:
    with pytest.raises(ValueError, match="overlaps"):
        MappedMemory([(Run(0, 10), np.zeros(10, np.uint8)), (Run(9, 10), np.zeros(10, np.uint8))])
    with pytest.raises(ValueError, match="contiguous"):
        MappedMemory([(Run(0, 10), np.zeros(9, np.uint8))])
    with pytest.raises(ValueError, match="contiguous"):
        MappedMemory([(Run(0, 10), np.zeros(20, np.uint8)[::2])])


def test_close_calls_the_closers_once_and_ends_reading() -> None:
    calls: list[int] = []
    memory = MappedMemory([(Run(0, 4096), np.ones(4096, np.uint8))], lambda: calls.append(1))
    view = memory.read(0, 4)
    memory.close()
    memory.close()
    assert calls == [1]
    assert memory.read(0, 4) is None
    assert not memory.gather(np.zeros(3, np.uint64), np.empty((3, 8), np.uint8)).any()
    assert view is not None
    assert bytes(view) == b"\1\1\1\1"  # a view outlives it


def test_a_file_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(range(256)) * 32)
    fd = os.open(path, os.O_RDONLY)
    try:
        array = map_file(fd, 4096, 4096)
        assert array[:256].tolist() == list(range(256))
        assert not array.flags.writeable
        assert len(map_file(fd)) == 8192
        with pytest.raises(AttachError, match="8192 bytes long, not the 8193"):
            map_file(fd, 4097, 4096)
        with pytest.raises(AttachError, match="ram-x is 8192"):
            map_file(fd, None, 8192, name="ram-x")
    finally:
        os.close(fd)
