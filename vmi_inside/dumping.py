"""Dumps of a guest's memory: ELF cores with VMCOREINFO, raw images, LiME.

Knows what these files look like, and how memory gets into them quickly: in large pieces, zeros as holes, the checksum
made on the way. What a kernel tells those who dump it is `linux.vmcore`'s knowledge; whether the guest stands still,
the caller's.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import numpy as np

from vmi_inside import elf
from vmi_inside.errors import Unsupported, VmiError
from vmi_inside.kernel import Kernel
from vmi_inside.linux import vmcore
from vmi_inside.memory import PhysicalMemory, Releasing, Run
from vmi_inside.newfile import replacing
from vmi_inside.types import PAGE_SHIFT, PAGE_SIZE, U8, U64, Mask, align_up

FORMATS: Final = ("elf", "raw", "lime")

Progress = Callable[[int, int], None]
Registers = Mapping[str, int]

_STEP: Final = 4 << 20  # bytes that are read at once
_ZEROS: Final = bytes(1 << 20)
_HASHED: Final = 4  # pieces that may wait for the checksum
_RELEASED: Final = 64 << 20  # bytes after which mapped memory is let go of
#: LiME, version 1: magic, version, first and last address.
_LIME: Final = struct.Struct("<4sIQQ8x")
_NT_PRSTATUS: Final = 1
#: struct elf_prstatus (include/linux/elfcore.h): the number of the process, here of the CPU; registers; no fpu.
_PRSTATUS: Final = struct.Struct("<32xi76x27Q8x")
# struct user_regs_struct (arch/x86/include/asm/user_64.h) by gdb's names.
_ORDER: Final = (  # noqa: SIM905
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs "
    "gs"
).split()


@dataclass(slots=True)
class Dumped:
    """What became a file: of `memory` bytes `zeros` are holes, and `missing` could not be read and are zeros too.

    `size` is the file's length, `stored` what it takes on disk; `sha256` is that of the file. `paused` are the seconds
    for which the guest was kept standing. `vcpus` of them have their registers in it.
    """

    path: str
    format: str
    memory: int = 0
    zeros: int = 0
    missing: int = 0
    size: int = 0
    stored: int = 0
    sha256: str = ""
    seconds: float = 0.0
    paused: float = 0.0
    vcpus: int = 0
    vmcoreinfo: bool = False
    notices: list[str] = field(default_factory=list)


@contextmanager
def new_dump(path: str | os.PathLike[str], *, compress: bool = False, force: bool = False) -> Iterator[Sink]:
    """Where a dump is written to: a file that takes its name when all of it is on disk, or else is not there.

    Its owner alone may read it. Raises `VmiError` when `path` is there and not `force`, when the disk is full, and for
    whatever else the file system refuses; `Unsupported` when the package for `compress` is missing.
    """
    where = Path(path)
    if compress:
        _zstandard()
    if where.exists() and (not force or not where.is_file()):
        raise VmiError(f"{where} is there already" + ("; force=True writes over it" if where.is_file() else ""))
    try:
        with replacing(where, private=True) as file, (Packed if compress else Sink)(file) as sink:
            yield sink
    except OSError as error:
        left = "nothing of the dump is left" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        raise VmiError("; ".join(filter(None, (f"{where}: {error.strerror or error}", left)))) from error


class Sink:
    """Bytes on their way into a file that is empty: what is zero becomes a hole. The checksum is of all of them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._descriptor = file.fileno()
        self._hash = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        #: Bytes so far.
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write(self, data: Any) -> None:
        """Bytes, which must not change any more."""
        whole = memoryview(data).cast("B")
        self._digest(whole)
        self._put(whole)

    def zeros(self, size: int) -> None:
        """So many zeros."""
        self.size += size
        for start in range(0, size, len(_ZEROS)):
            self._digest(memoryview(_ZEROS)[: size - start])

    def memory(self, data: U8) -> int:
        """Memory, (n,) uint8, whole pages but for the end; gives how many of the bytes were in pages of zeros."""
        self._digest(data.data)
        whole = len(data) & ~(PAGE_SIZE - 1)
        full = _full(data[:whole])
        edge = np.flatnonzero(full[1:] != full[:-1]) + 1
        starts = [0, *edge.tolist()] if len(full) else []
        for first, end in zip(starts, [*starts[1:], len(full)], strict=False):
            if full[first]:
                self._put(data[first << PAGE_SHIFT : end << PAGE_SHIFT].data)
            else:
                self.size += (end - first) << PAGE_SHIFT
        self._put(data[whole:].data)
        return int(len(full) - np.count_nonzero(full)) << PAGE_SHIFT

    def finish(self) -> None:
        """All is written: the file gets its length."""
        os.ftruncate(self._descriptor, self.size)
        while self._waiting:
            self._waiting.popleft().result()

    @property
    def stored(self) -> int:
        """Bytes that the file takes on disk."""
        return os.fstat(self._descriptor).st_blocks * 512

    @property
    def sha256(self) -> str:
        """The checksum of the finished file, in hexadecimal."""
        return self._hash.hexdigest()

    def _put(self, left: memoryview) -> None:
        while left:
            done = os.pwrite(self._descriptor, left, self.size)
            self.size += done
            left = left[done:]

    def _digest(self, data: memoryview) -> None:
        """Add to the checksum, beside what else is done."""
        self._waiting.append(self._pool.submit(self._hash.update, data))
        while len(self._waiting) > _HASHED:
            self._waiting.popleft().result()


def _full(data: U8) -> Mask:
    """Which pages (n,) have anything but zeros in them."""
    return np.asarray(data.view("<u8").reshape(-1, PAGE_SIZE // 8).any(axis=1))


class Packed(Sink):
    """A `Sink` that compresses: a zstd stream, that `zstd -d --sparse` makes the same file of."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        threads = min(os.cpu_count() or 1, 8)
        self._stream = (
            _zstandard().ZstdCompressor(level=1, threads=threads).stream_writer(_Into(super().write), closefd=False)
        )

    def write(self, data: Any) -> None:
        """See `Sink.write`."""
        self._stream.write(data)

    def zeros(self, size: int) -> None:
        """See `Sink.zeros`."""
        for start in range(0, size, len(_ZEROS)):
            self._stream.write(memoryview(_ZEROS)[: size - start])

    def memory(self, data: U8) -> int:
        """See `Sink.memory`."""
        self._stream.write(data)
        full = _full(data[: len(data) & ~(PAGE_SIZE - 1)])
        return int(len(full) - np.count_nonzero(full)) << PAGE_SHIFT

    def finish(self) -> None:
        """See `Sink.finish`."""
        self._stream.close()
        super().finish()


class _Into:
    """A file as a compressor needs it."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def write(self, data: bytes) -> int:
        """Take what was compressed."""
        self._write(bytes(data))
        return len(data)


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise Unsupported("compressed dumps need a package: pip install 'vmi-inside[zstd]'") from None
    return zstandard


def write_dump(
    kernel: Kernel, sink: Sink, made: Dumped, *, registers: Sequence[Registers] = (), progress: Progress | None = None
) -> None:
    """Write all of the guest's memory in the format `made.format`, and into `made` what was written.

    `registers` are those of each vCPU, by gdb's names, for a core. Raises `GuestGone`, OSError.
    """
    memory, told = kernel.space.memory, progress or (lambda done, total: None)
    runs = memory.runs
    total = sum(run.size for run in runs)
    if made.format == "elf":
        sink.write(_core_header(kernel, made, runs, registers))
    end = 0
    for run in runs:
        if made.format == "lime":
            sink.write(_LIME.pack(b"EMiL", 1, run.start, run.end - 1))
        elif made.format == "raw":
            sink.zeros(run.start - end)
            end = run.end
        for data in _pieces(memory, run, made):
            made.zeros += sink.memory(data)
            made.memory += len(data)
            told(made.memory, total)
        if made.format == "elf":
            sink.zeros(-run.size % PAGE_SIZE)
    if made.missing:
        made.notices.append(f"{made.missing:#x} bytes could not be read; zeros stand for them")


def _pieces(memory: PhysicalMemory, run: Run, made: Dumped) -> Iterator[U8]:
    """A run's bytes, piece by piece; each is read while the one before is written."""
    with ThreadPoolExecutor(1) as pool:
        ahead: Future[tuple[U8, int]] | None = None
        since = 0
        for start in range(run.start, run.end, _STEP):
            size = min(_STEP, run.end - start)
            now, ahead = ahead, pool.submit(_read, memory, start, size)
            if now is not None:
                data, missing = now.result()
                made.missing += missing
                yield data
            since += size
            if since >= _RELEASED and isinstance(memory, Releasing):
                memory.release()
                since = 0
        if ahead is not None:
            data, missing = ahead.result()
            made.missing += missing
            yield data


def _read(memory: PhysicalMemory, start: int, size: int) -> tuple[U8, int]:
    """Memory as it is now, copied, and how much of it could not be read: that is zeros."""
    found = memory.read(start, size)
    if found is not None:
        return np.frombuffer(found, np.uint8).copy() if size < 2 << 20 else np.frombuffer(found, np.uint8), 0
    pa: U64 = np.arange(start, start + size, PAGE_SIZE, dtype=np.uint64)
    rows = np.empty((len(pa), PAGE_SIZE), np.uint8)
    ok = memory.gather(pa, rows)
    return rows.reshape(-1), int(len(ok) - np.count_nonzero(ok)) << PAGE_SHIFT


def _core_header(kernel: Kernel, made: Dumped, runs: Sequence[Run], registers: Sequence[Registers]) -> bytes:
    """All that stands before memory in an ELF core, padded to a page.

    As in a kernel's own /proc/vmcore: notes of CPUs, VMCOREINFO, the kernel's image at its own addresses, then all
    memory at those of the direct map. The image is no second copy: both headers name the same bytes.
    """
    notes = b"".join(_prstatus(number, state) for number, state in enumerate(registers))
    info = vmcore.vmcoreinfo(kernel)
    if info:
        notes += elf.note("VMCOREINFO", 0, info)
    else:
        made.notices.append("the kernel keeps no VMCOREINFO: crash and drgn will not know the dump")
    made.vcpus, made.vmcoreinfo = len(registers), bool(info)
    direct, image = vmcore.direct_map(kernel), vmcore.image(kernel)
    inside = [run for run in runs if image and run.start <= image.pa and image.pa + image.size <= run.end]
    count = 1 + len(inside) + len(runs)
    if count >= elf.PN_XNUM:
        raise Unsupported(f"the guest's memory is in {len(runs)} parts, too many for an ELF core; use another format")
    at = elf.HEADER.size + count * elf.PROGRAM.size
    offset = begin = align_up(at + len(notes), PAGE_SIZE)
    header = elf.HEADER.pack(elf.IDENT, elf.ET_CORE, elf.EM_X86_64, 1, 0, elf.HEADER.size, 0, 0, elf.HEADER.size,
                             elf.PROGRAM.size, count, 0, 0, 0)  # fmt: skip
    programs = [elf.PROGRAM.pack(elf.PT_NOTE, 0, at, 0, 0, len(notes), 0, 4)]
    for run in runs:
        if image and run in inside:
            where = offset + image.pa - run.start
            programs.insert(1, elf.PROGRAM.pack(
                elf.PT_LOAD, 7, where, image.va, image.pa, image.size, image.size, PAGE_SIZE
            ))  # fmt: skip
        programs.append(elf.PROGRAM.pack(
            elf.PT_LOAD, 7, offset, direct + run.start, run.start, run.size, run.size, PAGE_SIZE
        ))  # fmt: skip
        offset += align_up(run.size, PAGE_SIZE)
    return (header + b"".join(programs) + notes).ljust(begin, b"\0")


def _prstatus(number: int, state: Registers) -> bytes:
    """NT_PRSTATUS of one vCPU, numbered from 1, as QEMU does it."""
    words = (state.get(name, 0) & (1 << 64) - 1 for name in _ORDER)
    return elf.note("CORE", _NT_PRSTATUS, _PRSTATUS.pack(number + 1, *words))
