"""The error tree. Every error that the library raises on purpose is a `VmiError`.

    VmiError
    ├── AttachError ── NoSuchDomain, NotRunning, PermissionDenied, UnknownKernel, BadDump, GuestGone
    ├── MemoryFault ── PageFault(va, level, entry), NoMemory(pa), NotInMemory(va, why)
    ├── NoProcess, NoFile
    ├── ProfileError ── NoSymbol, NoMember, WrongProfile
    ├── BadQuery, BadSnapshot
    ├── ControlError ── Conflict, NotUndoable, Busy, Unsafe
    └── Unsupported

A message names the domain, the address or the thing missing, and the next step.
"""

from __future__ import annotations


class VmiError(Exception):
    """Base of all errors raised by this library."""


class AttachError(VmiError):
    """The guest, the dump or its kernel could not be opened."""


class NoSuchDomain(AttachError):
    """No domain of that name, UUID or id; or no file or socket at that path."""


class NotRunning(AttachError):
    """The domain exists, but has no memory to look at."""


class PermissionDenied(AttachError):
    """The operating system or libvirt refused; the message names the privilege that is missing."""


class UnknownKernel(AttachError):
    """No kernel that we know how to read was found in the guest's memory."""


class BadDump(AttachError):
    """The file is no memory dump, or is truncated or damaged."""


class GuestGone(AttachError):
    """The guest ended, was destroyed or rebooted while attached."""


class MemoryFault(VmiError):
    """An address could not be read."""


class PageFault(MemoryFault):
    """A virtual address that the guest's page tables do not map.

    `level` counts from the leaf: 1 is the page table proper, 4 or 5 the root; `entry` is the entry's raw value.
    """

    def __init__(self, va: int, level: int = 0, entry: int = 0) -> None:
        super().__init__(f"virtual address {va:#x} is not mapped (level {level}, entry {entry:#x})")
        self.va = va
        self.level = level
        self.entry = entry


class NoMemory(MemoryFault):
    """A guest-physical address where there is no RAM, or none that could be read."""

    def __init__(self, pa: int, size: int = 1) -> None:
        super().__init__(f"no readable guest memory at physical address {pa:#x} ({size} bytes)")
        self.pa = pa
        self.size = size


class NotInMemory(MemoryFault):
    """A page that its process has, but that is not in memory: swapped out, or never read from its file.

    `why` says which, in words.
    """

    def __init__(self, va: int, why: str) -> None:
        super().__init__(f"virtual address {va:#x} is not in the guest's memory: {why}")
        self.va = va
        self.why = why


class NoProcess(VmiError):
    """No process of that number runs in the guest, or it has no memory of its own."""


class NoFile(VmiError):
    """No file of that path is in the guest's memory."""


class ProfileError(VmiError):
    """The profile does not tell something that was asked of it."""


class NoSymbol(ProfileError):
    """The kernel has no symbol of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the kernel has no symbol {name!r}")
        self.name = name


class NoMember(ProfileError):
    """The kernel has no such type, or the type no such member."""

    def __init__(self, type_name: str, member: str | None = None) -> None:
        super().__init__(
            f"the kernel has no type {type_name!r}"
            if member is None
            else f"{type_name} has no member {member!r} in this kernel"
        )
        self.type_name = type_name
        self.member = member


class WrongProfile(ProfileError):
    """A profile of another kernel build, or a damaged one."""


class BadSnapshot(VmiError):
    """The file is no snapshot, or a damaged one."""


class BadQuery(VmiError):
    """A query in SQL that cannot be answered: its grammar, an unknown table or column, a result without end."""


class ControlError(VmiError):
    """A guest could not be paused, changed or called into; what was begun was put back."""


class Conflict(ControlError):
    """The guest's bytes are not what they should be before a change; nothing was written."""


class NotUndoable(ControlError):
    """A change that cannot be taken back: of another boot, taken back already, or never made."""


class Busy(ControlError):
    """Somebody else has the guest in hand: another controller, or a debugger on QEMU's gdb stub."""


class Unsafe(ControlError):
    """What was asked for may harm the guest, or there was no safe moment for it; nothing was done."""


class Unsupported(VmiError):
    """What was asked for cannot be done with this target, driver or kernel."""


class ToolFailed(VmiError):
    """Another tool that was run on the guest, or a plugin or script of it, failed."""
