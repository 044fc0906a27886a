"""The other ends of unix sockets, held against what sock_diag says in the guest (what `ss -x` reads)."""

from __future__ import annotations

import struct

from tests import netlink
from tests.lab.guest import LabGuest

SOCK_DIAG, BY_FAMILY, SHOW_PEER, PEER = 4, 20, 4, 2


def test_every_unix_socket_and_its_peer(lab_each: LabGuest) -> None:
    guest = lab_each
    request = struct.pack("=BBHIIIII", 1, 0, 0, 0xFFFFFFFF, 0, SHOW_PEER, 0, 0)  # struct unix_diag_req
    head, rest = request[:16], request[16:]  # an answer begins with sixteen bytes
    told = {
        struct.unpack_from("=I", body, 4)[0]: netlink.number(found, PEER)
        for body, found in netlink.dump(guest, "/proc/1/ns/net", SOCK_DIAG, BY_FAMILY, head, rest)
    }
    with guest.attach() as seen:
        table = seen.process_open_sockets(["family", "inode", "peer_inode", "net_namespace"])
    initial = int(guest.ask("readlink /proc/1/ns/net").strip(" []\nnet:"))
    unix = table.where((table.family == "unix") & (table.net_namespace == initial))
    mine = dict(zip(unix.inode.tolist(), unix.peer_inode.tolist(), strict=True))
    assert len([inode for inode in told if told[inode]]) > 4
    assert {inode: mine.get(inode) for inode in told if inode} == {inode: peer for inode, peer in told.items() if inode}
