"""Attaching to a guest: the one place where drivers, profiles and tables are put together.

Knows targets and the order of things. How memory is reached, how a kernel is learned and what a table holds are each
somebody else's.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from vmi_inside.arch.paging import BY_LEVELS
from vmi_inside.control.gates.hands import GateControls
from vmi_inside.control.process_controls import ProcessControls
from vmi_inside.errors import (
    AttachError,
    ControlError,
    GuestGone,
    NotRunning,
    UnknownKernel,
    Unsupported,
    VmiError,
    WrongProfile,
)
from vmi_inside.kernel import Kernel
from vmi_inside.memory import Holding, Paravirtual, PhysicalMemory, Releasing
from vmi_inside.profile.cache import Cache
from vmi_inside.profile.learn import Learned, begun, learn
from vmi_inside.space import AddressSpace
from vmi_inside.table import Table, Text, text
from vmi_inside.tables import Reading, T, Tables
from vmi_inside.types import I64, Mask

if TYPE_CHECKING:
    import subprocess

    from vmi_inside.control.machine import Machine
    from vmi_inside.dumping import Dumped
    from vmi_inside.linux.contents.content import Content
    from vmi_inside.linux.contents.process_contents import ProcessContents
    from vmi_inside.linux.contents.streams import Stream
    from vmi_inside.linux.contents.yara_matches import YaraMatches
    from vmi_inside.linux.files.file_content import FileContent
    from vmi_inside.linux.integrity import Findings
    from vmi_inside.linux.system import SystemInfo
    from vmi_inside.profile.given import Given
    from vmi_inside.scan.strings import String
    from vmi_inside.scan.yara import Scanner
    from vmi_inside.snapshot import Snapshot

#: Seconds for which a kernel that was found is believed to be the one that runs, without and with signs of another.
_TRUST: Final = 10.0
_DOUBT: Final = 1.0


class Notice(UserWarning):
    """Something about how a guest was attached to that its user should know: slow memory, a tainted domain."""


class Guest(Tables, ProcessControls, GateControls):
    """An attached guest. Use it as a context manager, or `close()` it.

    Every table is read anew when it is asked for, and raises `GuestGone` when the guest ended or rebooted meanwhile.
    """

    def __init__(
        self,
        name: str,
        memory: PhysicalMemory,
        learned: Learned,
        *,
        live: bool,
        machine: Machine | None = None,
        given: Given | None = None,
    ) -> None:
        paging = BY_LEVELS[learned.levels]
        #: The domain's name, or the target as it was given.
        self.name = name
        self.memory = memory
        self.kernel = Kernel(AddressSpace(memory, paging, learned.root), learned.profile)
        #: How the memory is reached, in words.
        self.how: str = getattr(memory, "how", "")
        #: What there is to be said about attaching.
        self.notices: tuple[str, ...] = (*getattr(memory, "notices", ()), *learned.warnings)
        self.machine = machine
        self._live = live
        self._given = given
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
        """Let go of the guest: of its vCPUs and its memory."""
        try:
            self.release_control()
        finally:
            self.memory.close()

    def info(self) -> SystemInfo:
        """What system this is: one row."""
        from vmi_inside.linux.system import system_info

        return self._checked(system_info(self.kernel))

    def check(
        self,
        only: Iterable[str] = (),
        skip: Iterable[str] = (),
        *,
        severity: str = "info",
        image: str | None = None,
    ) -> Findings:
        """What lies in the guest: the checks in `only` (all, of `linux.integrity.DETECTORS`) without those in `skip`.

        Gives what is of that severity or graver: info, low, medium, high, critical. A finding of medium or graver is
        looked for again before it is told. `image` is the path of the vmlinuz of the kernel that runs, with which its
        code and constants are compared. Raises `Unsupported` for a check or severity that there is not, and for a file
        that is no image of this kernel, `NoSuchDomain` for one that is not there, `GuestGone`.
        """
        from vmi_inside.linux.integrity import check

        return self._checked(check(self.kernel, only, skip, severity=severity, image=image, live=self._live))

    def process_contents(self, pid: int) -> ProcessContents:
        """The memory of one process: its regions and what they hold. Raises `NoProcess`."""
        from vmi_inside.linux.contents.process_contents import ProcessContents

        return ProcessContents(self.kernel, pid)

    def content(self, address: int, size: int, *, pid: int | None = None, physical: bool = False) -> Content:
        """`size` bytes at an address of the kernel, of the process `pid`, or of guest-physical memory.

        What is not in memory is zeros, and told apart. Raises `NoProcess`, `GuestGone`, and ValueError for more than
        1 GiB.
        """
        from vmi_inside.linux.contents import content

        if pid is not None:
            found = self.process_contents(pid).content(address, size)
        else:
            found = (content.physical_content if physical else content.kernel_content)(self.kernel, address, size)
        if self._live:
            self._check(not found.whole)
        return found

    def file_content(self, path: str, *, device: str | None = None, inode: int | None = None) -> FileContent:
        """What the page cache has of the file at that path, found as in the guest. Raises `NoFile`, `GuestGone`.

        Where several files have had the same path, `device` (major:minor) and `inode` choose.
        """
        from vmi_inside.linux.files.find_file import file_content

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
        from vmi_inside.linux.contents import streams

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
        from vmi_inside.linux.contents.yara_matches import yara_matches

        return yara_matches(streams, rules, **options)

    def read(self, reading: Reading[T], columns: Iterable[str] | None = None, **options: Any) -> T:
        """Read one table, of `tables.TABLES`; the tables' own methods come here. Raises `GuestGone`."""
        made: T = reading.function(self.kernel, columns, **options)
        return self._checked(made)

    def reading(self) -> AbstractContextManager[None]:
        """A context in which several tables are read as one operation: quicker, and nearer to one moment."""
        return self.kernel.operation()

    def snapshot(self, *tables: str, pause: bool = False) -> Snapshot:
        """Several tables as one picture; the usual ones (`snapshot.USUAL`) when none is named.

        What it needs is copied in one go, within milliseconds; the guest goes on meanwhile, or, with `pause`, stands
        still: that needs `attach(..., pausing=True)`. Raises `Unsupported` for a table that there is not, `GuestGone`.
        """
        from vmi_inside import snapshot

        readings = snapshot.wanted(tables)
        made = snapshot.take(
            self.name, self.kernel, self.memory, readings, live=self._live, pause=self.paused if pause else None
        )
        for table in made.tables.values():
            self._checked(table)
        return made

    def dump(
        self,
        path: str | os.PathLike[str],
        *,
        format: str = "elf",  # noqa: A002
        compress: bool = False,
        pause: bool = False,
        registers: bool = True,
        checksum: str = "sha256",
        force: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Dumped:
        """All of the guest's memory as a file: an ELF core with VMCOREINFO, or `raw`, or `lime`.

        The guest goes on meanwhile, so that what is in there is of several moments, unless `pause`, which needs
        `attach(pausing=True)`; a core then has the vCPUs' `registers`, too. Pages of zeros are holes in the file;
        `compress` makes a zstd stream of it. `checksum` is sha256, blake3 (some times as fast) or none. `progress` is
        told how many bytes of how many were read.

        Raises `VmiError` when the file cannot be written, and nothing is left of it then; `Unsupported`, `GuestGone`.
        """
        from vmi_inside import dumping, sink

        if format not in dumping.FORMATS:
            raise Unsupported(f"no format of dumps is called {format!r}; there are {', '.join(dumping.FORMATS)}")
        made = dumping.Dumped(os.fspath(path), format, algorithm=checksum)
        if pause and self.machine is None:
            raise Unsupported(f"{self.name}: it cannot be paused; attach with pausing=True, or dump it as it runs")
        if isinstance(self.memory, Paravirtual):
            raise Unsupported(
                f"{self.name}: the page tables of a Xen PV guest hold machine frames, which nobody could follow in a "
                "dump of its own memory; xl dump-core writes one of both"
            )
        began = time.monotonic()
        with sink.new_file(path, compress=compress, checksum=checksum, force=force) as file:
            with ExitStack() as held:
                states: list[dict[str, int]] = []
                if pause:
                    states = self._hold(held, made, registers and format == "elf")
                dumping.write_dump(self.kernel, file, made, registers=states, progress=progress)
            if self._live:
                self._verified = 0.0
                self._check(True)
            file.finish()
            made.size, made.stored, made.checksum = file.size, file.stored, file.checksum
        made.seconds = time.monotonic() - began
        return made

    def _hold(self, held: ExitStack, made: Dumped, registers: bool) -> list[dict[str, int]]:
        """Keep the guest standing for as long as `held` lasts; gives the registers of its vCPUs, where they are had."""
        states: list[dict[str, int]] = []
        pause = held.enter_context(self.paused())
        started = time.monotonic()
        held.callback(lambda: setattr(made, "paused", time.monotonic() - started))
        if registers:
            try:
                with self.vcpus.debugger() as debugger:
                    states = [debugger.registers(number) for number in range(len(debugger.threads))]
            except ControlError as error:
                made.notices.append(f"without the vCPUs' registers: {error}")
        if pause.found:
            made.notices.append("the guest was found paused, and is left so")
        return states

    def _checked(self, made: T) -> T:
        if self._live and time.monotonic() - self._verified >= _DOUBT:  # sooner nothing is looked for at all
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
            same = learn(self.memory, cache=Cache(), given=self._given).root == self.kernel.space.root
        except (UnknownKernel, WrongProfile):
            same = False
        if not same:
            raise GuestGone(
                f"{self.name}: not the kernel runs now that ran when it was attached (a reboot?); attach again"
            )
        self._verified = time.monotonic()


class Guests(Table):
    """One row for each domain that libvirt knows; in a Xen host's dom0, for each that Xen does."""

    id: Text  # empty when it is not active
    name: Text
    uuid: Text
    kind: Text  # what runs it: qemu, xen, test ...; of Xen itself pv, pvh or hvm
    state: Text  # virsh's words
    vcpus: I64
    memory: I64  # bytes
    attachable: Mask
    reason: Text  # why it is not
    possible: Text  # what can be done with it: read; read, control


def guests(connect: str | None = None) -> Guests:
    """The domains of that libvirt connection, and which of them can be attached to. In a dom0 Xen itself is asked.

    Looks at each domain's state and at the permissions, and attaches to none. Raises `AttachError`, `Unsupported`.
    """
    from vmi_inside import domains
    from vmi_inside.drivers import xen

    if (connect is None or connect.startswith("xen:///")) and xen.is_dom0():
        found = [domains.of_xen(domain) for domain in xen.list_domains()]
    else:
        found = domains.list_domains(connect)
    reasons = [domains.reachable(domain) or "" for domain in found]
    return Guests({
        "id": text("" if domain.id is None else str(domain.id) for domain in found),
        "name": text(domain.name for domain in found),
        "uuid": text(domain.uuid for domain in found),
        "kind": text(domain.kind or domain.driver.lower() for domain in found),
        "state": text(domain.state for domain in found),
        "vcpus": np.array([domain.vcpus for domain in found], dtype=np.int64),
        "memory": np.array([domain.memory for domain in found], dtype=np.int64),
        "attachable": np.array([not reason for reason in reasons], dtype=np.bool_),
        "reason": text(reasons),
        "possible": text(
            "" if reason else domains.possible(domain) for domain, reason in zip(found, reasons, strict=True)
        ),
        "fault": text("" for _ in found),
    })  # fmt: skip


def attach(
    target: str,
    *,
    connect: str | None = None,
    raw_split: int | None = None,
    resident_limit: int = 0,
    writable: bool = False,
    pausing: bool = False,
    profile: str | os.PathLike[str] | None = None,
) -> Guest:
    """Attach to a guest, read-only unless `writable`, and learn its kernel.

    `target` is a libvirt domain's name, UUID or id (`connect` is the URI, as virsh's `--connect`), or `file:PATH` for a
    memory dump, `qmp:SOCKET` for a QEMU without libvirt, `xen:NAME` or `xen:ID` for a guest of the Xen host whose dom0
    this is, or `libvmi:NAME` for a Xen or KVM domain, or the path of a raw image, read through LibVMI. `raw_split` says
    of a raw dump without a hole how many of its bytes lie below 4 GiB. `resident_limit` bounds, in bytes, how much of
    mapped guest RAM stays resident in this process; without it (0) reading the same guest again is quicker. The guest
    is neither paused nor changed; `writable` is the consent to do so later, `pausing` the consent to pause it only.
    `profile` is a file for a kernel whose memory does not tell its types or symbols: an ISF file, Rekall's JSON, raw
    BTF or a vmlinux with BTF, a System.map; several with commas between them.

    Raises `AttachError` (`NoSuchDomain`, `NotRunning`, `PermissionDenied`, `BadDump`, `UnknownKernel`, ...),
    `Unsupported`, `WrongProfile` for a profile of another kernel. What the caller should know beside is in
    `Guest.notices`, and warned of as `Notice`.
    """
    given = None
    if profile is not None:
        from vmi_inside.profile.given import load

        given = load(os.fspath(profile))
    prefix, colon, rest = target.partition(":")
    if colon and prefix in TARGETS:
        if not rest:
            raise AttachError(f"{target}: there is nothing behind the colon; write {prefix}:{_BEHIND[prefix]}")
        opened = TARGETS[prefix](rest, Access(raw_split, None, writable, pausing))
    else:
        opened = _domain(target, Access(raw_split, connect, writable, pausing))
    refused: VmiError | None = None
    for name, memory, machine in opened:
        if isinstance(memory, Releasing):
            memory.resident_limit = resident_limit
        try:
            guest = _learned(name, memory, machine, live=prefix != "file", given=given)
        except BaseException as error:
            memory.close()
            if machine is not None:
                machine.close()
            if not isinstance(error, VmiError):
                raise
            refused = refused or error
            continue
        if machine is not None:
            guest.watch = partial(_watch, target, connect, writable, os.fspath(profile or ""))
        for notice in guest.notices:
            warnings.warn(f"{name}: {notice}", Notice, stacklevel=2)
        return guest
    raise refused or AttachError(f"{target}: there is nothing to attach to")


def _watch(target: str, connect: str | None, writable: bool, profile: str) -> subprocess.Popen[bytes]:
    """A process that outlives this one, and lets the guest go if this one has not."""
    import subprocess

    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = f"import sys; sys.path.insert(0, {root!r}); from vmi_inside.rescue import main; main()"
    files = ",".join(os.path.abspath(each) for each in profile.split(",") if each)
    words = [target, connect or "", "writable" if writable else "", files]
    # In a session of its own: a Ctrl-C is for us, and a terminal that is closed must not end it. It may live on for
    # some time after us, when nobody is to wait for the ends of our pipes: what it has to say goes to the system's log.
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Access:
    """How a target is to be reached: what a raw dump's `split` is, which libvirt, and what the caller consented to."""

    split: int | None = None
    connect: str | None = None
    writable: bool = False
    pausing: bool = False


Opened = Iterator[tuple[str, PhysicalMemory, "Machine | None"]]


def _learned(
    name: str, memory: PhysicalMemory, machine: Machine | None, live: bool, given: Given | None = None
) -> Guest:
    try:
        with memory.hold() if isinstance(memory, Holding) else nullcontext():
            learned = learn(memory, cache=Cache(), given=given)
            if live and not begun(memory, learned):
                raise NotRunning(
                    f"{name}: its kernel ({learned.profile.release}) lies in memory and has not begun to run; start "
                    "it, or attach again when it has"
                )
    except VmiError as error:
        if str(error).startswith(f"{name}:"):
            raise
        # Errors of single addresses and names say what they say of them: here it is the kernel that cannot be read.
        kind = type(error) if isinstance(error, (AttachError, Unsupported, WrongProfile)) else UnknownKernel
        raise kind(f"{name}: {error}") from error
    return Guest(name, memory, learned, live=live, machine=machine, given=given)


def _domain(target: str, access: Access) -> Opened:
    from vmi_inside import domains

    memory, domain = domains.open_domain(target, access.connect, writable=access.writable)
    yield domain.name, memory, _machine(memory, lambda: domains.open_machine(domain, memory), access)


def _file(path: str, access: Access) -> Opened:
    """A dump; of a raw one the ways in which it may be laid out, one after the other."""
    from vmi_inside.drivers import dump

    if access.writable or access.pausing:
        raise Unsupported(f"{path}: dumps are read-only")
    splits = dump.splits(path) if access.split is None else (access.split,)
    for split in splits:
        yield path, dump.open_dump(path, raw_split=split), None


def _qmp(path: str, access: Access) -> Opened:
    if access.split is not None:
        raise Unsupported(f"qmp:{path}: only raw dumps can be split")
    from vmi_inside.drivers import qmp

    memory, seen = qmp.open_qmp(path, writable=access.writable)
    yield seen.name or f"qmp:{path}", memory, _machine(memory, lambda: qmp.open_machine(seen), access)


def _libvmi(name: str, access: Access) -> Opened:
    """A raw image, where it is a path, or else a domain of Xen or KVM."""
    from vmi_inside.drivers import dump, libvmi
    from vmi_inside.drivers.libvmimachine import open_machine

    shown = f"libvmi:{name}"
    if "/" not in name and not os.path.exists(name):
        memory = libvmi.open_domain(name, writable=access.writable)
        yield shown, memory, _machine(memory, lambda: open_machine(shown, memory), access)
        return
    if access.writable or access.pausing:
        raise Unsupported(f"{shown}: through LibVMI a file is only read; attach by libvirt's name, or qmp:SOCKET")
    libvmi.package()
    for split in dump.splits(name) if access.split is None else (access.split,):
        yield shown, libvmi.open_file(name, split=split), None


def _xen(target: str, access: Access) -> Opened:
    if access.split is not None:
        raise Unsupported(f"xen:{target}: only raw dumps can be split")
    from vmi_inside.drivers import xen
    from vmi_inside.drivers.xenmachine import open_machine

    memory, domain = xen.open_xen(target, writable=access.writable)
    yield domain.name, memory, _machine(memory, lambda: open_machine(memory), access)


def _machine(memory: PhysicalMemory, opened: Callable[[], Machine], access: Access) -> Machine | None:
    """The machine, where somebody consented to stopping it."""
    if not (access.writable or access.pausing):
        return None
    try:
        return opened()
    except BaseException:
        memory.close()
        raise


#: Kinds of targets by their prefix; what has none is a libvirt domain. To add one, write its opener and name it here.
TARGETS: Final[dict[str, Callable[[str, Access], Opened]]] = {
    "file": _file, "qmp": _qmp, "libvmi": _libvmi, "xen": _xen,
}  # fmt: skip
_BEHIND: Final = {"file": "PATH", "qmp": "SOCKET", "libvmi": "NAME", "xen": "NAME"}
