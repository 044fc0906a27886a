"""Attaching to a guest: the one place where drivers, profiles and tables are put together.

Knows targets and the order of things. How memory is reached, how a kernel is learned and what a table holds are each
somebody else's.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from vmi_inside.arch.paging import BY_LEVELS
from vmi_inside.errors import AttachError, GuestGone, UnknownKernel, Unsupported, VmiError
from vmi_inside.kernel import Kernel
from vmi_inside.memory import PhysicalMemory, Releasing
from vmi_inside.profile.cache import Cache
from vmi_inside.profile.learn import Learned, learn
from vmi_inside.space import AddressSpace
from vmi_inside.table import Table, Text, text
from vmi_inside.tables import Reading, T, Tables
from vmi_inside.types import I64, Mask

if TYPE_CHECKING:
    from vmi_inside.linux.content import Content
    from vmi_inside.linux.file_content import FileContent
    from vmi_inside.linux.process_memory import ProcessMemory
    from vmi_inside.linux.streams import Stream
    from vmi_inside.linux.system import SystemInfo
    from vmi_inside.linux.yara_matches import YaraMatches
    from vmi_inside.scan.strings import String
    from vmi_inside.scan.yara import Scanner
    from vmi_inside.snapshot import Snapshot

#: Seconds for which a kernel that was found is believed to be the one that runs, without and with signs of another.
_TRUST: Final = 10.0
_DOUBT: Final = 1.0


class Notice(UserWarning):
    """Something about how a guest was attached to that its user should know: slow memory, a tainted domain."""


class Guest(Tables):
    """An attached guest. Use it as a context manager, or `close()` it.

    Every table is read anew when it is asked for, and raises `GuestGone` when the guest ended or rebooted meanwhile.
    """

    def __init__(self, name: str, memory: PhysicalMemory, learned: Learned, *, live: bool) -> None:
        paging = BY_LEVELS[learned.levels]
        #: The domain's name, or the target as it was given.
        self.name = name
        self.memory = memory
        self.kernel = Kernel(AddressSpace(memory, paging, learned.root), learned.profile)
        #: How the memory is reached, in words.
        self.how: str = getattr(memory, "how", "")
        #: What there is to be said about attaching.
        self.notices: tuple[str, ...] = (*getattr(memory, "notices", ()), *learned.warnings)
        self._live = live
        self._verified = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Guest {self.name}: {self.kernel.profile.release}>"

    def close(self) -> None:
        """Let go of the guest's memory."""
        self.memory.close()

    def info(self) -> SystemInfo:
        """What system this is: one row."""
        from vmi_inside.linux.system import system_info

        return self._checked(system_info(self.kernel))

    def process_memory(self, pid: int) -> ProcessMemory:
        """The memory of one process: its regions and what they hold. Raises `NoProcess`."""
        from vmi_inside.linux.process_memory import ProcessMemory

        return ProcessMemory(self.kernel, pid)

    def content(self, address: int, size: int, *, pid: int | None = None, physical: bool = False) -> Content:
        """`size` bytes at an address of the kernel, of the process `pid`, or of guest-physical memory.

        What is not in memory is zeros, and told apart. Raises `NoProcess`, `GuestGone`, and ValueError for more than
        1 GiB.
        """
        from vmi_inside.linux import content

        if pid is not None:
            found = self.process_memory(pid).content(address, size)
        else:
            found = (content.physical_content if physical else content.kernel_content)(self.kernel, address, size)
        if self._live:
            self._check(not found.whole)
        return found

    def file_content(self, path: str, *, device: str | None = None, inode: int | None = None) -> FileContent:
        """What the page cache has of the file at that path, found as in the guest. Raises `NoFile`, `GuestGone`.

        Where several files have had the same path, `device` (major:minor) and `inode` choose.
        """
        from vmi_inside.linux.find_file import file_content

        found = file_content(self.kernel, path, device=device, inode=inode)
        if self._live:
            self._check(bool(found.fault))
        return found

    def streams(
        self, pids: Iterable[int] | None = None, *, kernel: bool = False, physical: bool = False, files: bool = False
    ) -> Iterator[Stream]:
        """What stands in the guest's memory, to be looked through: of all processes, unless something else is asked.

        Raises `NoProcess` for one of `pids` that is not there.
        """
        from vmi_inside.linux import streams

        if kernel:
            return streams.of_kernel(self.kernel)
        if physical:
            return streams.of_physical(self.kernel)
        if files:
            return streams.of_files(self.kernel)
        return streams.of_processes(self.kernel, pids)

    def strings(
        self, streams: Iterable[Stream], minimum: int = 4, encodings: Iterable[str] = ("ascii", "utf16")
    ) -> Iterator[tuple[Stream, String]]:
        """Printable strings of at least `minimum` characters in what `streams` gave, each with its stream."""
        from vmi_inside.scan.strings import strings

        listed = tuple(encodings)
        return ((stream, each) for stream in streams for each in strings(stream.pieces, minimum, listed))

    def yara(self, rules: Scanner, streams: Iterable[Stream], **options: Any) -> YaraMatches:
        """Where strings of YARA rules stand in what `streams` gave; `options` are those of `yara_matches`."""
        from vmi_inside.linux.yara_matches import yara_matches

        return yara_matches(streams, rules, **options)

    def read(self, reading: Reading[T], columns: Iterable[str] | None = None, **options: Any) -> T:
        """Read one table, of `tables.TABLES`; the tables' own methods come here. Raises `GuestGone`."""
        made: T = reading.function(self.kernel, columns, **options)
        return self._checked(made)

    def reading(self) -> AbstractContextManager[None]:
        """A context in which several tables are read as one operation: quicker, and nearer to one moment."""
        return self.kernel.operation()

    def snapshot(self, *tables: str) -> Snapshot:
        """Several tables as one picture; the usual ones (`snapshot.USUAL`) when none is named.

        What it needs is copied in one go, within milliseconds; the guest goes on meanwhile.
        """
        from vmi_inside import snapshot

        readings = snapshot.wanted(tables)
        made = snapshot.take(self.name, self.kernel, self.memory, readings, live=self._live)
        for table in made.tables.values():
            self._checked(table)
        return made

    def _checked(self, made: T) -> T:
        if self._live:
            self._check(bool(made.notes) or bool(made.fault.any()))
        return made

    def _check(self, doubtful: bool) -> None:
        """Raise `GuestGone` when another kernel runs by now than the one that was learned.

        A kernel that a reboot left behind in RAM can look whole for long: so the kernel is looked for anew when what
        was read has faults, and every so often when it has none.
        """
        if time.monotonic() - self._verified < (_DOUBT if doubtful else _TRUST):
            return
        try:
            same = learn(self.memory, cache=Cache()).root == self.kernel.space.root
        except UnknownKernel:
            same = False
        if not same:
            raise GuestGone(
                f"{self.name}: not the kernel runs now that ran when it was attached (a reboot?); attach again"
            )
        self._verified = time.monotonic()


class Guests(Table):
    """One row for each domain that libvirt knows."""

    id: Text  # empty when it is not active
    name: Text
    uuid: Text
    state: Text  # virsh's words
    vcpus: I64
    memory: I64  # bytes
    attachable: Mask
    reason: Text  # why it is not


def guests(connect: str | None = None) -> Guests:
    """The domains of that libvirt connection, and which of them can be attached to.

    Looks at each domain's state and at the permissions, and attaches to none. Raises `AttachError`, `Unsupported`.
    """
    from vmi_inside import domains

    found = domains.list_domains(connect)
    reasons = [domains.reachable(domain) or "" for domain in found]
    return Guests({
        "id": text("" if domain.id is None else str(domain.id) for domain in found),
        "name": text(domain.name for domain in found),
        "uuid": text(domain.uuid for domain in found),
        "state": text(domain.state for domain in found),
        "vcpus": np.array([domain.vcpus for domain in found], dtype=np.int64),
        "memory": np.array([domain.memory for domain in found], dtype=np.int64),
        "attachable": np.array([not reason for reason in reasons], dtype=np.bool_),
        "reason": text(reasons),
        "fault": text("" for _ in found),
    })  # fmt: skip


def attach(target: str, *, connect: str | None = None, raw_split: int | None = None, resident_limit: int = 0) -> Guest:
    """Attach to a guest, read-only, and learn its kernel.

    `target` is a libvirt domain's name, UUID or id (`connect` is the URI, as virsh's `--connect`), or `file:PATH` for a
    memory dump, or `qmp:SOCKET` for a QEMU without libvirt. `raw_split` says of a raw dump without a hole how many of
    its bytes lie below 4 GiB. `resident_limit` bounds, in bytes, how much of mapped guest RAM stays resident in this
    process; without it (0) reading the same guest again is quicker. The guest is neither paused nor changed.

    Raises `AttachError` (`NoSuchDomain`, `NotRunning`, `PermissionDenied`, `BadDump`, `UnknownKernel`, ...),
    `Unsupported`. What the caller should know beside is in `Guest.notices`, and warned of as `Notice`.
    """
    prefix, colon, rest = target.partition(":")
    if colon and prefix in TARGETS:
        if not rest:
            raise AttachError(f"{target}: there is nothing behind the colon; write {prefix}:PATH")
        opened = TARGETS[prefix](rest, raw_split)
    else:
        opened = _domain(target, connect)
    refused: VmiError | None = None
    for name, memory in opened:
        if isinstance(memory, Releasing):
            memory.resident_limit = resident_limit
        try:
            guest = _learned(name, memory, live=prefix != "file")
        except VmiError as error:
            memory.close()
            refused = refused or error
            continue
        except BaseException:
            memory.close()
            raise
        for notice in guest.notices:
            warnings.warn(f"{name}: {notice}", Notice, stacklevel=2)
        return guest
    raise refused or AttachError(f"{target}: there is nothing to attach to")


Opened = Iterator[tuple[str, PhysicalMemory]]


def _learned(name: str, memory: PhysicalMemory, live: bool) -> Guest:
    try:
        learned = learn(memory, cache=Cache())
    except VmiError as error:
        if str(error).startswith(f"{name}:"):
            raise
        # Errors of single addresses and names say what they say of them: here it is the kernel that cannot be read.
        kind = type(error) if isinstance(error, (AttachError, Unsupported)) else UnknownKernel
        raise kind(f"{name}: {error}") from error
    return Guest(name, memory, learned, live=live)


def _domain(target: str, connect: str | None) -> Opened:
    from vmi_inside import domains

    memory, domain = domains.open_domain(target, connect)
    yield domain.name, memory


def _file(path: str, raw_split: int | None) -> Opened:
    """A dump; of a raw one the ways in which it may be laid out, one after the other."""
    from vmi_inside.drivers import dump

    splits = dump.splits(path) if raw_split is None else (raw_split,)
    for split in splits:
        yield path, dump.open_dump(path, raw_split=split)


def _qmp(path: str, raw_split: int | None) -> Opened:
    if raw_split is not None:
        raise Unsupported(f"qmp:{path}: only raw dumps can be split")
    from vmi_inside.drivers import qmp

    memory, seen = qmp.open_qmp(path)
    yield seen.name or f"qmp:{path}", memory


#: Kinds of targets by their prefix; what has none is a libvirt domain. To add one, write its opener and name it here.
TARGETS: Final[dict[str, Callable[[str, int | None], Opened]]] = {"file": _file, "qmp": _qmp}
