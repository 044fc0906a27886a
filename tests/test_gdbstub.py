"""gdb's remote protocol: packets against hostile bytes, the client against a stub that lies."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi_inside.drivers.gdbpackets import LIMIT, BadPacket, Decoder, decode, encode
from vmi_inside.drivers.gdbstub import GdbStub
from vmi_inside.errors import Busy, ControlError, GuestGone, NoMemory, Unsupported, VmiError

TARGET = b'l<?xml version="1.0"?><target><!-- <reg name="no" bitsize="64"/> --><xi:include href="core.xml"/></target>'
CORE = (
    b'l<feature><reg name="rax" bitsize="64" regnum="0"/><reg name="rip" bitsize="64"/>'
    b'<reg name="st0" bitsize="80"/><reg name="eflags" bitsize="32"/></feature>'
)
HONEST = {
    b"qSupported": b"PacketSize=1000;qXfer:features:read+;multiprocess+",
    b"qfThreadInfo": b"mp01.01",
    b"qsThreadInfo": b"mp01.02",
    b"qXfer:features:read:target.xml": TARGET,
    b"qXfer:features:read:core.xml": CORE,
    b"Hg": b"OK",
    b"g": (0x11).to_bytes(8, "little").hex().encode() + (0x22).to_bytes(8, "little").hex().encode() + b"x" * 20
    + (0x202).to_bytes(4, "little").hex().encode(),
    b"P": b"OK",
    b"Qqemu.PhyMemMode": b"OK",
    b"m": b"0011223344",
    b"M": b"OK",
}  # fmt: skip


@contextmanager
def stub(path: Path, answers: Callable[[bytes], bytes | None], hello: bytes = b"") -> Iterator[str]:
    """A stub that sends `answers` (raw bytes) to what it is asked; None hangs up."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):  # the client may hang up first
            connection.sendall(hello)
            decoder = Decoder()
            while data := connection.recv(4096):
                for one in decoder.feed(data.replace(b"\x03", b"")):
                    answer = answers(one[1:]) if one.startswith(b"$") else b""
                    if answer is None:
                        return
                    connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield str(path)
    finally:
        listener.close()
        thread.join(5)


def honest(**other: bytes) -> Callable[[bytes], bytes]:
    told = dict(HONEST)
    told.update({name.encode(): value for name, value in other.items()})
    turns = {b"qsThreadInfo": iter([b"mp01.02", b"l"])}

    def answer(asked: bytes) -> bytes:
        best = max((name for name in told if asked.startswith(name)), key=len, default=None)
        if best is None:
            return b"+" + encode(b"")
        return b"+" + encode(next(turns[best], b"l") if best in turns and best.decode() not in other else told[best])

    return answer


# -- packets ----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=500))
def test_what_is_encoded_is_decoded(payload: bytes) -> None:
    assert list(Decoder().feed(b"+" + encode(payload))) == [b"+", b"$" + payload]


@given(st.lists(st.binary(max_size=30), max_size=5), st.integers(1, 7))
def test_in_pieces(payloads: list[bytes], step: int) -> None:
    raw = b"".join(encode(one) + b"+" for one in payloads)
    decoder = Decoder()
    found = [one for at in range(0, len(raw), step) for one in decoder.feed(raw[at : at + step])]
    assert found == [part for one in payloads for part in (b"$" + one, b"+")]


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_whatever_comes_decoding_ends(pieces: list[bytes]) -> None:
    decoder = Decoder()
    try:
        for piece in pieces:
            for one in decoder.feed(piece):
                assert len(one) <= LIMIT + 1
    except BadPacket:
        pass


def test_run_lengths() -> None:
    assert decode(b"0* ") == b"0000"
    for bad in (b"*!", b"0*", b"0*\x01", b"}"):
        with pytest.raises(BadPacket):
            decode(bad)


def test_no_packet_is_endless() -> None:
    decoder = Decoder()
    with pytest.raises(BadPacket, match="no end"):
        list(decoder.feed(b"$" * (LIMIT + 2)))
    with pytest.raises(BadPacket, match="more than"):
        decode(b"0" + b"*~" * 12000)
    with pytest.raises(BadPacket, match="checksum"):
        list(Decoder().feed(b"$OK#00"))


# -- the client -------------------------------------------------------------------------------------------------------


def test_an_honest_stub(tmp_path: Path) -> None:
    hello = encode(b"T05thread:p01.02;")
    with stub(tmp_path / "s", honest(), hello) as path, GdbStub(path, "web", 2) as one:
        assert one.threads == ("p01.01", "p01.02")
        assert one.registers(1) == {"rax": 0x11, "rip": 0x22, "eflags": 0x202}
        one.set_registers(0, {"rip": 5})
        assert one.read(0x1000, 5) == bytes.fromhex("0011223344")
        with pytest.raises(ControlError, match="no register 'no'"):
            one.set_registers(0, {"no": 1})
        with pytest.raises(NoMemory):
            one.read(0x1000, 6)


@pytest.mark.parametrize(
    ("told", "error", "words"),
    [
        ({"qSupported": b""}, Unsupported, "QEMU 2.10"),
        ({"qfThreadInfo": b"l"}, ControlError, "names its vCPUs"),
        ({"qfThreadInfo": b"mhello"}, ControlError, "names its vCPUs"),
        ({"qsThreadInfo": b"mp01.01," * 100 + b"p01.01"}, ControlError, "vCPUs"),
        ({"qXfer:features:read:target.xml": b"E01"}, ControlError, "does not describe"),
        ({"qXfer:features:read:target.xml": b"m" + b"x" * 100}, ControlError, "does not describe"),
        ({"qXfer:features:read:core.xml": b'l<xi:include href="core.xml"/>'}, ControlError, "0 registers"),
        ({"qXfer:features:read:core.xml": b'l<reg name="a" bitsize="-8"/>'}, ControlError, "badly"),
        ({"qXfer:features:read:core.xml": b'l<reg name="a" bitsize="\xb2"/>'}, ControlError, "badly"),
    ],
)
def test_a_stub_that_lies(tmp_path: Path, told: dict[str, bytes], error: type[VmiError], words: str) -> None:
    with stub(tmp_path / "s", honest(**told)) as path, pytest.raises(error, match=words):
        GdbStub(path, "web", 1)


def test_registers_that_are_none(tmp_path: Path) -> None:
    with (
        stub(tmp_path / "s", honest(g=b"zz")) as path,
        GdbStub(path, "web", 1) as one,
        pytest.raises(ControlError, match="no registers"),
    ):
        one.registers(0)


def test_nobody_answers(tmp_path: Path) -> None:
    with stub(tmp_path / "s", lambda _: b"") as path, pytest.raises(Busy, match="another debugger"):
        GdbStub(path, "web", 0.2)
    with stub(tmp_path / "t", lambda _: None) as path, pytest.raises(GuestGone, match="closed"):
        GdbStub(path, "web", 1)
    with pytest.raises(ControlError, match="cannot reach"):
        GdbStub(str(tmp_path / "none"), "web", 1)


@pytest.mark.parametrize("raw", [b"-", b"$OK#00", b"HTTP/1.1 400 Bad Request\r\n", b"\xff\xfe"])
def test_what_answers_is_no_stub(tmp_path: Path, raw: bytes) -> None:
    with stub(tmp_path / "s", lambda _: raw) as path, pytest.raises(ControlError):
        GdbStub(path, "web", 1)


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6))
def test_whatever_answers(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    answers = iter(pieces)
    path = tmp_path_factory.mktemp("stub") / "s"
    with stub(path, lambda _: next(answers, None)) as where, pytest.raises(VmiError):
        GdbStub(where, "web", 0.2)


def test_physical_addresses_are_for_one_reading_only(tmp_path: Path) -> None:
    """QEMU keeps that mode for whoever connects next."""
    asked: list[bytes] = []
    told = honest()

    def answer(one: bytes) -> bytes:
        asked.append(one)
        return told(one)

    with stub(tmp_path / "s", answer) as path, GdbStub(path, "vm1") as client:
        client.read(0x1000, 5)
        assert asked[-3:] == [b"Qqemu.PhyMemMode:1", b"m1000,5", b"Qqemu.PhyMemMode:0"]
        client.write(0x1000, b"12345")
        assert asked[-1] == b"Qqemu.PhyMemMode:0"
        client.read(0x2000, 5, vcpu=1)
        assert asked[-2:] == [b"Hgp01.02", b"m2000,5"]
    with stub(tmp_path / "t", answer) as path, GdbStub(path, "vm1") as client:
        client.read(0x2000, 5, vcpu=0)  # somebody else may have left it on
        assert asked[-3:] == [b"Qqemu.PhyMemMode:0", b"Hgp01.01", b"m2000,5"]
