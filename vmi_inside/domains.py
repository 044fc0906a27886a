"""Domains, as libvirt knows them: which there are, which QEMU process each is, and how its memory is opened.

The only file that imports libvirt, and only when one of its functions is called. How the memory of a QEMU process is
read is left to `drivers`; what runs in the guest, to everybody above.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import time
import uuid as uuids
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from vmi_inside.drivers.bounded import Bounded, T
from vmi_inside.drivers.peek import PeekMemory
from vmi_inside.drivers.process_vm import Process, ProcessMemory
from vmi_inside.drivers.qemu import QemuMemory, open_qemu
from vmi_inside.drivers.qemu_layout import VGA_HOLE, Block, Layout, LayoutUnknown, extents, pc_runs
from vmi_inside.errors import (
    AttachError,
    Busy,
    GuestGone,
    NoSuchDomain,
    NotRunning,
    PermissionDenied,
    Unsupported,
    VmiError,
)
from vmi_inside.memory import Run
from vmi_inside.types import PAGE_SHIFT

if TYPE_CHECKING:
    from types import ModuleType

    from vmi_inside.drivers.machine import QemuMachine
    from vmi_inside.drivers.xen import Domain as XenDomain
    from vmi_inside.drivers.xen import XenMemory
    from vmi_inside.drivers.xenmachine import XenMachine

TAINTS: Final = "libvirt's monitor was used, which marks the domain as tainted (custom-monitor)"
SLOW: Final = "the domain's memory is read through libvirt, which is slow"
#: libvirt is asked so often, so many seconds apart, whether it has heard that a machine stands.
_POLLS: Final = 1000
_POLL: Final = 0.001
#: A broken connection is made anew so often, so many seconds apart.
_RECONNECTS: Final = 25
_RECONNECT: Final = 0.2
#: Seconds for which a guest stands and libvirt is waited for to let it go: there are other ways.
_BRIEF: Final = 2.0

# virsh's words for virDomainState, by its value.
#: What libvirt calls those of its drivers whose domains can be attached to.
_QEMU: Final = "QEMU"
_XEN: Final = "Xen"
#: Of a Xen domain that cannot be attached to, or not for long.
_ENDED: Final = ("in shutdown", "shut off", "suspended", "crashed")
_STATES: Final = ("no state", "running", "idle", "paused", "in shutdown", "shut off", "crashed", "pmsuspended")


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain: `id` is None when it is not active, `memory` its present RAM in bytes, `state` in virsh's words.

    `uri` is that of the libvirt which knows it, `driver` what runs it there: QEMU, Xen, TEST ...
    """

    name: str
    uuid: str
    id: int | None
    state: str
    vcpus: int
    memory: int
    driver: str
    uri: str
    kind: str = ""  # of Xen's own: pv, pvh or hvm

    @property
    def local(self) -> bool:
        """Whether its process is on this host, by the URI's word."""
        return urlsplit(self.uri).hostname in (None, "localhost")


def list_domains(uri: str | None = None, all: bool = True) -> list[Domain]:  # noqa: A002
    """The domains of the libvirt at `uri`, by name: the active ones, or with `all` the others too.

    `uri` None means what it means to virsh: VIRSH_DEFAULT_CONNECT_URI, LIBVIRT_DEFAULT_URI, libvirt's own default.
    Needs a read-only connection. Raises `AttachError`, `PermissionDenied`, `Unsupported` (no libvirt package).
    """
    found = _connected(uri, lambda connection: [_domain(connection, one) for one in connection.listAllDomains()])
    return sorted((one for one in found if all or one.id is not None), key=lambda one: one.name)


def of_xen(domain: XenDomain) -> Domain:
    """A domain that Xen itself tells of, as libvirt would."""
    info = domain.info
    memory = info.pages << PAGE_SHIFT
    return Domain(domain.name, info.uuid, info.id, info.state, info.vcpus, memory, _XEN, "xen:///system", info.kind)


def find_domain(target: str, connect: str | None = None) -> Domain:
    """The domain that virsh takes `target` for: an id, else a UUID, else a name. Raises `NoSuchDomain`."""
    return _connected(connect, lambda connection: _domain(connection, _lookup(connection, target)))


def open_domain(
    target: str, connect: str | None = None, *, peek: bool = False, writable: bool = False
) -> tuple[QemuMemory | PeekMemory | XenMemory, Domain]:
    """The guest memory of a domain, read-only unless `writable`, and the domain; it is not paused, nor changed.

    A domain on this host is read directly; one elsewhere, or any with `peek`, through libvirt. The memory's `notices`
    say what is to be said: that it is slow, that the domain is tainted now because only its monitor could tell how its
    RAM is laid out. Raises `NoSuchDomain`, `NotRunning`, `PermissionDenied`, `Unsupported`, `AttachError`.
    """
    domain = find_domain(target, connect)
    reason = _unfit(domain)
    if reason is not None:
        raise reason
    if writable and (peek or not domain.local):
        raise Unsupported(
            f"{domain.name}: memory that is read through libvirt is read-only; run vmi-inside on its host"
        )
    if domain.driver == _XEN:
        if peek or not domain.local:
            raise Unsupported(f"{domain.name}: libvirt cannot read a Xen guest's memory; run vmi-inside in its dom0")
        from vmi_inside.drivers.xen import open_xen

        return open_xen(str(domain.id), writable=writable)[0], domain
    if peek or not domain.local:
        return _open_peek(domain), domain
    pid = qemu_pid(domain)
    if pid is None:
        raise AttachError(
            f"{domain.name}: no QEMU process of this domain is to be seen; "
            "it may have just ended, or run in another pid namespace (a container)"
        )
    return open_qemu(pid, hmp=hmp(domain), name=domain.name, monitor_notice=TAINTS, writable=writable), domain


class DomainLevers:
    """`machine.Levers` of a domain, through a read-write connection that is kept."""

    monitor_notice = TAINTS

    def __init__(self, domain: Domain) -> None:
        self._libvirt, self._qemu = _libvirt(), _libvirt("libvirt_qemu")
        self._name, self._uri = domain.name, domain.uri
        self._uuid = domain.uuid
        self._bounded = Bounded()
        with _errors(domain.uri):
            self._bounded.run(self._open)
        self._asked = False  # whether the monitor was used: then the machine may have stopped behind libvirt's back

    def _open(self) -> None:
        self._connection = _connect(self._uri, write=True)
        self._domain = _lookup(self._connection, self._uuid)

    def paused(self) -> bool:
        """See `Levers`. A domain that crashed or is asleep stands still, too."""
        if self._asked:
            self._settle()
        return self._stands()

    def pause(self) -> None:
        """See `Levers`."""
        self._call(lambda domain: domain.suspend())

    def resume(self, *, ran: bool = True, brief: bool = False) -> None:
        """See `Levers`."""
        seconds = _BRIEF if brief else None
        if self._asked and (ran or not self._heard(seconds)):
            self._settle(seconds)
            self._go(seconds)
            if "running" not in self._settle():
                self.hmp("cont")
        else:
            self._go(seconds)

    def _go(self, seconds: float | None) -> None:
        try:
            self._call(lambda domain: domain.resume(), seconds)
        except GuestGone:
            if self._state() != "running":  # somebody else has let it go
                raise

    def _stands(self, seconds: float | None = None) -> bool:
        return self._state(seconds) in ("paused", "crashed", "pmsuspended")

    def _state(self, seconds: float | None = None) -> str:
        state, _ = self._call(lambda domain: domain.state(), seconds)
        return _STATES[state] if state < len(_STATES) else ""

    def _heard(self, seconds: float | None) -> bool:
        """Whether libvirt has heard by now that the machine, which a debugger has stopped, stands."""
        for _ in range(_POLLS):
            if self._stands(seconds):
                return True
            time.sleep(_POLL)
        return False

    def _settle(self, seconds: float | None = None) -> str:
        """What QEMU says of its state. libvirt has heard of all that happened before, when this returns."""
        return self._monitor("info status", seconds)

    def hmp(self, command: str) -> str:
        """See `Levers`."""
        return self._monitor(command)

    def _monitor(self, command: str, seconds: float | None = None) -> str:
        self._asked = True
        flags = self._qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        return str(self._call(lambda domain: self._qemu.qemuMonitorCommand(domain, command, flags), seconds)).replace(
            "\r", ""
        )

    def close(self) -> None:
        """See `Levers`."""
        try:
            self._bounded.run(self._hang_up)
        except TimeoutError:
            self._bounded.keep(self._domain, self._connection)
        self._bounded.close()

    def _hang_up(self) -> None:
        self._domain = None  # the connection ends with the last of what was had from it
        with suppress(self._libvirt.libvirtError):
            self._connection.close()

    def _call(self, work: Callable[[Any], Any], seconds: float | None = None) -> Any:
        try:
            return self._bounded.run(self._again, work, seconds=seconds)
        except TimeoutError as error:
            raise Busy(f"{self._name}: libvirt's daemon: {error}; it hangs, or is stopped") from error
        except self._libvirt.libvirtError as error:
            gone = (self._libvirt.VIR_ERR_NO_DOMAIN, self._libvirt.VIR_ERR_OPERATION_INVALID)
            if error.get_error_code() in gone:
                raise GuestGone(f"{self._name}: the domain is not running any more; attach again") from error
            if error.get_error_code() == self._libvirt.VIR_ERR_OPERATION_TIMEOUT:
                raise Busy(f"{self._name}: libvirt is busy with the domain: {error.get_error_message()}") from error
            raise _translated(self._libvirt, error, self._uri) from error

    def _again(self, work: Callable[[Any], Any]) -> Any:
        """Do it; once more with another connection where this one is broken, as when the daemon was restarted."""
        for left in reversed(range(_RECONNECTS)):
            try:
                return work(self._domain)
            except self._libvirt.libvirtError:
                if not left or self._connection.isAlive():
                    raise
            time.sleep(_RECONNECT)
            with suppress(self._libvirt.libvirtError):
                self._open()
        raise AssertionError("the last time ends the loop")


def open_machine(domain: Domain, memory: object = None) -> QemuMachine | XenMachine:
    """The machine of a domain, to be stopped and looked into. Opens a read-write connection, and uses no monitor yet.

    Raises `PermissionDenied`, `NoSuchDomain`, `AttachError`.
    """
    from vmi_inside.drivers.xen import XenMemory
    from vmi_inside.drivers.xenmachine import XenMachine

    if isinstance(memory, XenMemory):
        return XenMachine(memory)
    from vmi_inside.drivers.machine import QemuMachine

    return QemuMachine(domain.name, domain.uuid, qemu_pid(domain) or 0, DomainLevers(domain))


def reachable(domain: Domain) -> str | None:
    """Why `domain` cannot be attached to, in a few words, or None when nothing speaks against it.

    Looks, but does not attach: the state, the process, and whether one byte of it may be read.
    """
    reason = _unfit(domain)
    if reason is not None:
        return str(reason).removeprefix(f"{domain.name}: ")
    if not domain.local:
        return None
    if domain.driver == _XEN:
        if domain.id == 0:
            return "domain 0 is the system that this runs in"
        return f"it is {domain.state}" if domain.state in _ENDED else None
    try:
        pid = qemu_pid(domain)
        if pid is None:
            return "no QEMU process of it is to be seen here"
        process = Process(pid, domain.name)
        try:
            with open(f"/proc/{pid}/maps") as maps:
                first = int(maps.readline().partition("-")[0], 16)
            ProcessMemory(process, [(Run(0, 1), first)]).close()
        except OSError:
            raise process.denied() from None
        finally:
            process.close()
    except VmiError as error:
        return str(error).removeprefix(f"{domain.name}: ")
    return None


def possible(domain: Domain) -> str:
    """What can be done with a domain that can be attached to: through a remote libvirt it is only read."""
    return "read, control" if domain.local else "read"


def qemu_pid(domain: Domain) -> int | None:
    """The process on this host that runs `domain`, or None. Raises `AttachError` when several say that they do."""
    if domain.driver != _QEMU or not domain.local or domain.id is None:
        return None
    named = re.compile(rf"(?:.*,)?guest={re.escape(domain.name.replace(',', ',,'))}(?:,(?!,).*)?")
    found = []
    for pid, argv in _processes():
        options = list(pairwise(argv))
        if ("-uuid", domain.uuid) in options and any(name == "-name" and named.fullmatch(it) for name, it in options):
            found.append(pid)
    if len(found) > 1:
        raise AttachError(f"{domain.name}: several QEMU processes have its name and UUID: pids {found}")
    return found[0] if found else None


def hmp(domain: Domain) -> Callable[[str], str]:
    """A function that runs a command of QEMU's human monitor in `domain`: it marks the domain as tainted.

    Each call opens a read-write connection. Raises as `open_domain` does.
    """

    def run(command: str) -> str:
        qemu = _libvirt("libvirt_qemu")
        flags = qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP

        def ask(connection: Any) -> str:
            return str(qemu.qemuMonitorCommand(_lookup(connection, domain.uuid), command, flags))

        return _connected(domain.uri, ask, write=True).replace("\r", "")

    return run


def xml_runs(xml: str) -> tuple[Run, ...]:
    """Where the RAM of an x86 QEMU domain is, told from its live XML. Raises `LayoutUnknown` when it does not tell."""
    try:
        root = ET.fromstring(xml)  # noqa: S314  expat resolves no external entities, and ends what grows by others
    except ET.ParseError as error:
        raise LayoutUnknown(f"the domain's XML cannot be read: {error}") from error
    machine = root.find("os/type")
    memory = root.find("memory")
    amount = re.fullmatch(r"\s*([0-9]{1,20})\s*", (memory.text if memory is not None else None) or "")
    if machine is None or memory is None or amount is None:
        raise LayoutUnknown("the domain's XML tells no machine type or memory size")
    if root.find("maxMemory") is not None or root.find("devices/memory") is not None:
        raise LayoutUnknown("the domain has memory devices, whose addresses its XML does not tell")
    if any("max-ram-below-4g" in value for element in root.iter() for value in element.attrib.values()):
        raise LayoutUnknown("the domain has max-ram-below-4g set")
    scale = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "b": 1, "bytes": 1}.get(memory.get("unit", "KiB"))
    if scale is None or machine.get("arch") not in ("x86_64", "i686"):
        raise LayoutUnknown(f"a domain of the architecture {machine.get('arch')!r}")
    size = int(amount[1]) * scale
    layout = Layout(pc_runs(machine.get("machine", ""), size), (Block("", "ram", size),), (VGA_HOLE,))
    return tuple(extent.run for extent in extents(layout, [0]))


def _open_peek(domain: Domain) -> PeekMemory:
    libvirt = _libvirt()
    with _errors(domain.uri):
        connection = _connect(domain.uri, write=True)  # kept: a connection costs more than a peek
    try:
        with _errors(domain.uri):
            one = _lookup(connection, domain.uuid)
            runs = xml_runs(one.XMLDesc())
    except BaseException:
        connection.close()
        raise

    def peek(start: int, size: int) -> bytes | None:
        try:
            data = one.memoryPeek(start, size, libvirt.VIR_MEMORY_PHYSICAL)
        except libvirt.libvirtError as error:
            if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                raise GuestGone(f"{domain.name}: the domain is not running any more; attach again") from error
            raise _translated(libvirt, error, domain.uri) from error
        return bytes(data) if len(data) == size else None

    return PeekMemory(peek, runs, connection.close, how=f"libvirt memory peek, {domain.uri}", notices=[SLOW])


def _unfit(domain: Domain) -> VmiError | None:
    """Why there is nothing to attach to, if so."""
    if domain.driver not in (_QEMU, _XEN):
        return Unsupported(
            f"{domain.name}: libvirt's {domain.driver} driver runs it; only QEMU, KVM and Xen can be attached to"
        )
    if domain.id is None:
        start = f"virsh -c {domain.uri} start {domain.name}"
        return NotRunning(
            f"{domain.name}: the domain is {domain.state}, it has no memory to look at; start it: {start}"
        )
    return None


def _processes() -> Iterator[tuple[int, list[str]]]:
    """The QEMU processes to be seen here, with their command lines."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            with open(f"/proc/{entry.name}/cmdline", "rb") as cmdline:
                raw = cmdline.read()
        except OSError:  # it ended meanwhile
            continue
        argv = [os.fsdecode(word) for word in raw.split(b"\0")[:-1]]
        if argv and re.search(r"qemu|kvm", os.path.basename(argv[0])):
            yield int(entry.name), argv


def _domain(connection: Any, one: Any) -> Domain:
    state, _, memory, vcpus, _ = one.info()
    number = one.ID()
    return Domain(
        name=one.name(),
        uuid=one.UUIDString(),
        id=number if number >= 0 else None,
        state=_STATES[state] if state < len(_STATES) else f"state {state}",
        vcpus=vcpus,
        memory=memory << 10,
        driver=connection.getType(),
        uri=connection.getURI(),
    )


def _lookup(connection: Any, target: str) -> Any:
    """The domain as virsh finds it: by id, by UUID, by name."""
    libvirt = _libvirt()
    ways: list[tuple[Callable[[Any], Any], Any]] = []
    if target.isascii() and target.isdigit() and int(target) < 1 << 31:
        ways.append((connection.lookupByID, int(target)))
    with suppress(ValueError):
        ways.append((connection.lookupByUUIDString, str(uuids.UUID(target))))
    ways.append((connection.lookupByName, target))
    for way, argument in ways:
        try:
            return way(argument)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    names = [one.name() for one in connection.listAllDomains()]
    near = [name for name in names if name.startswith(target)][:3] or difflib.get_close_matches(target, names)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; `vmi-inside guests` lists what there is"
    raise NoSuchDomain(f"no domain {target!r} at {connection.getURI()}{hint}")


def _connected(uri: str | None, work: Callable[[Any], T], *, write: bool = False) -> T:
    """What `work` gives with a connection, which is closed then. libvirt's errors become ours."""

    def whole() -> T:
        connection = _connect(uri, write=write)
        try:
            return work(connection)
        finally:
            connection.close()

    bounded = Bounded()
    with _errors(uri):
        try:
            return bounded.run(whole)
        finally:
            bounded.close()


def _connect(uri: str | None, *, write: bool) -> Any:
    libvirt = _libvirt()
    uri = uri or os.environ.get("VIRSH_DEFAULT_CONNECT_URI") or None
    return libvirt.open(uri) if write else libvirt.openReadOnly(uri)


@contextmanager
def _errors(uri: str | None) -> Iterator[None]:
    libvirt = _libvirt()
    try:
        yield
    except libvirt.libvirtError as error:
        raise _translated(libvirt, error, uri) from error
    except TimeoutError as error:
        where = uri or "libvirt's default URI"
        raise AttachError(f"{where}: libvirt's daemon: {error}; it hangs, or is stopped") from error


def _translated(libvirt: ModuleType, error: Any, uri: str | None) -> VmiError:
    """One of our errors for one of libvirt's."""
    code, text, where = error.get_error_code(), error.get_error_message() or str(error), uri or "libvirt's default URI"
    refused = (
        libvirt.VIR_ERR_AUTH_CANCELLED,
        libvirt.VIR_ERR_AUTH_FAILED,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
        libvirt.VIR_ERR_ACCESS_DENIED,
        libvirt.VIR_ERR_OPERATION_DENIED,
    )
    if code in refused or os.strerror(errno.EACCES) in text:
        return PermissionDenied(f"{where}: libvirt refuses: {text}; try sudo, or join the group libvirt")
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return NoSuchDomain(f"{where}: {text}")
    if code == libvirt.VIR_ERR_SYSTEM_ERROR:
        return AttachError(f"{where}: {text}; does libvirt's daemon (libvirtd or virtqemud) run there?")
    return AttachError(f"{where}: {text}")


def _libvirt(module: str = "libvirt") -> ModuleType:
    """The libvirt package, silenced: it prints every error to stderr unless it is told not to."""
    try:
        import libvirt
        import libvirt_qemu
    except ImportError as error:
        raise Unsupported("domains need libvirt's Python package: pip install 'vmi-inside[libvirt]'") from error
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt_qemu if module == "libvirt_qemu" else libvirt  # type: ignore[no-any-return]
