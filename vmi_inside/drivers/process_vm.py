"""Guest RAM in another process's private memory, copied out by process_vm_readv(2), written by process_vm_writev(2).

Knows the system call, its vectors and its errors, and how to notice that the process is gone. Which ranges of which
process are guest RAM is told by `qemu`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside.drivers.placement import Placement
from vmi_inside.errors import AttachError, GuestGone, NoMemory, PermissionDenied, VmiError
from vmi_inside.memory import Run
from vmi_inside.types import PAGE_SIZE, U8, U64, Mask

IOV_MAX: Final = 1024  # vectors a call; include/uapi/linux/uio.h, UIO_MAXIOV
_MAX_BYTES: Final = 1 << 30  # bytes a call; the kernel stops at 2 GiB less a page

_libc = ctypes.CDLL(None, use_errno=True)
_readv = _libc.process_vm_readv
_readv.restype = ctypes.c_ssize_t
_readv.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
_writev = _libc.process_vm_writev
_writev.restype = ctypes.c_ssize_t
_writev.argtypes = _readv.argtypes
_Iovec = ctypes.c_uint64 * 2


class Process:
    """A running process, held by a pidfd, so that another one that inherits its number is not taken for it.

    Raises `GuestGone` when there is no such process.
    """

    def __init__(self, pid: int, name: str | None = None) -> None:
        self.pid = pid
        self.name = name or f"QEMU process {pid}"
        try:
            self._pidfd = os.pidfd_open(pid)
        except (ProcessLookupError, OverflowError) as error:
            raise GuestGone(f"{self.name}: there is no process {pid}") from error
        self._exit = select.epoll()  # level-triggered, cheap, and safe to share between threads
        self._exit.register(self._pidfd, select.EPOLLIN)

    def check(self) -> None:
        """Raise `GuestGone` if the process has ended."""
        if self._exit.closed or self._exit.poll(0, 1):
            raise self.gone()

    def gone(self) -> GuestGone:
        """The error that says that the process has ended."""
        return GuestGone(f"{self.name}: the guest is gone (its QEMU process, pid {self.pid}, ended); attach again")

    def denied(self) -> PermissionDenied:
        """The error that says that its memory may not be read."""
        try:
            with open("/proc/sys/kernel/yama/ptrace_scope") as setting:
                scope = setting.read().strip()
        except OSError:
            scope = "0"
        yama = f"; kernel.yama.ptrace_scope is {scope}, so the same user is not enough" if scope != "0" else ""
        need = "CAP_SYS_PTRACE" if yama else "CAP_SYS_PTRACE or the same user"
        return PermissionDenied(
            f"{self.name}: cannot read QEMU's memory (pid {self.pid}): needs {need}{yama}; try sudo"
        )

    def close(self) -> None:
        """Let go of the process."""
        if not self._exit.closed:
            self._exit.close()
            os.close(self._pidfd)


class ProcessMemory:
    """`PhysicalMemory` over `blocks` of a process: pairs of a `Run` and the address of its first byte in there.

    Does not close `process`. Raises `PermissionDenied` at once when the process may not be read, `GuestGone` when it
    has ended. About 8 µs a call, and 0.2 µs a row, of whole pages 0.7 µs.
    """

    #: See `Flat`.
    flat = True

    def __init__(self, process: Process, blocks: Iterable[tuple[Run, int]]) -> None:
        found = sorted(blocks)
        self.runs: tuple[Run, ...] = tuple(run for run, _ in found)
        self.how = f"process_vm_readv, pid {process.pid}"
        self._process = process
        self._at = [address for _, address in found]
        self._placement = Placement(self.runs, self._at)
        if self.runs:
            self.read(self.runs[0].start, 1)

    def gather(self, pa: U64, out: U8) -> Mask:
        """See `PhysicalMemory.gather`. One system call for 1,024 rows, one more for each row that fails."""
        place, ok, complete = self._placement.locate(pa, out.shape[1])
        if complete:
            self._copy(place, out, ok)
        else:
            some = np.empty((int(ok.sum()), out.shape[1]), np.uint8)
            good = np.ones(len(some), np.bool_)
            self._copy(place[ok], some, good)
            out[:] = 0
            out[ok] = some
            ok[ok] = good
        return ok

    def read(self, pa: int, size: int) -> bytes | memoryview | None:
        """See `PhysicalMemory.read`. A copy, made by one system call for each GiB."""
        one = self._placement.within(pa, size)
        if one is not None and size <= PAGE_SIZE:
            small = ctypes.create_string_buffer(size)
            got = self._call(_Iovec(ctypes.addressof(small), size), _Iovec(self._at[one[0]] + one[1], size), 1)
            self._process.check()
            return small.raw if got == size else None
        parts = self._placement.parts(pa, size)
        if parts is None:
            return None
        data = np.empty(size, np.uint8)
        into = data.ctypes.data
        for run, offset, length in parts:
            at = self._at[run] + offset
            for done in range(0, length, _MAX_BYTES):
                step = min(length - done, _MAX_BYTES)
                if self._call(_Iovec(into + done, step), _Iovec(at + done, step), 1) != step:
                    return None
            into += length
        self._process.check()
        return data.data.toreadonly()

    def close(self) -> None:
        """Forget the blocks."""
        self.runs = ()
        self._placement = Placement((), ())

    def _copy(self, place: U64, out: U8, ok: Mask) -> None:
        """Fill the rows of `out` from `place`; where that cannot be read, zero the row and clear its `ok`."""
        count, width = out.shape
        remote = np.empty((count, 2), np.uint64)  # an array of struct iovec
        remote[:, 0] = place
        remote[:, 1] = width
        local, vectors = out.ctypes.data, remote.ctypes.data
        most = min(IOV_MAX, max(_MAX_BYTES // width, 1))
        row = 0
        while row < count:
            rows = min(count - row, most)
            got = self._call(_Iovec(local + row * width, rows * width), vectors + row * 16, rows)
            row += got // width
            if got < rows * width:  # the row at which the kernel stopped
                out[row] = 0
                ok[row] = False
                row += 1
        self._process.check()  # afterwards: while the process lives, its number is nobody else's

    def _call(
        self, local: ctypes.Array[ctypes.c_uint64], remote: ctypes.Array[ctypes.c_uint64] | int, count: int
    ) -> int:
        """Bytes copied: fewer than asked for, or 0, when a page cannot be read."""
        got: int = _readv(self._process.pid, local, 1, remote, count, 0)
        return got if got >= 0 else self._failed("process_vm_readv")

    def _failed(self, call: str) -> int:
        """0 where an address could not be reached; else the error is raised that the system call ended with."""
        code = ctypes.get_errno()
        if code == errno.EFAULT:
            return 0
        if code == errno.ESRCH:
            raise self._process.gone()
        if code == errno.EPERM:
            raise self._process.denied()
        if code == errno.ENOSYS:
            raise AttachError(f"this kernel has no {call} (CONFIG_CROSS_MEMORY_ATTACH)")
        raise VmiError(f"{self._process.name}: {call}: {os.strerror(code)}")


class WritableProcessMemory(ProcessMemory):
    """`ProcessMemory` that may be written to, by process_vm_writev(2); it needs no more rights than reading."""

    def write(self, pa: int, data: bytes) -> None:
        """See `WritableMemory.write`."""
        parts = self._placement.parts(pa, len(data))
        if parts is None:
            raise NoMemory(pa, len(data))
        local = ctypes.create_string_buffer(data, len(data))
        done = 0
        for run, offset, length in parts:
            remote = _Iovec(self._at[run] + offset, length)
            got: int = _writev(self._process.pid, _Iovec(ctypes.addressof(local) + done, length), 1, remote, 1, 0)
            if got < 0:
                got = self._failed("process_vm_writev")
            self._process.check()
            if got != length:
                raise NoMemory(pa + done, length)
            done += length
