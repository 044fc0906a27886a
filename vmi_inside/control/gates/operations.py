"""What can be denied: operations, and the kernel functions that ask a security module for each.

Knows include/linux/lsm_hook_defs.h, 5.10 to 7.2, and the ways around those hooks that sockets have. What a function's
arguments are is told by `kind`, for which `stub` has the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal[
    "create", "socket", "connect", "send", "receive", "getsockopt", "splice", "task", "open", "tracer", "traced",
    "signal", "read-module", "load-module",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hooked:
    """One function: alternatives of its name, what it is called with, and whether the operation can do without it."""

    symbols: tuple[str, ...]
    kind: Kind
    needed: bool = True


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: its bit in a rule, what it is in words, the functions that decide it."""

    name: str
    bit: int
    words: str
    hooks: tuple[Hooked, ...]


NETWORK: Final = "network"
OPEN: Final = "open"

OPERATIONS: Final = {
    one.name: one
    for one in (
        Operation(NETWORK, 1 << 0, "sockets that reach beyond this machine's kernel", (
            Hooked(("security_socket_create",), "create"),
            Hooked(("security_socket_bind",), "socket"),
            Hooked(("security_socket_connect",), "connect"),
            Hooked(("security_socket_listen",), "socket"),
            Hooked(("security_socket_accept",), "socket"),
            Hooked(("security_socket_sendmsg",), "send"),
            Hooked(("security_socket_recvmsg",), "receive"),
            # What asks no security module: sendfile() to a socket until 6.5, splice() from one, and receiving by
            # mapping pages (TCP_ZEROCOPY_RECEIVE).
            Hooked(("sock_sendpage",), "splice", needed=False),
            Hooked(("sock_splice_read",), "splice", needed=False),
            Hooked(("security_socket_getsockopt",), "getsockopt", needed=False),
        )),
        Operation("exec", 1 << 1, "running programs (execve)", (
            Hooked(("security_bprm_creds_for_exec", "security_bprm_check"), "task"),
        )),
        Operation(OPEN, 1 << 2, "opening files", (Hooked(("security_file_open",), "open"),)),
        Operation("module", 1 << 3, "loading kernel modules", (
            Hooked(("security_kernel_read_file",), "read-module"),
            Hooked(("security_kernel_load_data",), "load-module"),
            Hooked(("security_kernel_module_request",), "task", needed=False),
        )),
        Operation("ptrace", 1 << 4, "tracing other processes, and reading their memory", (
            Hooked(("security_ptrace_access_check",), "tracer"),
            Hooked(("security_ptrace_traceme",), "traced"),
        )),
        Operation("kill", 1 << 5, "signals to other processes", (Hooked(("security_task_kill",), "signal"),)),
    )
}  # fmt: skip

#: Families whose sockets reach no further than this machine's kernel (include/linux/socket.h): unix, key management,
#: netlink, cryptography.
UNIX: Final = 1
_LOCAL: Final = (UNIX, 15, 16, 38)
#: Bits of a rule's families: what is above 62 counts as 62; 63 stands for operations that are about no socket.
LAST_FAMILY: Final = 62
NO_SOCKET: Final = 63
EVERY_FAMILY: Final = (1 << 64) - 1


def families(operation: Operation, *, unix: bool) -> int:
    """The bits of the socket families that a rule refuses: all that reach out; unix sockets when asked."""
    if operation.name != NETWORK:
        return EVERY_FAMILY
    return EVERY_FAMILY & ~sum(1 << family for family in _LOCAL if family != UNIX or not unix)
