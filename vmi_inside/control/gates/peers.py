"""The part of gates' code that tells addresses: `peer` of a socket's other end, `named` of a socket address.

Knows `struct socket`, `sock`, and socket addresses in the kernel's memory. What is held against them is `judge`'s.
"""

from __future__ import annotations

from typing import Final

from vmi_inside.control.assemble import Assembler, At
from vmi_inside.control.gates.offsets import Offsets

AF_INET: Final = 2
AF_INET6: Final = 10
SOCK_STREAM: Final = 1
SOCK_DGRAM: Final = 2
#: Protocols whose peer is the one address that the socket knows: IP's default, ICMP, TCP, UDP, ICMPv6.
SIMPLE: Final = (0, 1, 6, 17, 58)
_MAPPED: Final = 0xFFFF_0000  # the middle of ::ffff:0:0/96, as a little-endian number's lower half


class Peers:
    """Writes that part."""

    def __init__(self, asm: Assembler, offsets: Offsets) -> None:
        self.asm = asm
        self.at = offsets

    def write(self) -> None:
        """All of it."""
        self._peer()
        self._named()

    def _peer(self) -> None:
        """rdi: a struct socket, rcx: its sock, r8d: its family; sets r9d, rdi, rsi by the peer. Changes rax."""
        asm, at = self.asm, self.at
        asm.label("peer")
        self._simple()
        asm.reckon("cmp", "r8", AF_INET)
        asm.jump_if("ne", "peer6")
        asm.load("rsi", At("rcx", at.peer), 4)
        asm.test("rsi")
        asm.jump_if("e", "unconnected")
        self._map4()
        asm.label("known")
        asm.move("r9", 1)
        asm.plain("ret")
        asm.label("peer6")
        if at.peer6 < 0:
            asm.jump("strict")
        else:
            asm.reckon("cmp", "r8", AF_INET6)
            asm.jump_if("ne", "strict")
            asm.load("rdi", At("rcx", at.peer6))
            asm.load("rsi", At("rcx", at.peer6 + 8))
            asm.move("rax", "rdi")
            asm.reckon("or", "rax", "rsi")
            asm.jump_if("ne", "known")
        asm.label("unconnected")
        asm.move("r9", 0)
        asm.plain("ret")
        asm.label("strict")
        asm.move("r9", 2)
        asm.plain("ret")

    def _named(self) -> None:
        """rsi: a struct sockaddr in the kernel's memory; sets r9d, rdi, rsi by it. Changes rax."""
        asm = self.asm
        asm.label("named")
        asm.load("rax", At("rsi"), 2)
        asm.reckon("cmp", "rax", AF_INET)
        asm.jump_if("ne", "named6")
        asm.load("rsi", At("rsi", 4), 4)  # sockaddr_in.sin_addr
        self._map4()
        asm.move("r9", 1)
        asm.plain("ret")
        asm.label("named6")
        asm.reckon("cmp", "rax", AF_INET6)
        asm.jump_if("ne", "strict")
        asm.load("rdi", At("rsi", 8))  # sockaddr_in6.sin6_addr
        asm.load("rsi", At("rsi", 16))
        asm.move("r9", 1)
        asm.plain("ret")

    def _simple(self) -> None:
        """Go to `strict` for a socket whose peers its address does not tell. rdi: the socket, rcx: its sock."""
        asm, at = self.asm, self.at
        asm.load("rax", At("rdi", at.kind), 2)
        asm.reckon("cmp", "rax", SOCK_STREAM)
        asm.jump_if("e", "typed")
        asm.reckon("cmp", "rax", SOCK_DGRAM)
        asm.jump_if("ne", "strict")
        asm.label("typed")
        asm.load("rax", At("rcx", at.protocol), 2)
        for protocol in SIMPLE:
            asm.reckon("cmp", "rax", protocol)
            asm.jump_if("e", "simple")
        asm.jump("strict")
        asm.label("simple")

    def _map4(self) -> None:
        """The IPv4 address in esi becomes ::ffff:a.b.c.d in rdi, rsi. Changes rax."""
        asm = self.asm
        asm.move("rdi", 0)
        asm.shift_left("rsi", 32)
        asm.move("rax", _MAPPED)
        asm.reckon("or", "rsi", "rax")
