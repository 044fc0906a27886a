"""Guest memory through LibVMI: a domain of Xen or KVM, or a raw image of memory by its FILE driver.

Knows LibVMI's C interface as the PyPI package `libvmi` binds it, without any of what LibVMI knows of operating systems:
no configuration, System.map or profile is needed, and page tables are walked by us, so that five levels of them work.
What guests run is left to others, and what a machine is told to do to `libvmimachine`.

Faults of LibVMI, as in the wheel of 3.7.1 or its sources, that are worked around here:

- pages of a file stay in its cache for good, those of KVM for a second: the cache is emptied before every reading;
- `vmi_init` of a file that cannot be opened ends the process: the file is opened first, and named by its descriptor;
- it prints its errors, to standard output: what it says on opening becomes part of our error;
- an instance serves one thread at a time, though its functions let others run: there is a lock;
- written on KVM without a patched QEMU, bytes go to descriptor 0 of this process: nothing is written on KVM at all;
- on KVM without that patch it refuses QEMU x.8 and x.9 of all x from 2 on, and lets others pass, of which none since
  2.8 has the patch: reading falls back to the monitor's `xp`, which is slow, and `qmp:` or the domain's name is better;
- a name with a slash is looked for as a file: a domain of such a name is given by its id.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from typing import Any, Final

import numpy as np

from vmi_inside.drivers import dump, raw
from vmi_inside.drivers.dumpfile import DumpFile
from vmi_inside.drivers.placement import Placement
from vmi_inside.drivers.process_vm import Process
from vmi_inside.drivers.qemu_layout import VGA_HOLE
from vmi_inside.errors import AttachError, BadDump, ControlError, NoMemory, NoSuchDomain, PermissionDenied, Unsupported
from vmi_inside.memory import Run
from vmi_inside.types import PAGE_SHIFT, PAGE_SIZE, U8, U64, Mask

#: Pages that are read before their rows are copied out: 16 MiB.
_PAGES: Final = 1 << 12
_FOUR_GIB: Final = 1 << 32
#: QEMU's file of guest RAM, as it can be named from outside.
_OF_PROCESS: Final = re.compile(r"/proc/(\d+)/(?:fd|map_files)/[^/]+$")
_libc = ctypes.CDLL(None)
_KINDS: Final = ("xen", "kvm", "file")

_ANSWER: Final = "libvmi: "
_HOW: Final = (
    "pip install 'vmi-inside[libvmi]'"
    if sys.version_info < (3, 12)
    else "its wheels are for Python up to 3.11; build it for this one against a system's LibVMI: pip install libvmi"
)
EXTRA: Final = f"LibVMI is not installed here; install it: {_HOW}"


class LibvmiMemory:
    """`PhysicalMemory` through one LibVMI instance; `runs`, the first byte of each at the place `at` for LibVMI.

    `process` is the one whose guest it is, where that is known: reading raises `GuestGone` once it has ended.
    About 4 µs a page from a file.
    """

    def __init__(
        self, instance: Any, kind: str, runs: Sequence[Run], at: Sequence[int], *, process: Process | None = None,
        file: int = -1, notices: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.runs = tuple(runs)
        self.kind = kind
        self.how = f"LibVMI, {kind}"
        self.notices = list(notices)
        self._ffi, self._lib = package()
        self._instance = instance
        self._at = tuple(at)
        self._placement = Placement(self.runs, self._at)
        self._process = process
        self._descriptor = file
        self._read_count = self._ffi.new("size_t *")
        self._lock = threading.RLock()

    def gather(self, pa: U64, out: U8) -> Mask:
        """See `PhysicalMemory.gather`. Each page that rows lie in is read once."""
        width = out.shape[1]
        place, ok, _ = self._placement.locate(pa, width)
        wanted = np.flatnonzero(ok)
        page, row_page = np.unique(place[wanted] >> np.uint64(PAGE_SHIFT), return_inverse=True)
        out[~ok] = 0
        order = np.argsort(row_page, kind="stable")
        with self._reading():
            for start in range(0, len(page), _PAGES):
                some = page[start : start + _PAGES]
                data = np.empty(len(some) * PAGE_SIZE + width, np.uint8)  # room for the window behind the last byte
                good = self._pages(some, data)
                low, high = np.searchsorted(row_page[order], (start, start + len(some)))
                picked = order[low:high]
                rows = wanted[picked]
                index = row_page[picked] - start
                offset = index * PAGE_SIZE + (place[rows] & np.uint64(PAGE_SIZE - 1)).astype(np.intp)
                out[rows] = np.lib.stride_tricks.sliding_window_view(data, width)[offset]
                bad = rows[~good[index]]
                ok[bad] = False
                out[bad] = 0
        return ok

    def read(self, pa: int, size: int) -> bytes | memoryview | None:
        """See `PhysicalMemory.read`. A copy."""
        parts = self._placement.parts(pa, size)
        if parts is None:
            return None
        data = np.empty(size, np.uint8)
        done = 0
        with self._reading():
            for run, offset, length in parts:
                if self._copy(self._at[run] + offset, data[done : done + length]) != length:
                    return None
                done += length
        return data.data.toreadonly()

    def close(self) -> None:
        """Let go of LibVMI's instance."""
        with self._lock:
            self.runs = ()
            self._placement = Placement((), ())
            instance, self._instance = self._instance, None
            if instance is not None:
                with quiet():
                    self._lib.vmi_destroy(instance)
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
            if self._process is not None:
                self._process.close()

    @contextmanager
    def instance(self) -> Iterator[tuple[Any, Any, Any]]:
        """LibVMI's `ffi`, its `lib` and the instance, which are this thread's alone meanwhile."""
        with self._lock:
            if self._instance is None:
                raise ControlError(f"{self.how}: it was let go of already; attach again")
            yield self._ffi, self._lib, self._instance

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """One reading: nothing of an earlier one is in LibVMI's cache."""
        with self._lock:
            self._lib.vmi_pagecache_flush(self._instance)
            if self.kind == "file":
                yield
            else:
                with quiet():  # pages that are not RAM make it talk
                    yield
        if self._process is not None:
            self._process.check()

    def _pages(self, page: U64, data: U8) -> Mask:
        """Read whole pages, ascending, one behind the other; pages that adjoin in one call. Gives which could be."""
        good = np.ones(len(page), np.bool_)
        first = np.flatnonzero(np.concatenate(([True], np.diff(page) != 1)))
        for start, end in zip(first.tolist(), [*first[1:].tolist(), len(page)], strict=True):
            here = start
            while here < end:
                part = data[here * PAGE_SIZE : end * PAGE_SIZE]
                here += self._copy(int(page[here]) << PAGE_SHIFT, part) >> PAGE_SHIFT
                if here < end:  # the page at which LibVMI stopped
                    data[here * PAGE_SIZE : (here + 1) * PAGE_SIZE] = 0
                    good[here] = False
                    here += 1
        return good

    def _copy(self, at: int, into: U8) -> int:
        """Copy memory from LibVMI's address `at` into a contiguous array; gives how many bytes came, in whole pages."""
        self._read_count[0] = 0
        pointer = self._ffi.cast("void *", into.ctypes.data)
        self._lib.vmi_read_pa(self._instance, at, len(into), pointer, self._read_count)
        return int(self._read_count[0])


class WritableLibvmiMemory(LibvmiMemory):
    """`LibvmiMemory` that can be written to: of a Xen domain alone."""

    def write(self, pa: int, data: bytes) -> None:
        """See `WritableMemory.write`."""
        self.scatter(np.array([pa], np.uint64), np.frombuffer(data, np.uint8).reshape(1, -1))

    def scatter(self, pa: U64, data: U8) -> None:
        """See `WritableMemory.scatter`."""
        size = data.shape[1]
        for at in pa.tolist():
            if self.read(at, size) is None:
                raise NoMemory(at, size)
        with self._lock, quiet():
            for at, row in zip(pa.tolist(), data, strict=True):
                kept = np.ascontiguousarray(row)
                pointer = self._ffi.cast("void *", kept.ctypes.data)
                if self._lib.vmi_write_pa(self._instance, at, size, pointer, self._read_count):
                    raise NoMemory(at, size)


def open_file(path: str, *, split: int | None = None) -> LibvmiMemory:
    """A raw image of memory, or QEMU's file of a guest's RAM, through LibVMI's FILE driver; `split` as of `raw`.

    Raises `NoSuchDomain`, `PermissionDenied`, `BadDump` for what is no raw image, `Unsupported` without the package.
    """
    ffi, lib = package()
    file = DumpFile(path)
    kind = dump.format_of(file)
    if kind != "raw":
        raise BadDump(f"{path} is a dump of the format {kind}, which LibVMI does not read; attach to file:{path}")
    runs = raw.open_raw(file, split=split).runs
    of_process = _OF_PROCESS.match(path)
    process = Process(int(of_process[1])) if of_process else None
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        instance = _opened(ffi, lib, "file", f"/proc/self/fd/{descriptor}", path)
        return LibvmiMemory(instance, "file", runs, [0, split or 0][: len(runs)], process=process, file=descriptor)
    except BaseException as error:
        if process is not None:
            process.close()
        if descriptor >= 0:
            os.close(descriptor)
        if isinstance(error, PermissionError):
            raise PermissionDenied(f"{path}: permission denied; try sudo") from None
        raise


def open_domain(name: str, *, writable: bool = False) -> LibvmiMemory:
    """The memory of a domain of Xen or KVM, by its name or id, with whatever LibVMI finds it.

    Raises `NoSuchDomain`, `AttachError`, `Unsupported` without the package, and for `writable` on KVM.
    """
    ffi, lib = package()
    mode = ffi.new("vmi_mode_t *")
    with quiet() as said:
        failed = lib.vmi_get_access_mode(ffi.NULL, _named(ffi, name), _flag(lib, name), ffi.NULL, mode)
    if failed or mode[0] not in (lib.VMI_XEN, lib.VMI_KVM):
        raise NoSuchDomain(f"libvmi:{name}: LibVMI finds no such domain{hint(said)}")
    kind = _KINDS[mode[0]]
    if writable and kind != "xen":
        raise Unsupported(f"libvmi:{name}: what LibVMI writes on KVM does not reach the guest; attach by the "
                          "domain's name, or qmp:SOCKET")  # fmt: skip
    if kind == "xen":
        _check_kind(name)
    instance = _opened(ffi, lib, kind, name, name)
    top = int(lib.vmi_get_max_physical_address(instance))
    runs = _told_by_xen(int(lib.vmi_get_vmid(instance))) if kind == "xen" else ()
    runs = runs or live_runs(kind, int(lib.vmi_get_memsize(instance)), top)
    notices = ("LibVMI reads KVM guests through QEMU's monitor, which is slow",) if kind == "kvm" else ()
    made = WritableLibvmiMemory if writable else LibvmiMemory
    return made(instance, kind, runs, [run.start for run in runs], notices=notices)


def _check_kind(name: str) -> None:
    """Raise `Unsupported` for a PV guest of Xen, where that can be seen: LibVMI reads its pages as if it were none."""
    from vmi_inside.drivers import xen

    try:
        kinds = {domain.info.kind for domain in xen.list_domains() if name in (domain.name, str(domain.id))}
    except (AttachError, Unsupported):
        return
    if "pv" in kinds:
        raise Unsupported(f"libvmi:{name}: LibVMI does not know how a Xen PV guest lays out its memory; try xen:{name}")


def _told_by_xen(number: int) -> tuple[Run, ...]:
    """Where the RAM of a domain is, by Xen's own library, which says what LibVMI does not; none where it cannot say."""
    from vmi_inside.drivers.xenlib import Xen
    from vmi_inside.drivers.xenram import ram

    try:
        xen = Xen()
    except (AttachError, Unsupported):
        return ()
    try:
        return ram(xen, number)
    except AttachError:
        return ()
    finally:
        xen.close()


def live_runs(kind: str, size: int, top: int) -> tuple[Run, ...]:
    """Where the RAM of a domain is, by what LibVMI tells: its bytes, and the highest address.

    On KVM reading elsewhere would ask devices; Xen maps nothing there, and such pages are just not readable, each after
    a long way through LibVMI: see `_told_by_xen`.
    """
    if kind != "kvm":
        return (Run(0, top),)
    low = size - max(top - _FOUR_GIB, 0)
    if not VGA_HOLE.end < low <= _FOUR_GIB:
        raise Unsupported(f"LibVMI tells of {size:#x} bytes of RAM up to {top:#x}, which do not fit together")
    parts = [Run(0, VGA_HOLE.start), Run(VGA_HOLE.end, low - VGA_HOLE.end)]
    return (*parts, Run(_FOUR_GIB, top - _FOUR_GIB)) if top > _FOUR_GIB else tuple(parts)


def package() -> tuple[Any, Any]:
    """The package's `ffi` and `lib`. Raises `Unsupported` where it is not installed, or does not load."""
    try:
        found = import_module("_libvmi")
    except ModuleNotFoundError:
        raise Unsupported(EXTRA) from None
    except ImportError as error:
        raise Unsupported(f"LibVMI is installed, but does not load: {error}") from error
    return found.ffi, found.lib


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Keeps what C code prints from standard output and error; the lines are in the list when the block has ended.

    Other threads' output is kept, too: the block had better be short.
    """
    lines: list[str] = []
    kept = os.memfd_create("libvmi", os.MFD_CLOEXEC)
    try:
        with ExitStack() as exits:
            _libc.fflush(None)
            for stream in (1, 2):
                with suppress(OSError):  # a stream that is closed gets nothing
                    exits.callback(_restored, stream, os.dup(stream))
                    os.dup2(kept, stream)
            exits.callback(_libc.fflush, None)  # what its buffers hold now was said inside
            yield lines
        text = os.pread(kept, 1 << 14, 0).decode("utf-8", "replace")
    finally:
        os.close(kept)
    lines += [line.removeprefix("VMI_ERROR: ").strip() for line in text.splitlines() if line.strip()]


def _restored(stream: int, before: int) -> None:
    os.dup2(before, stream)
    os.close(before)


def _opened(ffi: Any, lib: Any, kind: str, name: str, shown: str) -> Any:
    """An instance for reading memory, and for nothing else."""
    instance, error = ffi.new("vmi_instance_t *"), ffi.new("vmi_init_error_t *")
    mode = (lib.VMI_XEN, lib.VMI_KVM, lib.VMI_FILE)[_KINDS.index(kind)]
    flag = lib.VMI_INIT_DOMAINNAME if kind == "file" else _flag(lib, name)
    with quiet() as said:
        failed = lib.vmi_init(instance, mode, _named(ffi, name), flag, ffi.NULL, error)
    if not failed:
        return instance[0]
    wrong = NoSuchDomain if error[0] == lib.VMI_INIT_ERROR_VM_NOT_FOUND else AttachError
    raise wrong(f"libvmi:{shown}: LibVMI cannot open it with its driver for {kind}{hint(said)}")


def _flag(lib: Any, name: str) -> int:
    return int(lib.VMI_INIT_DOMAINID if _is_id(name) else lib.VMI_INIT_DOMAINNAME)


def _is_id(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _named(ffi: Any, name: str) -> Any:
    return ffi.new("uint64_t *", int(name)) if _is_id(name) else ffi.new("char []", os.fsencode(name))


def hint(said: Sequence[str]) -> str:
    """What LibVMI said, for the end of a message; that it wants to be root only where it is not."""
    told = [line.rstrip(".") for line in said if os.geteuid() or "root" not in line]
    return f": {'; '.join(told)[:300]}" if told else ""


def unavailable(kind: str) -> str:
    """Why LibVMI's driver of that kind (xen, kvm, file) is of no use here; empty where it is.

    Asked in a process of its own, which LibVMI may end. Raises `Unsupported` without the package.
    """
    package()
    if kind == "file":
        return ""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = f"import sys; sys.path.insert(0, {root!r}); from vmi_inside.drivers.libvmi import probe; probe({kind!r})"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"it cannot be asked: {error}"
    if done.returncode or not done.stdout.startswith(_ANSWER):
        return f"LibVMI fails when it is asked for it (exit status {done.returncode})"
    return done.stdout.removeprefix(_ANSWER).strip()


def probe(kind: str) -> None:
    """Print what `unavailable` answers. A domain that cannot be is asked for: its not being found is a good sign."""
    ffi, lib = package()
    instance, error = ffi.new("vmi_instance_t *"), ffi.new("vmi_init_error_t *")
    mode = (lib.VMI_XEN, lib.VMI_KVM)[_KINDS.index(kind)]
    with quiet() as said:
        lib.vmi_init(instance, mode, _named(ffi, "vmi-inside/no-such-domain"), lib.VMI_INIT_DOMAINNAME, ffi.NULL, error)
    told = "; ".join(said)
    if error[0] == lib.VMI_INIT_ERROR_VM_NOT_FOUND:
        reason = ""
    elif "not available" in told:
        reason = f"this LibVMI was built without {kind.upper()}"
    else:
        where = {"xen": "no Xen, or no libxenctrl, is here", "kvm": "no libvirt at qemu:///system answers"}[kind]
        reason = f"its driver does not start: {told or where}"
    sys.stdout.write(f"{_ANSWER}{reason}\n")
