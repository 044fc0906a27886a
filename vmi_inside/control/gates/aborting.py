"""Open connections of a rule's subject, ended as `ss --kill` ends them: the far end is told, the process finds out.

Knows which sockets are connections (`struct sock`; include/net/tcp_states.h), who holds them, and how the kernel is
told to end one (`sock_diag_destroy`, net/core/sock_diag.c, 5.10 to 7.2), for which it must be able to sleep: how that
is brought about is `deferred`'s matter.

A socket that somebody else holds too, such as one that was inherited, is left alone. So is what waits to be accepted.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

import numpy as np

from vmi_inside.control.deferred import Deferring
from vmi_inside.control.gates.layout import Network, Rule
from vmi_inside.control.gates.offsets import Offsets
from vmi_inside.control.gates.subjects import subjects
from vmi_inside.control.work import Calls
from vmi_inside.errors import NoSymbol, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.descriptors import descriptors
from vmi_inside.linux.tasks import PIDTYPE_PID, pids
from vmi_inside.types import U64, Mask

if TYPE_CHECKING:
    from vmi_inside.control.controls import Controls

_DESTROY: Final = "sock_diag_destroy"
#: `sock_put`, in the form that kernels keep as a function of its own.
_LET_GO: Final = "sock_gen_put"
_INET, _INET6 = 2, 10
_TCP, _UDP = 6, 17
#: States of TCP in which there is no connection to end: TIME_WAIT, CLOSE, LISTEN, NEW_SYN_RECV.
_NO_CONNECTION: Final = (6, 7, 10, 12)
_ESTABLISHED: Final = 1
_REFERENCES: Final = "__sk_common.skc_refcnt.refs.counter"
#: So many times as many connections as one go has room for.
_ROUNDS: Final = 16
#: How often what is shared is looked at again, and the seconds between.
_LOOKS: Final = 5
_BREATH: Final = 0.05
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"


@dataclass(frozen=True, slots=True)
class Aborted:
    """How many connections were ended; how many others could not be, or were left to whom they belong, too."""

    ended: int
    failed: int
    shared: int

    def words(self) -> str:
        """For people."""
        said = f"{self.ended} connection{'' if self.ended == 1 else 's'} ended"
        if self.failed:
            said += f", {self.failed} ended by {'itself' if self.failed == 1 else 'themselves'} before"
        if self.shared:
            said += f", {self.shared} left alone: somebody else holds {'it' if self.shared == 1 else 'them'} too"
        return said


@dataclass(frozen=True, slots=True)
class Connections:
    """Connections of a subject: `sock` (n,); where each is held: the address of a descriptor (n,), the `struct file`
    in it (n,), the address of its `private_data` (n,), the `struct socket` there (n,). `shared` were left out.
    """

    sock: U64
    slot: U64
    file: U64
    private: U64
    socket: U64
    shared: int


class Aborting:
    """Ends connections in one guest. Raises `Unsupported` for kernels that cannot be told to."""

    def __init__(self, controls: Controls, offsets: Offsets) -> None:
        self.kernel: Kernel = controls.kernel
        self.offsets = offsets
        try:
            self._destroy, self._let_go = self.kernel.symbol(_DESTROY), self.kernel.symbol(_LET_GO)
        except NoSymbol as error:
            raise Unsupported(f"connections cannot be ended in this kernel: {error}") from None
        self._deferring = Deferring(controls)
        self._deferring.room()

    def words(self) -> str:
        """What would be done, for people."""
        return (
            f"then open connections would be ended: {_DESTROY} called for each by one of the guest's workers, with "
            f"code for that at {self._deferring.room():#x} meanwhile, and a reference to each socket"
        )

    def abort(self, rule: Rule, mark: int, reason: str) -> Aborted:
        """End the connections that a rule which stands refuses. Raises what `Deferring.run` does."""
        ended = failed = shared = 0
        for _ in range(_ROUNDS):
            results = self._deferring.run(
                lambda: self._calls(self.find(rule, mark)), f"end connections: {reason}", {"gate": "abort"}
            )
            good = sum(not value & 0xFFFF_FFFF for value in results)
            ended, failed = ended + good, failed + len(results) - good
            if results and not good:  # they would not be ended by asking again
                shared = self.find(rule, mark).shared
                break
            left = self._left(rule, mark)
            shared = left.shared
            if not len(left.sock):
                break
        return Aborted(ended, failed, shared)

    def _left(self, rule: Rule, mark: int) -> Connections:
        """What still is to be ended. Whoever has just forked shares its connections, until its child begins a program
        of its own: those that are shared are looked at for a little."""
        left = self.find(rule, mark)
        for _ in range(_LOOKS):
            if len(left.sock) or not left.shared:
                break
            time.sleep(_BREATH)
            left = self.find(rule, mark)
        return left

    def find(self, rule: Rule, mark: int) -> Connections:
        """The connections that a rule refuses to its subject, as they are now."""
        kernel = self.kernel
        with kernel.operation():
            _, _, tasks = pids(kernel).tasks(kernel, PIDTYPE_PID)
            mine = subjects(kernel, self.offsets, mark, rule, tasks)
            held = descriptors(kernel, tasks)
            files = kernel.structs("file", held.file).fetch("f_op", "private_data")
            is_socket = files.pointer("f_op") == np.uint64(kernel.symbol("socket_file_ops"))
            rows = np.flatnonzero(is_socket & ~files.fault)
            files = files.select(rows)
            sockets = files.follow("private_data", kernel.struct("socket"))
            sock = sockets.pointer("sk")
            of_mine = mine[held.task[rows]]
            own, first = np.unique(sock[of_mine], return_index=True)
            which = np.flatnonzero(of_mine)[first]
            refused = self._refused(own, rule) & (own != 0)
            shared = np.isin(own, sock[~of_mine])
            chosen = which[refused & ~shared]
        return Connections(
            sock[chosen], held.slot[rows[chosen]], files.address[chosen], files.at("private_data")[chosen],
            sockets.address[chosen], int((refused & shared).sum()),
        )  # fmt: skip

    def _refused(self, sock: U64, rule: Rule) -> Mask:
        """Which (n,) are connections, and to where the rule lets nothing through."""
        common = "__sk_common."
        rows = self.kernel.structs("sock", sock).fetch(common + "skc_family", common + "skc_state", "sk_protocol")
        family, state = rows.number(common + "skc_family"), rows.number(common + "skc_state")
        protocol = rows.number("sk_protocol") & 0xFFFF
        stream = (protocol == _TCP) & ~np.isin(state, _NO_CONNECTION)
        datagram = (protocol == _UDP) & (state == _ESTABLISHED)
        found: Mask = np.isin(family, (_INET, _INET6)) & (stream | datagram) & ~rows.fault
        if rule.networks:
            narrow, _ = self.kernel.space.gather(sock + np.uint64(self.offsets.peer), 4)
            wide, _ = self.kernel.space.gather(sock + np.uint64(max(self.offsets.peer6, 0)), 16)
            for at in np.flatnonzero(found).tolist():
                raw = wide[at].tobytes() if family[at] == _INET6 else _MAPPED + narrow[at].tobytes()
                found[at] = not any(_within(raw, network) for network in rule.networks)
        return found

    def _calls(self, found: Connections) -> Calls:
        at = np.uint64(self.kernel.struct("socket").member("sk").offset)
        count = self.kernel.struct("sock").member(_REFERENCES).offset
        # What hangs on a descriptor that is open still is alive.
        guards = (
            (found.slot, found.file), (found.private, found.socket), (found.socket + at, found.sock),
        )  # fmt: skip
        return Calls(
            self._destroy,
            tuple((sock, errno.ECONNABORTED) for sock in found.sock.tolist()),
            self._let_go,
            tuple(pair for one in guards for pair in zip(one[0].tolist(), one[1].tolist(), strict=True)),
            tuple(sock + count for sock in found.sock.tolist()),
        )


def _within(raw: bytes, network: Network) -> bool:
    """Whether 16 bytes of an address are in a network, IPv4 being mapped as gates' code maps it."""
    address = ip_address(raw)
    assert isinstance(address, IPv6Address)
    if network.version == 4:
        return address.ipv4_mapped is not None and address.ipv4_mapped in network
    return address in network
