from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from vmi_inside.drivers import process_vm
from vmi_inside.drivers.process_vm import Process, ProcessMemory
from vmi_inside.errors import GuestGone
from vmi_inside.memory import PhysicalMemory, Run

SIZE = 1 << 22
HOLE = Run(0x100000, 0x2000)  # of the block: pages that cannot be read
BASE = 1 << 32


@pytest.fixture
def me() -> Iterator[Process]:
    process = Process(os.getpid(), "me")
    yield process
    process.close()


@pytest.fixture
def block() -> Iterator[np.ndarray]:
    area = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(area, np.uint8)
    array.view(np.uint64)[:] = np.arange(SIZE // 8, dtype=np.uint64)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    assert protect(array.ctypes.data + HOLE.start, HOLE.size, 0) == 0
    yield array
    assert protect(array.ctypes.data + HOLE.start, HOLE.size, 3) == 0


def test_rows_that_cannot_be_read_are_marked_and_the_others_are_right(me: Process, block: np.ndarray) -> None:
    memory = ProcessMemory(me, [(Run(BASE, SIZE), block.ctypes.data)])
    assert isinstance(memory, PhysicalMemory)
    offset = np.random.default_rng(1).integers(0, SIZE // 64, 5000).astype(np.uint64) * np.uint64(64)
    offset[7] = HOLE.start  # at least one, and two next to each other
    offset[1023:1026] = HOLE.start + 64
    pa = offset + np.uint64(BASE)
    pa[100] = BASE - 64
    pa[2000] = BASE + SIZE
    out = np.full((5000, 64), 0xEE, np.uint8)
    ok = memory.gather(pa, out)
    wanted = ~((offset >= HOLE.start) & (offset < HOLE.end))
    wanted[[100, 2000]] = False
    assert (ok == wanted).all()
    assert not out[~ok].any()
    assert (out.view(np.uint64)[ok, 0] == offset[ok] // 8).all()
    assert (out.view(np.uint64)[ok, 7] == offset[ok] // 8 + 7).all()


def test_reads_across_blocks_and_into_nothing(me: Process, block: np.ndarray) -> None:
    at = block.ctypes.data
    # Two runs that adjoin in the guest and are swapped in the process.
    memory = ProcessMemory(me, [(Run(BASE, 4096), at + 8192), (Run(BASE + 4096, 4096), at)])
    assert bytes(memory.read(BASE + 4088, 16) or b"") == bytes(block[8192 + 4088 : 12288]) + bytes(block[:8])
    assert memory.read(BASE + 8192 - 8, 16) is None
    assert memory.read(BASE - 8, 16) is None
    whole = ProcessMemory(me, [(Run(0, SIZE), at)])
    assert bytes(whole.read(HOLE.end, SIZE - HOLE.end) or b"") == bytes(block[HOLE.end :])
    assert whole.read(HOLE.start - 4096, 8192) is None
    whole.close()
    assert whole.read(0, 8) is None


def test_large_reads_take_several_calls(me: Process, block: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_vm, "_MAX_BYTES", 3000)
    memory = ProcessMemory(me, [(Run(0, SIZE), block.ctypes.data)])
    assert bytes(memory.read(5, 50_000) or b"") == bytes(block[5:50_005])
    out = np.empty((4, 4096), np.uint8)
    assert memory.gather(np.array([0, 4096, 8192, 0], np.uint64), out).all()
    assert (out == block[np.add.outer([0, 4096, 8192, 0], np.arange(4096))]).all()


def test_a_process_that_ended_is_noticed_though_its_number_lives_on(block: np.ndarray) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process = Process(child.pid, "web01")
        process.check()
        child.kill()
    # What now reads by that number could be anybody: here it is ourselves.
    process.pid = os.getpid()
    memory = ProcessMemory.__new__(ProcessMemory)
    with pytest.raises(GuestGone, match=r"web01: .*attach again"):
        memory.__init__(process, [(Run(0, SIZE), block.ctypes.data)])  # type: ignore[misc]
    process.close()
    with pytest.raises(GuestGone):
        Process(child.pid)


def test_a_zombie_is_gone(me: Process) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process(child.pid)
    try:
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(GuestGone):
            ProcessMemory(process, [(Run(0, 8), 4096)])
    finally:
        process.close()
        child.communicate()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_the_missing_privilege_is_named(block: np.ndarray) -> None:
    program = (
        "import os, sys\n"
        "from vmi_inside.drivers.process_vm import Process, ProcessMemory\n"
        "from vmi_inside.errors import PermissionDenied\n"
        "from vmi_inside.memory import Run\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: ProcessMemory(Process(int(sys.argv[1]), 'web01'), [(Run(0, 8), int(sys.argv[2]))])\n"
        "except PermissionDenied as error: print(error)\n"
    )
    words = [sys.executable, "-c", program, str(os.getpid()), str(block.ctypes.data)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert f"web01: cannot read QEMU's memory (pid {os.getpid()}): needs CAP_SYS_PTRACE" in said
