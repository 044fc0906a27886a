"""Packets of gdb's remote protocol: framing, checksums, escapes, run lengths (GDB manual, Remote Protocol, Overview).

Knows bytes only. What is said in packets, and to whom, is left to `gdbstub`. What comes from the other end is believed
in nothing: whatever it sends, decoding ends, in bounded memory, with packets or with `BadPacket`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

#: Bytes of one packet, decoded; QEMU's own are below 16 KiB.
LIMIT: Final = 1 << 20
_ESCAPED: Final = frozenset(b"#$}*")


class BadPacket(Exception):
    """What came is not gdb's protocol, or damaged. Ends inside `gdbstub`."""


def encode(payload: bytes) -> bytes:
    """`payload` as a packet."""
    body = bytearray()
    for byte in payload:
        if byte in _ESCAPED:
            body += bytes((ord("}"), byte ^ 0x20))
        else:
            body.append(byte)
    return b"$%b#%02x" % (bytes(body), sum(body) & 0xFF)


def decode(body: bytes) -> bytes:
    """What stands between `$` and `#`, escapes and run lengths undone. Raises `BadPacket`."""
    out = bytearray()
    at = 0
    while at < len(body):
        byte = body[at]
        if byte == ord("}"):
            at += 1
            if at == len(body):
                raise BadPacket("a packet ends inside an escape")
            out.append(body[at] ^ 0x20)
        elif byte == ord("*"):
            at += 1
            if at == len(body) or not out or not 29 + 3 <= body[at] <= 126:
                raise BadPacket("a packet has a run length that is none")
            out += out[-1:] * (body[at] - 29)
        else:
            out.append(byte)
        if len(out) > LIMIT:
            raise BadPacket(f"a packet of more than {LIMIT} bytes")
        at += 1
    return bytes(out)


class Decoder:
    """Takes bytes as they come; gives acknowledgements (`b"+"`, `b"-"`) and packets (`b"$..."`) as they are whole."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add `data`; gives what is whole now. Raises `BadPacket`."""
        self._buffer += data
        while self._buffer:
            first = self._buffer[:1]
            if bytes(first) in (b"+", b"-"):
                del self._buffer[:1]
                yield bytes(first)
            elif first == b"$":
                end = self._buffer.find(b"#")
                if end < 0 or len(self._buffer) < end + 3:
                    if len(self._buffer) > LIMIT:
                        raise BadPacket(f"no end of a packet in {LIMIT} bytes")
                    return
                body, told = bytes(self._buffer[1:end]), bytes(self._buffer[end + 1 : end + 3])
                del self._buffer[: end + 3]
                try:
                    wrong = int(told, 16) != sum(body) & 0xFF
                except ValueError:
                    wrong = True
                if wrong:
                    raise BadPacket(f"a packet whose checksum is {told!r}, not {sum(body) & 0xFF:02x}")
                yield b"$" + decode(body)
            else:
                raise BadPacket(f"the byte {first.hex()} between packets")
