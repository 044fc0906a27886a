"""What a process may do: its user and group, its capabilities, changed from outside.

Knows `struct cred` (include/linux/cred.h). It is changed where it lies, which the kernel itself never does: so only
where no other process holds it, and with all vCPUs standing. Supplementary groups, keys and what a security module
remembers stay as they were; the kernel goes on counting the process as its former user's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np

from vmi_inside.control.rehearsal import Changing
from vmi_inside.control.signals import Target, same
from vmi_inside.errors import ControlError, Unsafe
from vmi_inside.kernel import Kernel
from vmi_inside.linux.processes.credentials import CAPABILITIES
from vmi_inside.linux.tasks import PIDTYPE_PID, pids
from vmi_inside.types import distinct

_UIDS: Final = ("uid", "suid", "euid", "fsuid")
_GIDS: Final = ("gid", "sgid", "egid", "fsgid")
#: Sets of capabilities, 8 bytes each (`kernel_cap_t`: two words of 32 bits until 6.2, one of 64 since).
_HELD: Final = ("cap_permitted", "cap_effective", "cap_ambient")
_SETS: Final = (*_HELD, "cap_inheritable", "cap_bset")
#: Of a change of users nothing is left that could make a process mighty; -1 stands for "as it is" (setresuid(2)).
_ID_LIMIT: Final = 0xFFFF_FFFF


def set_ids(change: Changing, of: Target, uid: int | None, gid: int | None) -> None:
    """Make a process another user's, another group's, or both (numbers of the initial user namespace).

    Real, effective, saved and file system ids alike, in all threads. As with setuid(2), a root process that becomes
    another user's loses its capabilities. Raises `ControlError`, `Unsafe`.
    """
    for number in (uid, gid):
        if number is not None and not 0 <= number < _ID_LIMIT:
            raise ControlError(f"{number} is no id of a user or group")
    layout = change.kernel.struct("cred")
    for cred, guards in _creds(change.kernel, of):
        writes: list[tuple[int, bytes, bytes | None]] = [
            (cred + layout.member(name).offset, number.to_bytes(4, "little"), None)
            for names, number in ((_UIDS, uid), (_GIDS, gid)) if number is not None
            for name in names
        ]  # fmt: skip
        if uid:
            writes += [(cred + layout.member(name).offset, bytes(8), None) for name in _HELD]
        change.apply(guards + writes, space=of.space)


def drop_capabilities(change: Changing, of: Target, drop: Iterable[str] | None) -> None:
    """Take capabilities away from a process, all of them when None: held, inherited and to be gained alike.

    Raises `ControlError` for a name that is none, `Unsafe`.
    """
    mask = (1 << 64) - 1
    if drop is not None:
        mask = 0
        for name in drop:
            plain = name.lower().removeprefix("cap_")
            if plain not in CAPABILITIES:
                raise ControlError(f"{name!r} is no capability like net_admin or CAP_SYS_PTRACE")
            mask |= 1 << CAPABILITIES.index(plain)
    layout = change.kernel.struct("cred")
    for cred, writes in _creds(change.kernel, of):
        for name in _SETS:
            at = cred + layout.member(name).offset
            old = change.read(at, 8)
            writes.append((at, (int.from_bytes(old, "little") & ~mask).to_bytes(8, "little"), old))
        change.apply(writes, space=of.space)


def _creds(kernel: Kernel, of: Target) -> Iterator[tuple[int, list[tuple[int, bytes, bytes | None]]]]:
    """The credentials of all threads of a process, each once. Raises `Unsafe` where they are not its own.

    With each come writes that change nothing: the pointers to it. They have undoing find out whether it is still the
    process's, which may have taken other credentials since.
    """
    if not same(kernel, of):
        raise ControlError(f"process {of.pid} ({of.name}) has ended")
    with kernel.operation():
        _, _, tasks = pids(kernel).tasks(kernel, PIDTYPE_PID)
        tasks.fetch("tgid", "cred", "real_cred")
    mine = tasks.number("tgid") == of.pid
    cred, real = tasks.pointer("cred"), tasks.pointer("real_cred")
    if not mine.any() or (cred[mine] != real[mine]).any() or tasks.fault[mine].any():
        raise Unsafe(f"process {of.pid} ({of.name}) acts as somebody else at this moment; nothing was done, try again")
    own = distinct(cred[mine])
    others = np.isin(cred[~mine], own) | np.isin(real[~mine], own)
    if others.any() or kernel.profile.find_symbol("init_cred") in own.tolist():
        raise Unsafe(f"process {of.pid} ({of.name}) shares its credentials with others; nothing was done")
    at = tasks.at("cred")[mine]
    for one in own.tolist():
        pointer = one.to_bytes(8, "little")
        yield one, [(where, pointer, pointer) for where in at[cred[mine] == one].tolist()]
