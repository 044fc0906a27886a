"""What sockets say of themselves: addresses, ports, states, queues, owners.

Knows `struct sock_common`, `sock` and the protocols' own structs around it (include/net/sock.h, include/linux/tcp.h,
include/net/inet_timewait_sock.h, include/net/request_sock.h, include/net/af_unix.h, net/netlink/af_netlink.h,
net/packet/internal.h). TIME_WAIT and half-open connections are smaller structs: `skc_state` is looked at first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.kernel import Kernel
from vmi_inside.linux.network import words
from vmi_inside.profile.ctypes import CType
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Faults, Text, text
from vmi_inside.types import I64, U64, Mask

UNIX, INET, INET6, NETLINK, PACKET, VSOCK = 1, 2, 10, 16, 17, 40
FAMILIES: Final = {
    UNIX: "unix", INET: "inet", 3: "ax25", 4: "ipx", 5: "appletalk", 8: "pvc", 9: "x25", INET6: "inet6", 15: "key",
    NETLINK: "netlink", PACKET: "packet", 20: "atmsvc", 21: "rds", 24: "pppox", 26: "llc", 27: "ib", 28: "mpls",
    29: "can", 30: "tipc", 31: "bluetooth", 33: "rxrpc", 35: "phonet", 36: "ieee802154", 38: "alg", 39: "nfc",
    VSOCK: "vsock", 41: "kcm", 42: "qipcrtr", 43: "smc", 44: "xdp", 45: "mctp",
}  # fmt: skip
TYPES: Final = {1: "stream", 2: "dgram", 3: "raw", 4: "rdm", 5: "seqpacket", 6: "dccp", 10: "packet"}
PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 58: "icmp", 132: "sctp", 136: "udplite", 262: "mptcp"}
#: include/net/tcp_states.h; all families count with these.
STATES: Final = (
    "UNKNOWN", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT",
    "LAST_ACK", "LISTEN", "CLOSING", "SYN_RECV", "BOUND",
)  # fmt: skip
ESTABLISHED, TIME_WAIT, CLOSE, LISTEN, NEW_SYN_RECV = 1, 6, 7, 10, 12
#: include/uapi/linux/netlink.h
NETLINK_PROTOCOLS: Final = {
    0: "route", 2: "usersock", 3: "firewall", 4: "sock_diag", 5: "nflog", 6: "xfrm", 7: "selinux", 8: "iscsi",
    9: "audit", 10: "fib_lookup", 11: "connector", 12: "netfilter", 13: "ip6_fw", 14: "dnrtmsg", 15: "kobject_uevent",
    16: "generic", 18: "scsitransport", 19: "ecryptfs", 20: "rdma", 21: "crypto", 22: "smc",
}  # fmt: skip
_TCP, _RAW_TYPE = 6, 3
_LISTENER: Final = ("rsk_listener", "__req_common.skc_listener")
_ABSTRACT_LIMIT = 108  # sun_path
_QUEUE_LIMIT = 1 << 16

_COMMON: Final = (
    "skc_family", "skc_state", "skc_daddr", "skc_rcv_saddr", "skc_dport", "skc_num", "skc_net.net", "skc_bound_dev_if",
)  # fmt: skip
_V6: Final = ("skc_v6_daddr", "skc_v6_rcv_saddr")
_SOCK: Final = (
    "sk_protocol", "sk_type", "sk_uid.val", "sk_socket", "sk_backlog.rmem_alloc.counter", "sk_wmem_alloc.refs.counter",
    "sk_ack_backlog", "sk_max_ack_backlog", "sk_receive_queue.qlen",
)  # fmt: skip


class SocketRows:
    """`n` sockets by the addresses of their `sock_common`; each attribute is a column (n,)."""

    def __init__(self, kernel: Kernel, address: U64, faults: Faults, vsock: CType | None = None) -> None:
        self.kernel = kernel
        self.vsock_type = vsock
        self.address = address
        self.faults = faults
        self.common = kernel.structs("sock_common", address).fetch(*_COMMON)
        if self.common.has(*_V6):
            self.common.fetch(*_V6)
        faults.mark(self.common.fault, "socket unreadable")
        self.family = self.common.number("skc_family")
        self.raw_state = self.common.number("skc_state")
        inet = (self.family == INET) | (self.family == INET6)
        self.inet = inet & ~self.common.fault
        self.time_wait = inet & (self.raw_state == TIME_WAIT)
        self.request = inet & (self.raw_state == NEW_SYN_RECV)
        self.whole = ~self.time_wait & ~self.request & ~self.common.fault
        self.sock = self._as("sock", self.whole).fetch(*_SOCK)
        faults.mark(self.sock.fault, "socket unreadable")
        self.kind = self.sock.number("sk_type")
        self.number = np.where(self.whole, self.sock.number("sk_protocol"), _TCP)

    def _as(self, ctype: CType | str, which: Mask) -> Structs:
        """The same sockets as a larger struct that begins with `sock_common`, where `which` says so."""
        return self.kernel.structs(ctype, np.where(which, self.address, np.uint64(0)))

    @cached_property
    def tcp(self) -> Mask:
        """Whole sockets that are a `tcp_sock`."""
        stream: Mask = self.whole & self.inet & (self.number == _TCP) & (self.kind == 1)
        return stream

    def family_names(self) -> Text:
        """Address families by name, by number where they have none here."""
        return words.code(self.family, FAMILIES)

    def type_names(self) -> Text:
        """Socket types; a connection's remains are a stream's."""
        return words.code(np.where(self.whole, self.kind, 1), TYPES)

    def protocols(self) -> Text:
        """`tcp`, `udp`, `raw`, `icmp` ... of internet sockets, the family's name of others."""
        internet = (self.family == INET) | (self.family == INET6)
        out = np.where(internet, words.code(self.number, PROTOCOLS), self.family_names())
        out[internet & self.whole & (self.kind == _RAW_TYPE)] = "raw"
        return out

    def states(self) -> Text:
        """As the kernel names them; a socket without a connection is UNCONN, if it is not TCP's."""
        code = np.where(self.raw_state < len(STATES), self.raw_state, 0)
        names = np.array(STATES, dtype=object)[code]
        connected = self.tcp | self.time_wait | self.request
        names[(self.raw_state == CLOSE) & ~connected] = "UNCONN"
        if len(self._netlink[0]):
            rows, peer = self._netlink[0], self._netlink[2]
            names[rows] = np.where(peer == 0, "UNCONN", "ESTABLISHED")
        return names

    # -- addresses ----------------------------------------------------------------------------------------------------

    def addresses(self, side: str) -> Text:
        """`local` or `remote` addresses; mapped IPv4 is written `::ffff:1.2.3.4`."""
        four, six = ("skc_rcv_saddr", "skc_v6_rcv_saddr") if side == "local" else ("skc_daddr", "skc_v6_daddr")
        out = np.full(len(self.address), "", dtype=object)
        rows = np.flatnonzero(self.inet & (self.family == INET))
        out[rows] = words.inet(self.common.unsigned(four)[rows].astype("<u4").view(np.uint8).reshape(-1, 4))
        if six in self.common.type.members:
            rows = np.flatnonzero(self.inet & (self.family == INET6))
            out[rows] = words.inet(self.common[six][rows].view(np.uint8))
        if side == "local":
            for row, protocol in zip(self._netlink[0].tolist(), self.number[self._netlink[0]].tolist(), strict=True):
                out[row] = NETLINK_PROTOCOLS.get(protocol, str(protocol))
            for row, name in zip(self._packet[0].tolist(), self._packet[2], strict=True):
                out[row] = name
        cid = self._vsock[1 if side == "local" else 3]
        for row, value in zip(self._vsock[0].tolist(), cid.tolist(), strict=True):
            out[row] = "*" if value == 0xFFFFFFFF else str(value)
        return out

    def ports(self, side: str) -> I64:
        """Ports of internet and vsock sockets; a netlink socket's port id; a packet socket's protocol."""
        if side == "local":
            out = np.where(self.inet, self.common.number("skc_num"), 0)
            # A raw or ping socket's number is its protocol or identifier, as in /proc/net/raw.
            out[self._netlink[0]] = self._netlink[1]
            out[self._packet[0]] = self._packet[1]
        else:
            swapped = self.common.unsigned("skc_dport").astype("<u2").byteswap()
            out = np.where(self.inet, swapped.astype(np.int64), 0)
            out[self._netlink[0]] = self._netlink[2]
        out[self._vsock[0]] = self._vsock[2 if side == "local" else 4]
        return out

    @cached_property
    def _netlink(self) -> tuple[I64, I64, I64]:
        rows = np.flatnonzero(self.whole & (self.family == NETLINK))
        if not len(rows):
            return rows, rows, rows
        own = self.kernel.structs("netlink_sock", self.address[rows]).fetch("portid", "dst_portid", "dst_group")
        self.faults.mark(_spread(rows, own.fault, len(self.address)), "socket unreadable")
        return rows, own.number("portid"), own.number("dst_portid")

    @cached_property
    def _packet(self) -> tuple[I64, I64, list[str]]:
        """Rows, protocols (ETH_P_*) and interface names, `*` when bound to none."""
        rows = np.flatnonzero(self.whole & (self.family == PACKET))
        ctype = self.kernel.find_struct("packet_sock")
        if not len(rows) or ctype is None:
            return rows[:0], rows[:0], []
        own = self.kernel.structs(ctype, self.address[rows]).fetch("num", "ifindex", "prot_hook.dev")
        protocol = own.unsigned("num").astype("<u2").byteswap().astype(np.int64)
        device = own.follow("prot_hook.dev", self.kernel.struct("net_device"))
        names = device.text("name")
        self.faults.mark(_spread(rows, own.fault | device.fault, len(self.address)), "socket unreadable")
        shown = [
            name or (f"if{index}" if index > 0 else "*")
            for name, index in zip(names, own.number("ifindex").tolist(), strict=True)
        ]
        return rows, protocol, shown

    @cached_property
    def _vsock(self) -> tuple[I64, I64, I64, I64, I64]:
        """Rows, local cid and port, remote cid and port."""
        rows = np.flatnonzero(self.whole & (self.family == VSOCK))
        ctype = self.vsock_type
        if ctype is None:
            if len(rows):
                self.faults.mark(
                    _spread(rows, np.ones(len(rows), dtype=np.bool_), len(self.address)), "no type vsock_sock"
                )
            rows = rows[:0]
            return rows, rows, rows, rows, rows
        own = self.kernel.structs(ctype, self.address[rows])
        names = ("local_addr.svm_cid", "local_addr.svm_port", "remote_addr.svm_cid", "remote_addr.svm_port")
        own.fetch(*names)
        local_cid, local_port, remote_cid, remote_port = (own.number(name) for name in names)
        return rows, local_cid, _any_port(local_port), remote_cid, _any_port(remote_port)

    def paths(self) -> Text:
        """Names of unix sockets: a path, or `@name` for an abstract one; where the name holds a NUL, `@` stands."""
        out: list[str] = [""] * len(self.address)
        rows = np.flatnonzero(self.whole & (self.family == UNIX))
        if len(rows):
            own = self.kernel.structs("unix_sock", self.address[rows]).fetch("addr")
            named = own.follow("addr").fetch("len")
            self.faults.mark(_spread(rows, own.fault | named.fault, len(self.address)), "path unreadable")
            where = np.flatnonzero(named.address)
            name = named.type.member("name")
            raw, ok = self.kernel.space.gather(named.address[where] + np.uint64(name.offset), 2 + _ABSTRACT_LIMIT)
            # An address near the end of a page may have nothing behind it: read those to their own length.
            length = np.clip(named.number("len")[where] - 2, 0, _ABSTRACT_LIMIT)
            for at in np.flatnonzero(~ok).tolist():
                one, fine = self.kernel.space.gather(
                    named.address[where[at : at + 1]] + np.uint64(name.offset), 2 + int(length[at])
                )
                raw[at, : one.shape[1]], ok[at] = one[0], fine[0]
            self.faults.mark(_spread(rows[where], ~ok, len(self.address)), "path unreadable")
            for row, cell, size in zip(rows[where].tolist(), raw, length.tolist(), strict=True):
                out[row] = _unix_name(cell[2 : 2 + size].tobytes())
        return text(out)

    # -- queues and owners --------------------------------------------------------------------------------------------

    @cached_property
    def queues(self) -> tuple[I64, I64]:
        """Bytes waiting to be read and to be sent or acknowledged; of listeners, connections waiting and allowed."""
        sock = self.sock
        rx = sock.number("sk_backlog.rmem_alloc.counter").copy()
        tx = np.maximum(sock.number("sk_wmem_alloc.refs.counter") - 1, 0)
        rows = np.flatnonzero(self.tcp)
        if len(rows):
            tcp = self.kernel.structs("tcp_sock", self.address[rows])
            tcp.fetch("rcv_nxt", "copied_seq", "write_seq", "snd_una")
            self.faults.mark(_spread(rows, tcp.fault, len(self.address)), "queues unreadable")
            rx[rows] = np.maximum(_distance(tcp, "rcv_nxt", "copied_seq"), 0)
            tx[rows] = np.maximum(_distance(tcp, "write_seq", "snd_una"), 0)
        unix = np.flatnonzero(self.whole & (self.family == UNIX))
        rx[unix] = self._unread(unix)
        listening = self.whole & (self.raw_state == LISTEN)
        backlog = np.where(self.family == UNIX, sock.number("sk_receive_queue.qlen"), sock.number("sk_ack_backlog"))
        rx = np.where(listening, backlog, rx)
        tx = np.where(listening, sock.number("sk_max_ack_backlog"), tx)
        return np.where(self.whole, rx, 0), np.where(self.whole, tx, 0)

    def _unread(self, rows: I64) -> I64:
        """Bytes in the receive queues of unix sockets: the sum over a stream's messages, a datagram socket's first."""
        total = np.zeros(len(rows), dtype=np.int64)
        busy = np.flatnonzero((self.sock.number("sk_receive_queue.qlen")[rows] > 0) & (self.raw_state[rows] != LISTEN))
        if not len(busy):
            return total
        queue = self.sock.at("sk_receive_queue")[rows[busy]]
        first = self.kernel.structs("sk_buff_head", queue)
        found = walk.chains(self.kernel.space, first.pointer("next"), end=queue, what="receive queue")
        buffers = self.kernel.structs("sk_buff", found.address)
        length = buffers.number("len")
        stream = self.kind[rows[busy]] == 1
        # Nodes come round by round, each round's owners ascending: a chain's first node is its first occurrence.
        leading = np.zeros(len(length), dtype=np.bool_)
        leading[np.unique(found.owner, return_index=True)[1]] = True
        counted = leading | stream[found.owner]
        np.add.at(total, busy[found.owner[counted]], length[counted])
        return total

    @cached_property
    def uid(self) -> I64:
        """Owners; a half-open connection counts for its listener, TIME_WAIT is nobody's and shows 0."""
        out = np.where(self.whole, self.sock.number("sk_uid.val"), 0)
        rows = np.flatnonzero(self.request)
        if len(rows):
            request = self.kernel.structs("request_sock", self.address[rows])
            listener = request.follow(_LISTENER, self.kernel.struct("sock"))
            out[rows] = listener.number("sk_uid.val")
            self.faults.mark(_spread(rows, request.fault | listener.fault, len(self.address)), "owner unreadable")
        return out

    @cached_property
    def inode(self) -> I64:
        """Inode numbers of the sockets' files; 0 for those that have none."""
        inode, fault = self._inodes(self.sock.pointer("sk_socket"))
        self.faults.mark(fault, "inode unreadable")
        return inode

    def _inodes(self, pointer: U64) -> tuple[I64, Mask]:
        """Inode numbers of `struct socket`s, which lie beside their inodes, and which could not be read."""
        holder = self.kernel.struct("socket_alloc")
        offset = np.uint64(holder.member("socket").offset)
        rows = self.kernel.structs(holder, np.where(pointer == 0, np.uint64(0), pointer - offset))
        return rows.number("vfs_inode.i_ino"), rows.fault

    def peer_inode(self) -> I64:
        """Inode numbers of the other ends of unix sockets; 0 for those that have none."""
        out = np.zeros(len(self.address), dtype=np.int64)
        rows = np.flatnonzero(self.whole & (self.family == UNIX))
        ctype = self.kernel.find_struct("unix_sock")
        if not len(rows) or ctype is None:
            return out
        own = self.kernel.structs(ctype, self.address[rows])
        peers = own.follow("peer", self.kernel.struct("sock")).fetch("sk_socket")
        out[rows], fault = self._inodes(peers.pointer("sk_socket"))
        self.faults.mark(_spread(rows, own.fault | peers.fault | fault, len(out)), "peer unreadable")
        return out

    def net_namespaces(self) -> I64:
        """Inode numbers of the sockets' network namespaces."""
        unique, back = np.unique(self.common.pointer("skc_net.net"), return_inverse=True)
        found = self.kernel.structs("net", unique)
        inode = found.number("ns.inum")
        self.faults.mark(found.fault[back], "net namespace unreadable")
        return inode[back]

    def column(self, name: str) -> Column:
        """A column of `OpenSockets` by name, of those that a socket itself tells."""
        made: Column = _COLUMNS[name](self)
        return made


def _distance(rows: Structs, ahead: str, behind: str) -> I64:
    """Signed distance of 32-bit sequence numbers, which wrap."""
    gap = rows.unsigned(ahead).astype(np.uint32) - rows.unsigned(behind).astype(np.uint32)
    return gap.view(np.int32).astype(np.int64)


def _any_port(port: I64) -> I64:
    """VMADDR_PORT_ANY is -1U; shown as 0, as for other families."""
    return np.where(port == 0xFFFFFFFF, 0, port)


def _spread(rows: I64, which: Mask, size: int) -> Mask:
    out = np.zeros(size, dtype=np.bool_)
    out[rows[which]] = True
    return out


def _unix_name(raw: bytes) -> str:
    if raw[:1] == b"\0":
        return "@" + raw[1:].replace(b"\0", b"@").decode("utf-8", "backslashreplace")
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


_COLUMNS: dict[str, Callable[[SocketRows], Column]] = {
    "family": SocketRows.family_names,
    "protocol": SocketRows.protocols,
    "type": SocketRows.type_names,
    "state": SocketRows.states,
    "local_address": lambda rows: rows.addresses("local"),
    "local_port": lambda rows: rows.ports("local"),
    "remote_address": lambda rows: rows.addresses("remote"),
    "remote_port": lambda rows: rows.ports("remote"),
    "path": SocketRows.paths,
    "rx_queue": lambda rows: rows.queues[0],
    "tx_queue": lambda rows: rows.queues[1],
    "uid": lambda rows: rows.uid,
    "inode": lambda rows: rows.inode,
    "peer_inode": SocketRows.peer_inode,
    "net_namespace": SocketRows.net_namespaces,
    "address": lambda rows: rows.address,
}
