"""Credentials of processes: ids, groups, capabilities, and what limits them.

Knows `cred` (include/linux/cred.h), `group_info`, `kernel_cap_t` (one number since 6.3, two halves before) and
`seccomp`. Keyrings are left to others, and so is what a security module makes of its label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Final

import numpy as np

from vmi_inside import ragged
from vmi_inside.kernel import Kernel
from vmi_inside.linux.bits import words
from vmi_inside.linux.names import task_names
from vmi_inside.linux.processes import apparmor
from vmi_inside.linux.processes.view import TaskColumn, View, process_table
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Table, Text, text
from vmi_inside.types import I64, U64, Mask

#: NGROUPS_MAX.
GROUP_LIMIT: Final = 1 << 16
#: Groups that are shown of all lists together.
_GROUPS_IN_ALL: Final = 1 << 19
#: Capabilities by bit (include/uapi/linux/capability.h, 5.9 and later).
CAPABILITIES: Final = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
)  # fmt: skip
_SETS: Final = {"inheritable": "cap_inheritable", "permitted": "cap_permitted", "effective": "cap_effective",
                "bounding": "cap_bset", "ambient": "cap_ambient"}  # fmt: skip
_IDS: Final = ("uid", "gid", "euid", "egid", "suid", "sgid", "fsuid", "fsgid")
#: Each bit, and above it the one that locks it (include/uapi/linux/securebits.h).
_SECURE: Final = ("noroot", "no_setuid_fixup", "keep_caps", "no_cap_ambient_raise", "exec_restrict_file",
                  "exec_deny_interactive")  # fmt: skip
_SECCOMP: Final = ("disabled", "strict", "filter")
_NO_NEW_PRIVS: Final = 1 << 0  # PFA_NO_NEW_PRIVS (include/linux/sched.h)


class ProcessCredentials(Table):
    """One row for each process; sets of capabilities as words, and beside them as the numbers of /proc/PID/status."""

    pid: I64
    name: Text
    uid: I64
    gid: I64
    euid: I64  # effective
    egid: I64
    suid: I64  # saved
    sgid: I64
    fsuid: I64  # for files
    fsgid: I64
    groups: Text  # supplementary, joined by commas
    inheritable: Text  # cap_chown,cap_kill ...
    permitted: Text
    effective: Text
    bounding: Text
    ambient: Text
    inheritable_mask: U64
    permitted_mask: U64
    effective_mask: U64
    bounding_mask: U64
    ambient_mask: U64
    securebits: Text  # noroot, keep_caps, ...; with _locked behind it where it stays so
    no_new_privs: Mask
    seccomp: Text  # disabled strict filter
    seccomp_filters: I64
    label: Text  # AppArmor's, as /proc/PID/attr/current has it
    loginuid: I64  # whose login it came from; -1 where it did not
    sessionid: I64  # of audit; -1 outside of any
    user_namespace: I64  # inode number: whose capabilities these are


class _View(View):
    """Processes and their credentials."""

    def ids(self, name: str) -> I64:
        """A user or group id (n,)."""
        return self.cred.fetch(*(f"{each}.val" for each in _IDS)).number(f"{name}.val")

    @cached_property
    def groups(self) -> Text:
        """Supplementary groups, read once for each list."""
        unique, back = np.unique(self.cred.pointer("group_info"), return_inverse=True)
        lists = self.kernel.structs("group_info", unique)
        count = lists.number("ngroups")
        taken = np.clip(count, 0, GROUP_LIMIT)
        fits = ragged.fitting(taken, _GROUPS_IN_ALL)
        got = ragged.gather(self.kernel.space, lists.at("gid"), np.where(fits, 4 * taken, 0))
        bad = lists.fault | ~got.ok | ~fits | (count != taken)
        self.faults.mark(bad[back], "groups unreadable or not believable")
        shown = (",".join(map(str, np.frombuffer(raw, "<u4").tolist())) for raw in got.rows())
        return text(shown)[back]

    @cached_property
    def capabilities(self) -> dict[str, U64]:
        """The five sets (n,), each as one number."""
        rows = self.cred.fetch(*_SETS.values())
        return {name: np.ascontiguousarray(rows[member]).view("<u8")[:, 0] for name, member in _SETS.items()}

    def seccomp(self) -> Text:
        """The mode in words."""
        mode = self.tasks.number("seccomp.mode")
        self.faults.mark((mode < 0) | (mode >= len(_SECCOMP)), "no such seccomp mode")
        return text((*_SECCOMP, ""))[np.where((mode >= 0) & (mode < len(_SECCOMP)), mode, len(_SECCOMP))]

    def label(self) -> Text:
        """AppArmor's label; empty where AppArmor is not there."""
        creds: Structs = self.cred
        shown, ok = apparmor.labels(self.kernel, creds)
        self.faults.mark(~ok, "label unreadable")
        return shown


def capability(bit: int) -> str:
    """What a capability is called; its number where it has no name."""
    return f"cap_{CAPABILITIES[bit]}" if bit < len(CAPABILITIES) else str(bit)


def _secure(bit: int) -> str:
    known = bit >> 1 < len(_SECURE)
    return (_SECURE[bit >> 1] + ("_locked" if bit & 1 else "")) if known else f"bit_{bit}"


def _unset(values: I64) -> I64:
    """An audit number: all bits set is none."""
    return np.where(values == (1 << 32) - 1, np.int64(-1), values)


def _id(name: str) -> Callable[[_View], Column]:
    return lambda view: view.ids(name)


def _names(name: str) -> Callable[[_View], Column]:
    return lambda view: words(view.capabilities[name], capability)


def _numbers(name: str) -> Callable[[_View], Column]:
    return lambda view: view.capabilities[name]


_COLUMNS: Final[dict[str, TaskColumn[_View]]] = {
    "pid": TaskColumn(lambda view: view.number),
    "name": TaskColumn(lambda view: text(task_names(view.kernel, view.tasks)), ("comm", "flags")),
    **{name: TaskColumn(_id(name), ("real_cred",)) for name in _IDS},
    "groups": TaskColumn(lambda view: view.groups, ("real_cred",)),
    **{name: TaskColumn(_names(name), ("real_cred",)) for name in _SETS},
    **{f"{name}_mask": TaskColumn(_numbers(name), ("real_cred",)) for name in _SETS},
    "securebits": TaskColumn(lambda view: words(view.cred.unsigned("securebits"), _secure), ("real_cred",)),
    "no_new_privs": TaskColumn(
        lambda view: view.tasks.number("atomic_flags") & _NO_NEW_PRIVS != 0, ("atomic_flags",)
    ),
    "seccomp": TaskColumn(_View.seccomp, ("seccomp.mode",)),
    "seccomp_filters": TaskColumn(
        lambda view: view.tasks.number("seccomp.filter_count.counter"), ("seccomp.filter_count.counter",)
    ),
    "label": TaskColumn(_View.label, ("real_cred",)),
    "loginuid": TaskColumn(lambda view: _unset(view.tasks.number("loginuid.val")), ("loginuid.val",)),
    "sessionid": TaskColumn(lambda view: _unset(view.tasks.number("sessionid")), ("sessionid",)),
    "user_namespace": TaskColumn(
        lambda view: view.namespace_inode(view.cred.follow("user_ns"), "user namespace"), ("real_cred",)
    ),
}  # fmt: skip


def process_credentials(
    kernel: Kernel, columns: Iterable[str] | None = None, *, pids: frozenset[int] | None = None
) -> ProcessCredentials:
    """The credentials of all processes, or of those in `pids`; `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have.
    """
    return process_table(kernel, ProcessCredentials, _COLUMNS, columns, pids, _View)
