from __future__ import annotations

import socket
from typing import Any

import numpy as np
import pytest

from tests.synthetic import LinuxGuest
from tests.synthetic.guest import HOLE, NOWHERE
from vmi_inside.linux.sockets import OpenSockets, process_open_sockets

STREAM, DGRAM, RAW = 1, 2, 3
UNIX, INET, INET6, NETLINK, PACKET = 1, 2, 10, 16, 17
TCP, UDP = 6, 17
ESTABLISHED, TIME_WAIT, CLOSE, LISTEN, NEW_SYN_RECV = 1, 6, 7, 10, 12


def shown(table: OpenSockets, address: int) -> list[dict[str, Any]]:
    return [row for row in table.to_dicts() if row["address"] == address]


def one(table: OpenSockets, address: int) -> dict[str, Any]:
    rows = shown(table, address)
    assert len(rows) == 1
    return rows[0]


@pytest.fixture(params=["newer", "older", "scattered-la57"])
def guest(request: pytest.FixtureRequest) -> LinuxGuest:
    if request.param == "scattered-la57":
        return LinuxGuest(5, scattered=True)
    return LinuxGuest(older=request.param == "older")


def test_tcp_in_every_shape(guest: LinuxGuest) -> None:
    server = guest.task(500, "server", uid=1000)
    child = guest.task(501, "child", 500, uid=1000)
    listener = guest.sock(
        INET, STREAM, TCP, LISTEN, struct="tcp_sock", uid=1000, local=("0.0.0.0", 80), inode=11,
        sk_ack_backlog=3, sk_max_ack_backlog=128,
    )  # fmt: skip
    guest.hash_listener(listener, 4)
    live = guest.sock(
        INET, STREAM, TCP, ESTABLISHED, struct="tcp_sock", uid=1000, local=("10.0.0.1", 80),
        remote=("10.0.0.2", 40000), inode=12, rcv_nxt=5, copied_seq=(1 << 32) - 5, write_seq=1000, snd_una=900,
    )  # fmt: skip
    guest.hash_tcp(live, 7)
    six = guest.sock(
        INET6, STREAM, TCP, 8, struct="tcp_sock", local=("::ffff:10.0.0.1", 80), remote=("::ffff:10.0.0.9", 1), inode=13
    )
    guest.hash_tcp(six, 7)
    waiting = guest.sock(
        INET, STREAM, 0, TIME_WAIT, struct="sock_common", local=("10.0.0.1", 80), remote=("10.0.0.3", 50000)
    )
    guest.hash_tcp(waiting, 200)
    half = guest.sock(
        INET,
        STREAM,
        0,
        NEW_SYN_RECV,
        struct="request_sock",
        local=("10.0.0.1", 80),
        remote=("10.0.0.4", 6),
        rsk_listener=listener,
    )
    guest.hash_tcp(half, 201)
    guest.open(server, {3: guest.socket_file(listener), 5: guest.file("etc", "passwd")})
    shared = guest.socket_file(live)
    guest.open(child, {0: shared, 1: shared, 63: guest.socket_file(listener)})
    table = process_open_sockets(guest.finish().kernel)

    assert table.notes == ()
    assert set(table.fault) == {""}
    assert len(table) == 2 + 2 + 1 + 1 + 1
    common = {
        "family": "inet", "protocol": "tcp", "type": "stream", "path": "", "peer_inode": 0,
        "net_namespace": 0xF0000001, "fault": "",
    }  # fmt: skip
    assert shown(table, listener) == [
        {
            **common, "state": "LISTEN", "local_address": "0.0.0.0", "local_port": 80, "remote_address": "0.0.0.0",
            "remote_port": 0, "rx_queue": 3, "tx_queue": 128, "uid": 1000, "inode": 11, "pid": pid, "fd": fd,
            "name": name, "address": listener,
        }
        for pid, fd, name in ((500, 3, "server"), (501, 63, "child"))
    ]  # fmt: skip
    assert [(row["pid"], row["fd"]) for row in shown(table, live)] == [(501, 0), (501, 1)]
    assert shown(table, live)[0].items() >= {
        **common, "state": "ESTABLISHED", "local_address": "10.0.0.1", "remote_address": "10.0.0.2",
        "remote_port": 40000, "rx_queue": 10, "tx_queue": 100, "inode": 12,
    }.items()  # fmt: skip
    assert one(table, six).items() >= {
        **common, "family": "inet6", "state": "CLOSE_WAIT", "local_address": "::ffff:10.0.0.1", "pid": -1, "fd": -1,
        "name": "", "inode": 13,
    }.items()  # fmt: skip
    assert one(table, waiting).items() >= {
        **common, "state": "TIME_WAIT", "remote_address": "10.0.0.3", "remote_port": 50000, "local_port": 80, "uid": 0,
        "inode": 0, "pid": -1, "rx_queue": 0, "tx_queue": 0,
    }.items()  # fmt: skip
    assert (
        one(table, half).items() >= {**common, "state": "SYN_RECV", "remote_port": 6, "uid": 1000, "inode": 0}.items()
    )


def test_the_other_families(guest: LinuxGuest) -> None:
    task = guest.task(9, "many", uid=5)
    udp = guest.sock(
        INET, DGRAM, UDP, CLOSE, uid=5, local=("127.0.0.1", 53), inode=1, sk_backlog__rmem_alloc__counter=768
    )
    guest.hash(guest.udp_hash + 16 * 53, udp)
    raw = guest.sock(INET, RAW, 1, CLOSE, local=("0.0.0.0", 1), inode=2)
    guest.hash(guest.raw4 + guest.offset("raw_hashinfo", "ht") + 8, raw)
    ping = guest.sock(INET, DGRAM, 1, CLOSE, local=("0.0.0.0", 77), inode=3)
    guest.hash(guest.ping + 8 * 13, ping)
    named = guest.sock(UNIX, STREAM, 0, LISTEN, struct="unix_sock", inode=4)
    guest.unix_name(named, b"/run/x.sock\0")
    abstract = guest.sock(UNIX, DGRAM, 0, CLOSE, struct="unix_sock", inode=5)
    guest.unix_name(abstract, b"\0ab\0c")
    stream = guest.sock(UNIX, STREAM, 0, ESTABLISHED, struct="unix_sock", inode=6)
    for index, at in enumerate((named, abstract, stream)):
        guest.hash_unix(at, index // 2)
    for at, lengths in ((stream, (10, 20, 30)), (abstract, (7, 70))):
        queue = at + guest.offset("sock", "sk_receive_queue")
        guest.chain(queue, [guest.new("sk_buff", len=length) for length in lengths], queue)
        guest.put("sock", at, sk_receive_queue__qlen=len(lengths))
    route = guest.sock(NETLINK, RAW, 0, CLOSE, struct="netlink_sock", inode=7, portid=1234)
    kernel = guest.sock(NETLINK, RAW, 15, CLOSE, struct="netlink_sock")
    guest.hash_netlink(route, 0, 3)
    guest.hash_netlink(kernel, 15, 0)
    device = guest.new("net_device", name=b"eth0")
    packet = guest.sock(
        PACKET,
        RAW,
        socket.htons(3),
        CLOSE,
        struct="packet_sock",
        inode=8,
        ifindex=2,
        num=socket.htons(3),
        prot_hook__dev=device,
    )
    guest.hash_packet(packet)
    guest.open(
        task,
        {fd: guest.socket_file(at) for fd, at in enumerate((udp, raw, ping, named, abstract, stream, route, packet))},
    )
    table = process_open_sockets(guest.finish().kernel)

    assert table.notes == ()
    assert set(table.fault) == {""}
    assert len(table) == 9
    assert table.pid.tolist().count(9) == 8
    expected: dict[int, dict[str, Any]] = {
        udp: {
            "protocol": "udp",
            "state": "UNCONN",
            "local_port": 53,
            "local_address": "127.0.0.1",
            "rx_queue": 768,
            "uid": 5,
        },
        raw: {"protocol": "raw", "type": "raw", "local_port": 1, "state": "UNCONN"},
        ping: {"protocol": "icmp", "local_port": 77},
        named: {
            "family": "unix",
            "protocol": "unix",
            "type": "stream",
            "state": "LISTEN",
            "path": "/run/x.sock",
            "local_address": "",
        },
        abstract: {"type": "dgram", "state": "UNCONN", "path": "@ab@c", "rx_queue": 7},
        stream: {"state": "ESTABLISHED", "path": "", "rx_queue": 60},
        route: {"family": "netlink", "local_address": "route", "local_port": 1234, "state": "UNCONN"},
        kernel: {"local_address": "kobject_uevent", "pid": -1, "inode": 0},
        packet: {"family": "packet", "local_address": "eth0", "local_port": 3, "inode": 8},
    }
    for address, want in expected.items():
        found = one(table, address)
        assert {name: found[name] for name in want} == want


def test_every_namespace_is_listed_and_each_table_once() -> None:
    guest = LinuxGuest()
    guest.task(1, "init")
    other = guest.net(77)
    mine = guest.sock(UNIX, STREAM, 0, CLOSE, other, struct="unix_sock")
    guest.hash_unix(mine, 511, other)
    listener = guest.sock(INET, STREAM, TCP, LISTEN, other, struct="tcp_sock", local=("0.0.0.0", 1))
    guest.hash_listener(listener, 0)
    table = process_open_sockets(guest.finish().kernel)
    assert table.notes == ()
    assert table.net_namespace.tolist() == [77, 77]
    assert len(shown(table, listener)) == 1, "both namespaces share one table"


def test_only_what_was_asked_for() -> None:
    guest = LinuxGuest()
    guest.hash_unix(guest.sock(UNIX, STREAM, 0, CLOSE, struct="unix_sock"), 1)
    table = process_open_sockets(guest.finish().kernel, ["pid", "state"])
    assert table.columns == ("state", "pid", "fault")
    with pytest.raises(AttributeError, match="no column 'colour'"):
        process_open_sockets(guest.kernel, ["colour"])


def test_rounds_do_not_grow_with_sockets() -> None:
    def gathers(count: int) -> int:
        guest = LinuxGuest(scattered=True)
        task = guest.task(1, "init")
        fds = {}
        for index in range(count):
            at = guest.sock(
                INET,
                STREAM,
                TCP,
                ESTABLISHED,
                struct="tcp_sock",
                local=("10.0.0.1", index),
                remote=("10.0.0.2", 9),
                inode=index + 1,
            )
            guest.hash_tcp(at, index % 256)
            fds[index] = guest.socket_file(at)
        guest.open(task, fds, 1024)
        guest.finish()
        table = process_open_sockets(guest.kernel)
        assert sorted(table.local_port.tolist()) == list(range(count))
        assert np.array_equal(table.fd, table.local_port)
        assert set(table.fault) == {""}
        return guest.memory.gathers

    few = gathers(50)
    assert gathers(250) <= few + 10
    assert gathers(1000) <= few + 30, "chains four long: four rounds, with their translations"


# -- lies --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def crowd() -> LinuxGuest:
    guest = LinuxGuest(scattered=True)
    task = guest.task(1, "honest")
    sockets = [
        guest.sock(
            INET,
            STREAM,
            TCP,
            ESTABLISHED,
            struct="tcp_sock",
            local=("10.0.0.1", 100 + i),
            remote=("10.0.0.2", 9),
            inode=i + 1,
        )
        for i in range(20)
    ]
    for index, at in enumerate(sockets):
        guest.hash_tcp(at, index)
    guest.open(task, {index: guest.socket_file(at) for index, at in enumerate(sockets)})
    guest.task(2, "liar")
    return guest


def look(guest: LinuxGuest) -> OpenSockets:
    """The table, after a look that the honest ones are all there and whole."""
    table = process_open_sockets(guest.kernel)
    honest = table.where((table.pid == 1) & (table.local_port >= 100))
    assert sorted(honest.local_port.tolist()) == list(range(100, 120))
    assert honest.fd.tolist() == [port - 100 for port in honest.local_port.tolist()]
    assert set(honest.fault) == {""}
    return table


def test_a_chain_in_a_circle(crowd: LinuxGuest) -> None:
    one, two = (crowd.sock(INET, STREAM, TCP, ESTABLISHED, struct="tcp_sock", local=("1.1.1.1", 7)) for _ in range(2))
    crowd.hash_tcp(one, 100)
    crowd.hash_tcp(two, 100)
    crowd.finish()
    node = crowd.offset("sock_common", "skc_nulls_node")
    crowd.word(two + node, one + node)
    table = look(crowd)
    assert len(shown(table, one)) == len(shown(table, two)) == 1
    assert any("circle" in note for note in table.notes)


@pytest.mark.parametrize("pointer", [NOWHERE, HOLE, 0x4141_4141_4141_4140])
def test_a_chain_into_nowhere(crowd: LinuxGuest, pointer: int) -> None:
    one = crowd.sock(INET, STREAM, TCP, ESTABLISHED, struct="tcp_sock", local=("1.1.1.1", 7))
    crowd.hash_tcp(one, 100)
    crowd.finish()
    crowd.word(one + crowd.offset("sock_common", "skc_nulls_node"), pointer)
    table = look(crowd)
    assert len(shown(table, one)) == 1
    assert any("could not be read" in note for note in table.notes)


@pytest.mark.parametrize("mask", [(1 << 31) - 1, (1 << 32) - 1, 1 << 24])
def test_a_hash_of_absurd_size(crowd: LinuxGuest, mask: int) -> None:
    crowd.finish()
    crowd.put("inet_hashinfo", crowd.hashinfo, ehash_mask=mask)
    table = look(crowd)  # by their descriptors all the same
    assert any("is not believed" in note or "part of the table" in note for note in table.notes)


def test_descriptor_tables_that_lie(crowd: LinuxGuest) -> None:
    liar = crowd.tasks[2]
    crowd.open(liar, {0: NOWHERE, 1: 3, 2: (1 << 64) - 1})
    fdt = crowd.space.read_u64(liar.files + crowd.offset("files_struct", "fdt"))
    crowd.finish()
    assert any("files could not be read" in note for note in look(crowd).notes)
    for size in (1 << 31, (1 << 32) - 1, 1 << 20):
        crowd.put("fdtable", fdt, max_fds=size)
        assert any("descriptor" in note for note in look(crowd).notes)
    crowd.put("fdtable", fdt, fd=NOWHERE, max_fds=64)
    assert any("descriptor tables" in note for note in look(crowd).notes)
    crowd.give(liar, files=NOWHERE)
    assert any("descriptor tables" in note for note in look(crowd).notes)


def test_many_descriptor_tables_that_lie_do_not_starve_the_honest(crowd: LinuxGuest) -> None:
    for pid in range(3, 40):
        liar = crowd.task(pid, "liar")
        crowd.open(liar, {}, 8)
        crowd.put("fdtable", crowd.space.read_u64(liar.files + crowd.offset("files_struct", "fdt")), max_fds=1 << 30)
    crowd.finish()
    assert any("descriptor" in note for note in look(crowd).notes)


def test_a_socket_whose_parts_are_nowhere(crowd: LinuxGuest) -> None:
    orphan = crowd.sock(INET, STREAM, TCP, ESTABLISHED, struct="tcp_sock", local=("1.1.1.1", 7))
    crowd.put("sock", orphan, sk_socket=NOWHERE + 0x800)
    crowd.put("sock_common", orphan, skc_net__net=NOWHERE)
    crowd.hash_tcp(orphan, 50)
    named = crowd.sock(UNIX, STREAM, 0, LISTEN, struct="unix_sock", addr=NOWHERE)
    crowd.hash_unix(named, 1)
    half = crowd.sock(INET, STREAM, 0, NEW_SYN_RECV, struct="request_sock", local=("1.1.1.1", 8), rsk_listener=NOWHERE)
    crowd.hash_tcp(half, 51)
    strange = crowd.sock(200, 99, 999, 255)
    crowd.hash_unix(strange, 2)
    table = look(crowd.finish())
    fault = one(table, orphan)["fault"]
    assert "inode unreadable" in fault
    assert "net namespace unreadable" in fault
    assert one(table, named)["fault"] == "path unreadable"
    assert one(table, half)["fault"]
    assert one(table, strange)["family"] == "200"


def test_a_receive_queue_in_a_circle(crowd: LinuxGuest) -> None:
    at = crowd.sock(UNIX, STREAM, 0, ESTABLISHED, struct="unix_sock", sk_receive_queue__qlen=2)
    buffers = [crowd.new("sk_buff", len=5) for _ in range(2)]
    crowd.chain(at + crowd.offset("sock", "sk_receive_queue"), buffers, buffers[0])
    crowd.hash_unix(at, 1)
    assert one(look(crowd.finish()), at)["rx_queue"] == 10


@pytest.mark.parametrize("length", [0, 1, 1 << 31, (1 << 32) - 1])
def test_a_unix_name_of_absurd_length(crowd: LinuxGuest, length: int) -> None:
    at = crowd.sock(UNIX, STREAM, 0, LISTEN, struct="unix_sock")
    crowd.unix_name(at, b"\0" + b"x" * 200)
    crowd.put("unix_address", crowd.space.read_u64(at + crowd.offset("unix_sock", "addr")), len=length)
    crowd.hash_unix(at, 1)
    assert len(one(look(crowd.finish()), at)["path"]) <= 108


def test_a_namespace_list_that_lies(crowd: LinuxGuest) -> None:
    crowd.finish()
    for lie in (NOWHERE, 0, crowd.init_net + crowd.offset("net", "list") - 8):
        crowd.word(crowd.init_net + crowd.offset("net", "list"), lie)
        assert any("net_namespace_list" in note for note in look(crowd).notes)
    crowd.word(crowd.net_list, NOWHERE)
    assert any("net_namespace_list" in note for note in look(crowd).notes)


def test_netlink_tables_that_grow_into_themselves(crowd: LinuxGuest) -> None:
    table = crowd.space.read_u64(crowd.netlink)
    crowd.put("bucket_table", table, future_tbl=table, size=(1 << 32) - 1)
    assert any("is not believed" in note for note in look(crowd.finish()).notes)
