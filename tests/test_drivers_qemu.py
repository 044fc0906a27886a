"""What is read from a real QEMU, against what QEMU itself says lies there (`pmemsave`) and where (`info mtree`).

A guest without a disk is enough: its firmware, and the `loader` device that plants words, fill enough of memory.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from vmi_inside.drivers import monitor
from vmi_inside.drivers.qemu import open_qemu
from vmi_inside.drivers.qemu_layout import LayoutUnknown
from vmi_inside.drivers.qmp import Qmp, open_qmp
from vmi_inside.errors import AttachError, GuestGone, NotRunning
from vmi_inside.memory import PhysicalMemory
from vmi_inside.types import PAGE_SIZE

QEMU = "qemu-system-x86_64"
WORD = 0x0123456789ABCDEF

pytestmark = [pytest.mark.lab, pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")]


@contextmanager
def qemu(folder: Path, *arguments: str, planted: tuple[int, ...] = ()) -> Iterator[tuple[int, str]]:
    """A QEMU, stopped when its firmware has uncovered the RAM below 1 MiB. Gives its pid and its QMP socket."""
    path = str(folder / "qmp")
    words = [QEMU, "-accel", "tcg", "-display", "none", "-nodefaults", "-qmp", f"unix:{path},server=on,wait=off"]
    for address in planted:
        words += ["-device", f"loader,addr={address:#x},data={WORD + address:#x},data-len=8"]
    with subprocess.Popen([*words, *arguments]) as process:
        try:
            deadline = time.monotonic() + 30
            while not uncovered(path):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield process.pid, path
        finally:
            process.kill()


def uncovered(path: str) -> bool:
    """Whether the firmware is done, and if so stop the guest, so that nothing in it changes any more."""
    with suppress(AttachError), Qmp(path) as qmp:
        regions = monitor.regions(qmp.hmp("info mtree -f"))
        if any(one.run.start <= 0xE8000 < one.run.end and one.name != "isa-bios" for one in regions):
            time.sleep(0.5)  # until it waits for a disk
            qmp.execute("stop")
            return True
    return False


def memory_of(backend: str, name: str, size: str) -> list[str]:
    return ["-object", f"memory-backend-{backend},id={name},size={size}"]


def nodes(*backends: tuple[str, str]) -> list[str]:
    words = []
    for n, (backend, size) in enumerate(backends):
        words += [*memory_of(backend, f"ram-node{n}", size), "-numa", f"node,nodeid={n},memdev=ram-node{n}"]
    return words


Q35, PC, PRIVATE = ["-machine", "q35"], ["-machine", "pc"], "process_vm_readv"
ONE = ["-machine", "q35,memory-backend=r"]
FOUR = 1 << 32


@pytest.mark.parametrize(
    ("arguments", "how", "high"),
    [
        ([*Q35, "-m", "256M"], PRIVATE, None),
        ([*PC, "-m", "256M"], PRIVATE, None),
        ([*Q35, "-m", "2560M"], PRIVATE, None),
        ([*PC, "-m", "2560M"], PRIVATE, None),
        ([*Q35, "-m", "3G"], PRIVATE, 1 << 30),
        ([*PC, "-m", "3G"], PRIVATE, None),
        ([*Q35, "-m", "4G"], PRIVATE, 2 << 30),
        ([*PC, "-m", "4G"], PRIVATE, 1 << 30),
        ([*Q35, "-m", "6G"], PRIVATE, 4 << 30),
        ([*PC, "-m", "6G"], PRIVATE, 3 << 30),
        (["-machine", "q35,max-ram-below-4g=1G", "-m", "3G"], PRIVATE, 2 << 30),
        (["-machine", "microvm", "-m", "4G"], PRIVATE, 1 << 30),
        ([*ONE, "-m", "4G", *memory_of("memfd", "r", "4G")], "mapped, shared memfd", 2 << 30),
        ([*ONE, "-m", "4G", *memory_of("memfd,share=off", "r", "4G")], PRIVATE, 2 << 30),
        ([*ONE, "-m", "1G", *memory_of("ram,share=on", "r", "1G")], "mapped, shared memory", None),
        ([*ONE, "-m", "1G", *memory_of("file,share=on,mem-path=ram", "r", "1G")], "mapped, shared file", None),
        ([*ONE, "-m", "1G", *memory_of("file,share=off,mem-path=ram", "r", "1G")], PRIVATE, None),
        ([*Q35, "-m", "5G", *nodes(("ram", "3G"), ("memfd", "2G"))], "mapped, shared memfd; process_vm_readv", 3 << 30),
        ([*Q35, "-m", "2G", *nodes(*[("file,share=on,mem-path=/dev/shm", "1G")] * 2)], "mapped, shared file", None),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_the_layout_is_told_without_the_monitor(
    tmp_path: Path, arguments: list[str], how: str, high: int | None
) -> None:
    arguments = [word.replace("mem-path=ram", f"mem-path={tmp_path}/ram") for word in arguments]
    planted = (0x5000, 0x100000, 0xF000FF8, *(() if high is None else (FOUR, FOUR + high - 8)))
    with qemu(tmp_path, *arguments, planted=planted) as (pid, path):
        memory = open_qemu(pid)
        try:
            assert isinstance(memory, PhysicalMemory)
            assert memory.how.startswith(how)
            assert memory.notices == []
            assert memory.runs[-1].end == (FOUR + high if high else memory.runs[-1].end)
            check(memory, path, planted, tmp_path)
        finally:
            memory.close()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([*Q35, "-m", "2G", *nodes(("ram", "1G"), ("ram", "1G"))], "ram-node0"),
        ([*Q35, "-m", "2G", *nodes(("memfd", "1G"), ("memfd", "1G"))], "ram-node0"),
        ([*Q35, "-m", "1G,slots=2,maxmem=4G", *memory_of("ram", "d", "1G"), "-device", "pc-dimm,memdev=d"], "DIMM"),
        ([*PC, "-m", "16M", "-vga", "std"], "2 could be"),  # the VGA's memory is as large
    ],
    ids=["equal-nodes", "equal-memfds", "dimm", "as-large-as-vga"],
)
def test_what_cannot_be_told_is_asked(tmp_path: Path, arguments: list[str], why: str) -> None:
    high = (FOUR,) if "pc-dimm,memdev=d" in arguments else ()
    with qemu(tmp_path, *arguments, planted=(0x5000, 0x100000, 0x800FF8, *high)) as (pid, path):
        with pytest.raises(LayoutUnknown, match=why):
            open_qemu(pid)
        with Qmp(path) as qmp:
            memory = open_qemu(pid, hmp=qmp.hmp, monitor_notice="tainted")
        assert memory.notices[0].startswith("tainted (")
        assert why in memory.notices[0]
        check(memory, path, (0x5000, 0x100000, 0x800FF8, *high), tmp_path)
        memory.close()


def check(memory: PhysicalMemory, path: str, planted: tuple[int, ...], folder: Path) -> None:
    """Compare with QEMU: what is RAM, the planted words, and pages at the ends of every run."""
    with Qmp(path) as qmp:
        told = [extent.run for extent in monitor.extents(qmp.hmp)]
        for run in memory.runs:  # all that we say is RAM is so by QEMU's word; adjoining blocks are joined here
            at = run.start
            for one in told:
                at = max(at, one.end) if one.start <= at else at
            assert at >= run.end
        pages = [0x5000, *(page for run in memory.runs for page in (run.start, run.end - PAGE_SIZE))]
        out = np.full((len(pages), PAGE_SIZE), 0xEE, np.uint8)
        assert memory.gather(np.array(pages, np.uint64), out).all()
        for page, row in zip(pages, out, strict=True):
            qmp.execute("pmemsave", val=page, size=PAGE_SIZE, filename=str(folder / "page"))
            assert row.tobytes() == (folder / "page").read_bytes()
            assert bytes(memory.read(page, PAGE_SIZE) or b"") == row.tobytes()
    words = np.empty((len(planted), 8), np.uint8)
    assert memory.gather(np.array(planted, np.uint64), words).all()
    assert words.view(np.uint64)[:, 0].tolist() == [WORD + address for address in planted]
    nowhere = np.array([0xB8000, 0xFEE00000, 1 << 52, 0x5000], np.uint64)
    ok = memory.gather(nowhere, np.empty((4, 64), np.uint8))
    assert ok[1:].tolist() == [False, False, True]


def test_a_read_goes_from_one_kind_of_memory_into_the_other(tmp_path: Path) -> None:
    border = 1 << 30
    arguments = [*Q35, "-m", "2560M", *nodes(("memfd", "1G"), ("ram", "1536M"))]
    with qemu(tmp_path, *arguments, planted=(border - 8, border)) as (pid, _):
        memory = open_qemu(pid)
        data = memory.read(border - 8, 16)
        assert data is not None
        assert np.frombuffer(data, np.uint64).tolist() == [WORD + border - 8, WORD + border]
        assert memory.read(memory.runs[-1].end - 8, 16) is None
        memory.close()


@pytest.mark.parametrize("backend", ["memfd", "ram"])
def test_a_guest_that_dies_is_noticed(tmp_path: Path, backend: str) -> None:
    with qemu(tmp_path, *ONE, "-m", "256M", *memory_of(backend, "r", "256M")) as (pid, path):
        memory, guest = open_qmp(path)
        assert (guest.pid, guest.status, guest.name) == (pid, "paused", "")
        assert guest.hmp("info status").startswith("VM status: paused")
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(GuestGone, match="attach again"):
            memory.read(0, 8)
        with pytest.raises(GuestGone):
            memory.gather(np.zeros(1, np.uint64), np.empty((1, 8), np.uint8))
        with pytest.raises(GuestGone):
            memory.check()
        memory.close()
    with pytest.raises(NotRunning, match="has ended"):
        open_qmp(path)
    with pytest.raises(GuestGone):
        open_qemu(pid)


def test_to_read_all_of_it_makes_the_host_provide_nothing(tmp_path: Path) -> None:
    ram = tmp_path / "ram"
    words = [*Q35, "-m", "256M", *nodes(*[(f"file,share=on,mem-path={ram}{n}", "128M") for n in (0, 1)])]
    border = 128 << 20
    with qemu(tmp_path, *words, planted=(border - 8, border)) as (pid, _):
        before = os.listdir("/proc/self/fd")
        memory = open_qemu(pid)
        used = sum(os.stat(f"{ram}{n}").st_blocks for n in (0, 1))
        run = memory.runs[-1]
        data = memory.read(run.start, run.size)
        assert data is not None
        assert sum(os.stat(f"{ram}{n}").st_blocks for n in (0, 1)) == used
        found = np.frombuffer(data[border - 8 - run.start :][:16], np.uint64)
        assert found.tolist() == [WORD + border - 8, WORD + border]
        memory.close()
        del data, found
        assert os.listdir("/proc/self/fd") == before
