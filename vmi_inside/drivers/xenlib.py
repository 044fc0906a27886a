"""Xen's own libraries, by ctypes: which functions they have, how large their structs are, what their errors mean.

Knows libxenctrl, libxenforeignmemory, libxenstore and libxentoollog as Debian's packages of 4.17 and 4.20 have them
(xen/include/public/domctl.h, xen/include/public/arch-x86/xen.h, tools/include/xenctrl.h of these releases, which agree
in what is used here). What is read through them is `xen`'s and `xenmachine`'s.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from vmi_inside.errors import AttachError, GuestGone, PermissionDenied, Unsupported

PRIVCMD: Final = "/dev/xen/privcmd"
_CAPABILITIES: Final = "/proc/xen/capabilities"
_FOLDERS: Final = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib", "/lib/x86_64-linux-gnu")
#: Versions of Xen, and of its libxenctrl, whose structs are known: the interface between the two changes with each.
VERSIONS: Final = ("4.17", "4.18", "4.19", "4.20")
_RUNNING: Final = "/sys/hypervisor/version"
_SILENT: Final = 9  # XTL_CRITICAL, xentoollog.h: what fails is told by our errors
_CANARY: Final = 0xA5

DYING, HVM, SHUTDOWN, PAUSED, BLOCKED, RUNNING = (1 << bit for bit in range(6))  # XEN_DOMINF_*
#: Above these bits of a domain that is shut down, why (SHUTDOWN_*, public/sched.h): others have crashed.
_WHY, _WHY_MASK = 16, 0xFF
_STATES: Final = {0: "shut off", 1: "shut off", 2: "suspended"}


class DomainInfo(ctypes.Structure):
    """`struct xen_domctl_getdomaininfo`, version 0x15 of the interface."""

    _fields_ = (
        ("domain", ctypes.c_uint16), ("pad1", ctypes.c_uint16), ("flags", ctypes.c_uint32),
        ("tot_pages", ctypes.c_uint64), ("max_pages", ctypes.c_uint64), ("outstanding_pages", ctypes.c_uint64),
        ("shr_pages", ctypes.c_uint64), ("paged_pages", ctypes.c_uint64), ("shared_info_frame", ctypes.c_uint64),
        ("cpu_time", ctypes.c_uint64), ("nr_online_vcpus", ctypes.c_uint32), ("max_vcpu_id", ctypes.c_uint32),
        ("ssidref", ctypes.c_uint32), ("handle", ctypes.c_uint8 * 16), ("cpupool", ctypes.c_uint32),
        ("gpaddr_bits", ctypes.c_uint8), ("pad2", ctypes.c_uint8 * 7), ("emulation_flags", ctypes.c_uint32),
        ("misc_flags", ctypes.c_uint32),
    )  # fmt: skip


def _selector(name: str) -> tuple[tuple[str, Any], ...]:
    return ((name, ctypes.c_uint16), (f"_{name}", ctypes.c_uint16 * 3))


_SAVED: Final = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
)  # fmt: skip


class UserRegisters(ctypes.Structure):
    """`struct cpu_user_regs` (public/arch-x86/xen-x86_64.h)."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in _SAVED),
        ("error_code", ctypes.c_uint32), ("entry_vector", ctypes.c_uint32), ("rip", ctypes.c_uint64),
        ("cs", ctypes.c_uint16), ("_cs", ctypes.c_uint16), ("saved_upcall_mask", ctypes.c_uint8),
        ("_mask", ctypes.c_uint8 * 3), ("eflags", ctypes.c_uint64), ("rsp", ctypes.c_uint64),
        *_selector("ss"), *_selector("es"), *_selector("ds"), *_selector("fs"), *_selector("gs"),
    )  # fmt: skip


class VcpuContext(ctypes.Structure):
    """`struct vcpu_guest_context` of a 64-bit guest (public/arch-x86/xen.h)."""

    _fields_ = (
        ("fpu_ctxt", ctypes.c_uint8 * 512), ("flags", ctypes.c_uint64), ("user_regs", UserRegisters),
        ("trap_ctxt", ctypes.c_uint8 * 4096), ("ldt_base", ctypes.c_uint64), ("ldt_ents", ctypes.c_uint64),
        ("gdt_frames", ctypes.c_uint64 * 16), ("gdt_ents", ctypes.c_uint64), ("kernel_ss", ctypes.c_uint64),
        ("kernel_sp", ctypes.c_uint64), ("ctrlreg", ctypes.c_uint64 * 8), ("debugreg", ctypes.c_uint64 * 8),
        ("event_callback_eip", ctypes.c_uint64), ("failsafe_callback_eip", ctypes.c_uint64),
        ("syscall_callback_eip", ctypes.c_uint64), ("vm_assist", ctypes.c_uint64), ("fs_base", ctypes.c_uint64),
        ("gs_base_kernel", ctypes.c_uint64), ("gs_base_user", ctypes.c_uint64),
    )  # fmt: skip


#: What the hypervisor's headers say of them.
SIZES: Final = {DomainInfo: 112, UserRegisters: 200, VcpuContext: 5168}


@dataclass(frozen=True, slots=True)
class Info:
    """One domain, as the hypervisor tells of it. `kind` is pv, pvh or hvm; `memory` in bytes."""

    id: int
    uuid: str
    kind: str
    flags: int
    pages: int
    most_pages: int
    shared_info: int
    vcpus: int

    @property
    def state(self) -> str:
        """In virsh's words."""
        if self.flags & DYING:
            return "in shutdown"
        if self.flags & SHUTDOWN:
            return _STATES.get(self.flags >> _WHY & _WHY_MASK, "crashed")
        return "paused" if self.flags & PAUSED else "running"


class Xen:
    """The hypervisor that this is the dom0 of: open handles on its libraries.

    Raises `Unsupported` where there is no Xen, no library, or one of a version that is not known; `PermissionDenied`.
    """

    def __init__(self) -> None:
        _check_dom0()
        self.version, control = _control()
        for struct, size in SIZES.items():
            if ctypes.sizeof(struct) != size:
                raise Unsupported(f"{struct.__name__} has {ctypes.sizeof(struct)} bytes here, not {size}")
        self._control = control
        self._memory = _library("libxenforeignmemory.so.1", "libxenforeignmemory1")
        self._store = _library("libxenstore.so.4", "libxenstore4")
        _declare(self._control, self._memory, self._store)
        logger = _silence()
        self._xch = self._control.xc_interface_open(logger, logger, 0)
        self._fmem = self._memory.xenforeignmemory_open(logger, 0) if self._xch else None
        if not self._fmem:
            raise _denied(ctypes.get_errno())
        self._xs = self._store.xs_open(0)
        self._measure()

    def close(self) -> None:
        """Close the handles."""
        if self._xs:
            self._store.xs_close(self._xs)
        if self._fmem:
            self._memory.xenforeignmemory_close(self._fmem)
        if self._xch:
            self._control.xc_interface_close(self._xch)
        self._xs = self._fmem = self._xch = None

    def _measure(self) -> None:
        """See that the library fills as many bytes for a domain as we think that it does. Raises `Unsupported`."""
        size = SIZES[DomainInfo]
        room = (ctypes.c_uint8 * (4 * size))(*([_CANARY] * (4 * size)))
        got = self._control.xc_domain_getinfolist(self._xch, 0, 1, room)
        if got != 1:
            raise _denied(ctypes.get_errno())
        filled = len(bytes(room).rstrip(bytes([_CANARY])))
        if filled != size:
            raise Unsupported(
                f"libxenctrl {self.version} tells {filled} bytes of a domain, not {size}: an unknown interface"
            )

    # -- domains ------------------------------------------------------------------------------------------------------

    def domains(self) -> list[Info]:
        """All of them, dom0 included."""
        found: list[Info] = []
        room = (DomainInfo * 256)()
        first = 0
        while first < 0x7FF0:
            got = self._control.xc_domain_getinfolist(self._xch, first, len(room), room)
            if got <= 0:
                break
            found += [_info(one) for one in room[:got]]
            first = found[-1].id + 1
        return found

    def domain(self, number: int) -> Info | None:
        """The domain of that id; None when there is none."""
        one = DomainInfo()
        got = self._control.xc_domain_getinfolist(self._xch, number, 1, ctypes.byref(one))
        return _info(one) if got == 1 and one.domain == number else None

    def name(self, number: int) -> str:
        """The domain's name by the xenstore; empty when it has none."""
        raw = self.stored(f"/local/domain/{number}/name")
        return raw.decode(errors="replace") if raw else ""

    def stored(self, path: str) -> bytes | None:
        """What the xenstore has at that path."""
        if not self._xs:
            return None
        size = ctypes.c_uint()
        at = self._store.xs_read(self._xs, 0, path.encode(), ctypes.byref(size))
        if not at:
            return None
        try:
            return ctypes.string_at(at, size.value)
        finally:
            _libc.free(at)

    def store(self, path: str, value: bytes) -> None:
        """Put a value into the xenstore; whoever watches that path is told, also of the value that stood there."""
        if not self._xs or not self._store.xs_write(self._xs, 0, path.encode(), value, len(value)):
            raise AttachError(f"{path}: the xenstore does not take it: {os.strerror(ctypes.get_errno())}")

    def pause(self, number: int) -> None:
        """Stop all vCPUs; they stand when this returns."""
        self._call(self._control.xc_domain_pause, number)

    def unpause(self, number: int) -> None:
        """Take back one pause."""
        self._call(self._control.xc_domain_unpause, number)

    def context(self, number: int, vcpu: int) -> VcpuContext:
        """A vCPU's registers. The domain had better stand still."""
        context = VcpuContext()
        self._call(self._control.xc_vcpu_getcontext, number, vcpu, ctypes.byref(context))
        return context

    def set_context(self, number: int, vcpu: int, context: VcpuContext) -> None:
        """Set them. The domain must stand still."""
        self._call(self._control.xc_vcpu_setcontext, number, vcpu, ctypes.byref(context))

    def last_frame(self, number: int) -> int:
        """The highest guest frame that was ever used."""
        frame = ctypes.c_uint64()
        self._call(self._control.xc_domain_maximum_gpfn, number, ctypes.byref(frame))
        return frame.value

    def frame_types(self, number: int, frames: Any) -> None:
        """Replace the frames in this uint64 array, 1,024 at the most, by their types (XEN_DOMCTL_PFINFO_*)."""
        self._call(self._control.xc_get_pfn_type_batch, number, len(frames), frames.ctypes.data)

    # -- memory -------------------------------------------------------------------------------------------------------

    def map(self, number: int, frames: int, errors: int, count: int, protection: int) -> int | None:
        """Map `count` frames, of which the numbers stand at `frames`; gives where, side by side.

        The int32 at `errors` tell of each whether it is mapped (0). Give it back to `unmap`.
        """
        at: int | None = self._memory.xenforeignmemory_map(self._fmem, number, protection, count, frames, errors)
        return at

    def unmap(self, at: int, count: int) -> None:
        """Take a mapping away."""
        self._memory.xenforeignmemory_unmap(self._fmem, at, count)

    def _call(self, function: Callable[..., int], number: int, *arguments: Any) -> None:
        if function(self._xch, number, *arguments) < 0:
            raise failed(number, ctypes.get_errno(), function.__name__)


def failed(number: int, code: int, what: str) -> AttachError:
    """The error for a call about a domain that failed with that errno."""
    if code == errno.ESRCH:
        return GuestGone(f"domain {number} is gone (destroyed, saved or shut down); attach again")
    if code in (errno.EPERM, errno.EACCES):
        return PermissionDenied(f"domain {number}: Xen refuses {what}; run as root in dom0")
    return AttachError(f"domain {number}: {what}: {os.strerror(code)}")


def _info(one: DomainInfo) -> Info:
    kind = "pv"
    if one.flags & HVM:  # a PVH guest has a local APIC and nothing else that is emulated
        kind = "pvh" if one.emulation_flags & ~1 == 0 else "hvm"
    return Info(
        one.domain, str(uuid.UUID(bytes=bytes(one.handle))), kind, one.flags, one.tot_pages, one.max_pages,
        one.shared_info_frame, one.nr_online_vcpus,
    )  # fmt: skip


def controls() -> bool:
    """Whether this system controls Xen's guests, by its kernel's word."""
    try:
        with open(_CAPABILITIES) as told:
            return "control_d" in told.read()
    except OSError:
        return False


def _check_dom0() -> None:
    if not os.path.exists(PRIVCMD):
        if os.path.exists("/sys/hypervisor/type"):
            raise Unsupported(f"{PRIVCMD} is missing: this is no dom0, or the module xen_privcmd is not loaded")
        raise Unsupported("this system does not run on Xen: run vmi-inside in the dom0 whose guests are meant")
    # Where xenfs is not mounted, what the libraries say will tell.
    if os.path.exists(_CAPABILITIES) and not controls():
        raise Unsupported("this is a Xen guest without control over others: run vmi-inside in its dom0")


def _control() -> tuple[str, Any]:
    """The libxenctrl of the Xen that runs, and its version. Raises `Unsupported` for one that is not known."""
    running = _running()
    if running and running not in VERSIONS:
        raise Unsupported(
            f"Xen {running} runs here, whose interface is not known: it changes with each version; known: "
            + ", ".join(VERSIONS)
        )
    for version in (running,) if running else VERSIONS:
        try:
            return version, ctypes.CDLL(f"libxenctrl.so.{version}", use_errno=True)
        except OSError:
            continue
    if running:
        raise Unsupported(
            f"Xen {running} runs here, and there is no libxenctrl.so.{running}: install Xen's tools of that version "
            f"(Debian: xen-utils-{running})"
        )
    others = _installed()
    if others:
        raise Unsupported(
            f"libxenctrl {', '.join(others)} is not known: its interface changes with each version; known: "
            + ", ".join(VERSIONS)
        )
    raise Unsupported("no libxenctrl: install Xen's tools (Debian: xen-utils-4.17)")


def _running() -> str:
    """The version of the hypervisor, as 4.17; empty where it does not say."""
    try:
        parts = []
        for name in ("major", "minor"):
            with open(os.path.join(_RUNNING, name)) as told:
                parts.append(str(int(told.read())))
    except (OSError, ValueError):
        return ""
    return ".".join(parts)


def _installed() -> list[str]:
    found = set()
    for folder in _FOLDERS:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        found |= {match[1] for name in names if (match := re.fullmatch(r"libxenctrl\.so\.(\d+\.\d+)", name))}
    return sorted(found)


def _library(name: str, package: str) -> Any:
    try:
        return ctypes.CDLL(name, use_errno=True)
    except OSError as error:
        raise Unsupported(f"no {name}: install it (Debian: {package})") from error


def _silence() -> int | None:
    """A logger that keeps quiet; the libraries' own print to stderr."""
    log = _library("libxentoollog.so.1", "libxentoollog1")
    log.xtl_createlogger_stdiostream.restype = ctypes.c_void_p
    log.xtl_createlogger_stdiostream.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint)
    made: int | None = log.xtl_createlogger_stdiostream(ctypes.c_void_p.in_dll(_libc, "stderr"), _SILENT, 0)
    return made


def _denied(code: int) -> AttachError:
    if code in (errno.EACCES, errno.EPERM):
        return PermissionDenied(f"no access to {PRIVCMD}: run as root in dom0; try sudo")
    return AttachError(f"{PRIVCMD}: {os.strerror(code)}; is this Xen's dom0, and of the version of its tools?")


def _declare(control: Any, memory: Any, store: Any) -> None:
    pointer, number, size = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_size_t
    for library, name, result, arguments in (
        (control, "xc_interface_open", pointer, (pointer, pointer, ctypes.c_uint)),
        (control, "xc_interface_close", ctypes.c_int, (pointer,)),
        (control, "xc_domain_getinfolist", ctypes.c_int, (pointer, number, ctypes.c_uint, pointer)),
        (control, "xc_domain_pause", ctypes.c_int, (pointer, number)),
        (control, "xc_domain_unpause", ctypes.c_int, (pointer, number)),
        (control, "xc_vcpu_getcontext", ctypes.c_int, (pointer, number, number, pointer)),
        (control, "xc_vcpu_setcontext", ctypes.c_int, (pointer, number, number, pointer)),
        (control, "xc_domain_maximum_gpfn", ctypes.c_int, (pointer, number, pointer)),
        (control, "xc_get_pfn_type_batch", ctypes.c_int, (pointer, number, ctypes.c_uint, pointer)),
        (memory, "xenforeignmemory_open", pointer, (pointer, ctypes.c_uint)),
        (memory, "xenforeignmemory_close", ctypes.c_int, (pointer,)),
        (memory, "xenforeignmemory_map", pointer, (pointer, number, ctypes.c_int, size, pointer, pointer)),
        (memory, "xenforeignmemory_unmap", ctypes.c_int, (pointer, pointer, size)),
        (store, "xs_open", pointer, (ctypes.c_ulong,)),
        (store, "xs_close", None, (pointer,)),
        (store, "xs_write", ctypes.c_bool, (pointer, number, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint)),
        (store, "xs_read", pointer, (pointer, number, ctypes.c_char_p, pointer)),
    ):
        function = getattr(library, name, None)
        if function is None:
            raise Unsupported(f"Xen's library has no {name}: an unknown interface")
        function.restype, function.argtypes = result, arguments


_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.free.argtypes = (ctypes.c_void_p,)
_libc.free.restype = None
