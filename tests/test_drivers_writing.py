"""Guest memory that is written to: whole or not at all, through every driver that can."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi_inside.drivers.dumpfile import MappedDump
from vmi_inside.drivers.peek import PeekMemory
from vmi_inside.drivers.process_vm import Process, ProcessMemory, WritableProcessMemory
from vmi_inside.drivers.qemu import QemuMemory, SharedMemory, WritableQemuMemory, WritableSharedMemory, _File
from vmi_inside.errors import NoMemory
from vmi_inside.memory import Run, WritableMemory

SIZE = 16 << 12
LOW, HIGH = Run(0x1000, 8 << 12), Run(0x1000 + (8 << 12), 8 << 12)  # they adjoin: shared, then private
HOLE = 0x1000 + SIZE


@pytest.fixture(scope="module")
def parts() -> Iterator[tuple[WritableQemuMemory, np.ndarray, np.ndarray]]:
    """A memory of two runs, one of a shared file and one of a process, and what lies in them."""
    process = Process(os.getpid(), "me")
    fd = os.memfd_create("ram")
    os.ftruncate(fd, SIZE)
    shared = np.frombuffer(mmap.mmap(fd, SIZE), np.uint8)
    private = np.frombuffer(mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    memory = WritableQemuMemory(
        process,
        [
            WritableSharedMemory([(LOW, _File(fd, shared), 4 << 12)], lambda: os.close(fd), how="shared"),
            WritableProcessMemory(process, [(HIGH, private.ctypes.data)]),
        ],
        [],
    )
    yield memory, shared[4 << 12 : 12 << 12], private[: 8 << 12]
    memory.close()


Parts = tuple[WritableQemuMemory, np.ndarray, np.ndarray]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=3 << 12))
def test_what_is_written_is_read(parts: Parts, offset: int, data: bytes) -> None:
    memory, shared, private = parts
    before = np.concatenate((shared, private))
    pa = LOW.start + offset
    if offset + len(data) > SIZE:
        with pytest.raises(NoMemory):
            memory.write(pa, data)
        wanted = before
    else:
        memory.write(pa, data)
        wanted = before.copy()
        wanted[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        assert memory.read(pa, len(data)) == data
    assert (np.concatenate((shared, private)) == wanted).all()


def test_rows_are_written_all_or_none(parts: Parts) -> None:
    memory, shared, _ = parts
    rows = np.arange(32, dtype=np.uint8).reshape(4, 8) + 1
    pa = np.array([0x1000, 0x2FFC, HIGH.start - 4, 0x5000], np.uint64)
    memory.scatter(pa, rows)
    for row, at in enumerate(pa.tolist()):
        assert memory.read(at, 8) == rows[row].tobytes()
    pa[3] = HOLE - 4
    before = shared.copy()
    with pytest.raises(NoMemory):
        memory.scatter(pa, rows + 100)
    assert (shared == before).all()


def test_pages_that_cannot_be_written(parts: Parts) -> None:
    memory, _, private = parts
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    assert protect(private.ctypes.data, 4096, mmap.PROT_READ) == 0
    try:
        with pytest.raises(NoMemory):
            memory.write(HIGH.start + 8, b"x")
    finally:
        assert protect(private.ctypes.data, 4096, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    memory.write(HIGH.start + 8, b"x")


def test_only_what_was_opened_for_it_can_be_written(parts: Parts) -> None:
    assert isinstance(parts[0], WritableMemory)
    for kind in (QemuMemory, SharedMemory, ProcessMemory, MappedDump, PeekMemory):
        assert not hasattr(kind, "write")
        assert not hasattr(kind, "scatter")
