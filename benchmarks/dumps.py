"""How fast memory becomes a dump, beside what the machine does: copying memory, the checksum alone, dd to one disk.

    python -m benchmarks.dumps [--size MIB] [--zeros PERCENT] [FOLDER]

Memory is that of a process of our own, half of it zeros by default, read as a guest's is: mapped, and by
process_vm_readv. All figures of one run are taken in turns, and are medians of `--rounds`; what counts is how they
stand to each other, and on a busy machine the seconds of processor time of all threads.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from vmi_inside import dumping, sink
from vmi_inside.drivers.mapped import MappedMemory, map_file
from vmi_inside.drivers.process_vm import Process, ProcessMemory
from vmi_inside.memory import PhysicalMemory, Run

MIB = 1 << 20


@contextmanager
def memories(size: int, zeros: float) -> Iterator[dict[str, PhysicalMemory]]:
    """The same memory twice: a file that is mapped, and a child's private memory."""
    random = np.random.default_rng(1)
    file = os.memfd_create("memory")
    os.truncate(file, size)
    shared = mmap.mmap(file, size)
    pages = np.frombuffer(shared, np.uint8).reshape(-1, 4096)
    kind = np.repeat(random.random(len(pages) // 16 + 1) >= zeros, 16)[: len(pages)]  # zeros come in runs
    pages[kind] = random.integers(0, 256, (int(kind.sum()), 4096), np.uint8)
    pages[~kind] = 0
    private = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    copy = np.frombuffer(private, np.uint8)
    copy[:] = pages.reshape(-1)
    child = os.fork()
    if not child:
        time.sleep(3600)
        os._exit(0)
    process = Process(child)
    try:
        yield {
            "mapped": MappedMemory([(Run(0, size), map_file(file))]),
            "process_vm_readv": ProcessMemory(process, [(Run(0, size), copy.ctypes.data)]),
        }
    finally:
        process.close()
        os.kill(child, 9)
        os.waitpid(child, 0)


def timed(action: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock, and of processor time."""
    started, busy = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - started, time.process_time() - busy


def dump(memory: PhysicalMemory, folder: Path, checksum: str) -> None:
    kernel: Any = SimpleNamespace(space=SimpleNamespace(memory=memory))
    with sink.new_file(folder / "dump", checksum=checksum, force=True) as file:
        dumping.write_dump(kernel, file, dumping.Dumped("", "raw"))
        file.finish()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=1024, help="MiB")
    parser.add_argument("--zeros", type=int, default=50, help="percent of the pages")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(tempfile.gettempdir()))
    told = parser.parse_args()
    size = told.size * MIB
    with memories(size, told.zeros / 100) as found, tempfile.TemporaryDirectory(dir=told.folder) as scratch:
        folder = Path(scratch)
        mapped = found["mapped"].read(0, size)
        assert mapped is not None
        whole, room = np.frombuffer(mapped, np.uint8), np.empty(size, np.uint8)
        room[:] = 0
        written = size * (100 - told.zeros) // 100 // MIB
        (folder / "random").write_bytes(np.random.default_rng(2).bytes(written * MIB))
        dd = ["dd", f"if={folder}/random", f"of={folder}/dd", "bs=4M", "status=none"]
        actions: dict[str, Callable[[], Any]] = {
            "copy memory to memory": lambda: np.copyto(room, whole),
            "SHA-256 of it": lambda: hashlib.sha256(whole).digest(),
            f"dd of the {written} MiB that are not zeros, fsync": lambda: subprocess.run(
                [*dd, "conv=fsync"], check=True
            ),
        }
        for how, memory in found.items():
            for checksum in sink.CHECKSUMS:
                actions[f"dump, {how}, {checksum}"] = lambda m=memory, c=checksum: dump(m, folder, c)  # type: ignore[misc]
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
        for _ in range(told.rounds):
            for name, action in actions.items():
                times[name].append(timed(action))
    base = statistics.median(clock for name, each in times.items() if name.startswith("dd") for clock, _ in each)
    print(f"{told.size} MiB, {told.zeros} % of it zeros, {told.folder}\n")
    print("| | MiB/s | time, dd being 1 | processor, s |\n|---|---|---|---|")
    for name, each in times.items():
        clock, busy = (statistics.median(one) for one in zip(*each, strict=True))
        print(f"| {name} | {told.size / clock:.0f} | {clock / base:.2f} | {busy:.2f} |")


if __name__ == "__main__":
    main()
