"""A live QEMU's guest memory, on this host: mapped where it is shared, copied by process_vm_readv where it is private.

Knows how the ways to find and to reach RAM go together, and how to open what another process has mapped. Where RAM lies
is told by `qemu_layout` and `monitor`; the reading is done by `mapped` and `process_vm`. Which process it is, the
caller says.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from vmi_inside.drivers import monitor, qemu_layout
from vmi_inside.drivers.mapped import MappedMemory, map_file
from vmi_inside.drivers.process_vm import Process, ProcessMemory, WritableProcessMemory
from vmi_inside.drivers.qemu_layout import Extent, LayoutUnknown, Mapping
from vmi_inside.errors import AttachError, NoMemory
from vmi_inside.memory import Releasing, Run
from vmi_inside.types import PAGE_SIZE, U8, U64, Mask, align_down, align_up

LARGE: Final = 2 << 20


@dataclass(frozen=True, slots=True)
class _File:
    """A file of shared memory: its descriptor, and all of it, mapped."""

    fd: int
    array: U8


class SharedMemory(MappedMemory):
    """`MappedMemory` of a live guest: runs, each with a file and its first byte's offset in there.

    Large reads are copied out of the file. To look at a page through a mapping makes the host provide it, where the
    guest has never touched it, and counts it as our memory; a scan of all RAM must do neither.
    """

    def __init__(self, pieces: Sequence[tuple[Run, _File, int]], *closers: Callable[[], object], how: str) -> None:
        arrays = [(run, file.array[offset : offset + run.size]) for run, file, offset in pieces]
        super().__init__(arrays, *closers, how=how)
        self._files = [(file.fd, offset) for _, file, offset in sorted(pieces, key=lambda piece: piece[0])]

    def read(self, pa: int, size: int) -> bytes | memoryview | None:
        """See `PhysicalMemory.read`: a view, or from 2 MiB on a copy."""
        parts = self._placement.parts(pa, size) if size >= LARGE else None
        if parts is None:
            return super().read(pa, size)
        data = np.empty(size, np.uint8).data
        done = 0
        for piece, offset, length in parts:
            fd, first = self._files[piece]
            end = done + length
            while done < end:
                got = os.preadv(fd, [data[done:end]], first + offset + length - (end - done))
                if not got:  # the file was cut short
                    return None
                done += got
        return data.toreadonly()


class QemuMemory:
    """`PhysicalMemory` of a running QEMU process; `parts` are the memories that it consists of.

    `how` says for people how RAM is reached, `notices` what else they should know. Every read raises `GuestGone` once
    the process has ended: a mapping outlives it, and would go on showing the dead guest.
    """

    def __init__(self, process: Process, parts: Sequence[MappedMemory | ProcessMemory], notices: Iterable[str]) -> None:
        self.process = process
        self.how = "; ".join(part.how for part in parts)
        self.notices = list(notices)
        self.runs: tuple[Run, ...] = _joined(run for part in parts for run in part.runs)
        self._parts = tuple(parts)
        self._only = parts[0] if len(parts) == 1 else None
        #: See `Flat`.
        self.flat = self._only is not None
        #: See `Words.word`: of mapped memory itself, which is quicker by what a call costs.
        self.word: Callable[[int], int | None] = (
            self._only.word if isinstance(self._only, MappedMemory) else lambda pa: None
        )

    def gather(self, pa: U64, out: U8) -> Mask:
        """See `PhysicalMemory.gather`."""
        if self._only is not None:
            ok = self._only.gather(pa, out)
        else:
            ok = np.zeros(len(pa), np.bool_)
            for part in self._parts:
                rows = np.flatnonzero(~ok)
                some = np.empty((len(rows), out.shape[1]), np.uint8)
                ok[rows] = part.gather(pa[rows], some)
                out[rows] = some
        self.process.check()
        return ok

    def read(self, pa: int, size: int) -> bytes | memoryview | None:
        """See `PhysicalMemory.read`."""
        self.process.check()
        for part in self._parts:
            found = part.read(pa, size)
            if found is not None:
                return found
        # From one part into another: cut at the borders of every part's runs.
        cuts = sorted(
            {pa, pa + size, *(c for p in self._parts for r in p.runs for c in (r.start, r.end) if pa < c < pa + size)}
        )
        pieces = [self._piece(start, end - start) for start, end in pairwise(cuts)]
        good = [piece for piece in pieces if piece is not None]
        return b"".join(good) if pieces and len(good) == len(pieces) else None

    def check(self) -> None:
        """Raise `GuestGone` when the QEMU process has ended."""
        self.process.check()

    @property
    def resident_limit(self) -> int:
        """See `Releasing.resident_limit`."""
        return max((part.resident_limit for part in self._parts if isinstance(part, Releasing)), default=0)

    @resident_limit.setter
    def resident_limit(self, limit: int) -> None:
        for part in self._parts:
            if isinstance(part, Releasing):
                part.resident_limit = limit

    def release(self) -> None:
        """See `Releasing.release`."""
        for part in self._parts:
            if isinstance(part, Releasing):
                part.release()

    def close(self) -> None:
        """Release mappings and descriptors."""
        for part in self._parts:
            part.close()
        self.process.close()

    def _piece(self, pa: int, size: int) -> bytes | memoryview | None:
        return next((found for part in self._parts if (found := part.read(pa, size)) is not None), None)


class WritableSharedMemory(SharedMemory):
    """`SharedMemory` whose files were opened for writing."""

    def write(self, pa: int, data: bytes) -> None:
        """See `WritableMemory.write`. What is read through stays read-only; a write maps its pages for itself."""
        parts = self._placement.parts(pa, len(data))
        if parts is None:
            raise NoMemory(pa, len(data))
        done = 0
        for piece, offset, length in parts:
            fd, first = self._files[piece]
            page = max(PAGE_SIZE, os.fstatvfs(fd).f_bsize)  # hugetlbfs maps whole huge pages only, and has no pwrite
            low = align_down(first + offset, page)
            lead = first + offset - low
            with mmap.mmap(fd, align_up(lead + length, page), mmap.MAP_SHARED, mmap.PROT_WRITE, offset=low) as window:
                window[lead : lead + length] = data[done : done + length]
            done += length


class WritableQemuMemory(QemuMemory):
    """`QemuMemory` that was opened for writing: `WritableMemory`.

    QEMU is not told: a migration that is under way misses what is written here, and code that QEMU's own translator
    (TCG) has translated already goes on as it was. Code is written through the gdb stub.
    """

    def write(self, pa: int, data: bytes) -> None:
        """See `WritableMemory.write`."""
        self.scatter(np.array([pa], np.uint64), np.frombuffer(data, np.uint8).reshape(1, -1))

    def scatter(self, pa: U64, data: U8) -> None:
        """See `WritableMemory.scatter`."""
        self.process.check()
        plan: list[tuple[WritableSharedMemory | WritableProcessMemory, int, bytes]] = []
        for at, row in zip(pa.tolist(), data, strict=True):
            plan += self._plan(at, row.tobytes())
        for part, at, piece in plan:
            part.write(at, piece)
        self.process.check()

    def _plan(self, pa: int, data: bytes) -> Iterator[tuple[WritableSharedMemory | WritableProcessMemory, int, bytes]]:
        done = 0
        while done < len(data):
            here = pa + done
            for part in self._parts:
                run = next((run for run in part.runs if run.start <= here < run.end), None)
                if run is not None and isinstance(part, (WritableSharedMemory, WritableProcessMemory)):
                    step = min(len(data) - done, run.end - here)
                    yield part, here, data[done : done + step]
                    done += step
                    break
            else:
                raise NoMemory(pa, len(data))


def open_qemu(
    pid: int,
    *,
    hmp: Callable[[str], str] | None = None,
    name: str | None = None,
    monitor_notice: str | None = "the guest's memory layout was asked of QEMU's monitor",
    writable: bool = False,
) -> QemuMemory:
    """The guest memory of the QEMU process `pid`; the guest is not paused, nor asked anything.

    Read-only; with `writable` it is a `WritableQemuMemory`, and shared files are opened for writing too.

    `hmp` runs a command of QEMU's human monitor. It is used only when the command line and the maps of the process do
    not tell where RAM lies, and `monitor_notice` is then among the notices. Raises `PermissionDenied`, `GuestGone`,
    and `Unsupported` when the layout cannot be told.
    """
    process = Process(pid, name)
    notices: list[str] = []
    try:
        try:
            argv, maps = _look(process)
            layout = qemu_layout.layout(argv)
            extents = qemu_layout.extents(layout, qemu_layout.find(layout.blocks, maps))
        except LayoutUnknown as reason:
            if hmp is None:
                raise LayoutUnknown(
                    f"{process.name}: cannot tell for sure where the guest's memory lies: {reason}; "
                    "QEMU's monitor is needed: attach by libvirt or with qmp:SOCKET"
                ) from reason
            extents = monitor.extents(hmp)
            _, maps = _look(process)
            if monitor_notice:
                notices.append(f"{monitor_notice} ({reason})")
        parts = _parts(process, extents, maps, writable)
        return (WritableQemuMemory if writable else QemuMemory)(process, parts, notices)
    except BaseException:
        process.close()
        raise


def _look(process: Process) -> tuple[list[str], list[Mapping]]:
    """The command line and the maps of a process."""
    try:
        with open(f"/proc/{process.pid}/cmdline", "rb") as cmdline:
            argv = [os.fsdecode(word) for word in cmdline.read().split(b"\0")[:-1]]
        with open(f"/proc/{process.pid}/maps", encoding="utf-8", errors="surrogateescape") as text:
            maps = qemu_layout.parse_maps(text.read())
    except PermissionError as error:
        raise process.denied() from error
    except (FileNotFoundError, ProcessLookupError) as error:
        raise process.gone() from error
    process.check()
    return argv, maps


def _parts(
    process: Process, extents: Iterable[Extent], maps: Sequence[Mapping], writable: bool
) -> list[MappedMemory | ProcessMemory]:
    """Each extent in the memory that reaches it best."""
    files: dict[tuple[tuple[int, int], int], _File | None] = {}
    shared: list[tuple[Run, _File, int]] = []
    copied: list[tuple[Run, int]] = []
    kinds: set[str] = set()
    with ExitStack() as undo:
        for extent in sorted(extents):
            behind = next((m for m in maps if m.start <= extent.address < m.end), None)
            if behind is not None and behind.shared and behind.inode:
                key = behind.device, behind.inode
                if key not in files:
                    files[key] = file = _open(process.pid, behind, writable)
                    if file is not None:
                        undo.callback(os.close, file.fd)
                file = files[key]
                offset = behind.offset + extent.address - behind.start
                if file is not None and offset + extent.run.size <= len(file.array):
                    shared.append((extent.run, file, offset))
                    kinds.add(_kind(behind))
                    continue
            copied.append((extent.run, extent.address))
        parts: list[MappedMemory | ProcessMemory] = []
        if copied:
            parts.append((WritableProcessMemory if writable else ProcessMemory)(process, copied))
        process.check()  # what was opened by its number was its own
        if shared:
            how = f"mapped, {' and '.join(sorted(kinds))}"
            kind = WritableSharedMemory if writable else SharedMemory
            parts.insert(0, kind(shared, undo.pop_all().close, how=how))
        return parts


def _kind(mapping: Mapping) -> str:
    path = mapping.path.removesuffix(" (deleted)")
    return (
        "shared memfd"
        if path.startswith("/memfd:")
        else "shared memory"
        if path == "/dev/zero"
        else f"shared file {path}"
    )


def _open(pid: int, mapping: Mapping, writable: bool) -> _File | None:
    """What stands behind a shared mapping, opened, and mapped here read-only; None if that is refused.

    By its place in the maps, which needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, or by the descriptor that the process
    holds, which does not. Both work for deleted files, memfds, and across mount namespaces.
    """
    with suppress(OSError, AttachError):
        return _file(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}", mapping, writable)
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError, AttachError):
                if entry.stat().st_ino == mapping.inode:
                    return _file(entry.path, mapping, writable)
    return None


def _file(path: str, mapping: Mapping, writable: bool) -> _File:
    fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        device = os.major(status.st_dev), os.minor(status.st_dev)
        if (device, status.st_ino) != (mapping.device, mapping.inode):
            raise AttachError(f"{path} is not what is mapped")
        return _File(fd, map_file(fd, name=path))
    except BaseException:
        os.close(fd)
        raise


def _joined(runs: Iterable[Run]) -> tuple[Run, ...]:
    """`runs` ascending, those that adjoin made one."""
    found: list[Run] = []
    for run in sorted(runs):
        if found and found[-1].end == run.start:
            found[-1] = Run(found[-1].start, found[-1].size + run.size)
        else:
            found.append(run)
    return tuple(found)
