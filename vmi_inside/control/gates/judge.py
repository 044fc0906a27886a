"""The part of gates' code that all hooks share: `judge` goes through the rules, `peer` and `named` tell addresses.

Knows what the records look like that it reads (`layout`), and where members are (`offsets`). What a hook takes from its
arguments is `stub`'s matter; it calls `judge` with

    rax   the task whose doing it is           r9d   what the peer's address is:
    edx   the operation's bit                          0  nothing to hold against a list of networks
    r8d   the socket's family, or 63                   1  in rdi (first 8 bytes), rsi (last 8), IPv4 mapped
                                                       2  not to be known: no list of networks lets it through

`judge` gives 0 or a negative errno in eax. It runs with interrupts off: what it follows from the task (cgroups,
credentials, the leader of the threads) the kernel frees only when every CPU has let it be interrupted (RCU).
"""

from __future__ import annotations

from typing import Final

from vmi_inside.control.assemble import Assembler, At
from vmi_inside.control.gates import layout
from vmi_inside.control.gates.layout import Scope
from vmi_inside.control.gates.offsets import Offsets

AF_INET: Final = 2
AF_INET6: Final = 10
SOCK_STREAM: Final = 1
SOCK_DGRAM: Final = 2
#: Protocols whose peer is the one address that the socket knows: IP's default, ICMP, TCP, UDP, ICMPv6.
SIMPLE: Final = (0, 1, 6, 17, 58)
_PF_KTHREAD: Final = 0x200000
_MAPPED: Final = 0xFFFF_0000  # the middle of ::ffff:0:0/96, as a little-endian number's lower half


class Judge:
    """Writes the shared part. `mark` is the offset of the spare word in task_struct, 0 for none."""

    def __init__(self, asm: Assembler, base: int, offsets: Offsets, mark: int) -> None:
        self.asm = asm
        self.base = base
        self.at = offsets
        self.mark = mark

    def write(self) -> None:
        """All of it."""
        self._judge()
        self._peer()
        self._named()

    def _judge(self) -> None:
        """The rules, one after the other; the first that refuses decides."""
        asm, at = self.asm, self.at
        rule = "r10"
        asm.label("judge")
        asm.plain("pushfq")
        asm.plain("cli")
        asm.move(rule, self.base + layout.RULES_AT)
        asm.load("r11", At(None, self.base + layout.COUNT_AT), 4)
        asm.label("each")
        asm.reckon("sub", "r11", 1)
        asm.jump_if("s", "nobody")
        asm.test_memory(At(rule, layout.OPERATIONS), "rdx")
        asm.jump_if("e", "next")
        asm.test_bit(At(rule, layout.FAMILIES), "r8")
        asm.jump_if("ae", "next")
        asm.load("rcx", At(rule, layout.SCOPE), 4)
        for scope in Scope:
            if scope != Scope.MARKED or self.mark:
                asm.reckon("cmp", "rcx", int(scope))
                asm.jump_if("e", scope.name)
        asm.label("next")
        asm.reckon("add", rule, layout.RULE_SIZE)
        asm.jump("each")

        asm.label(Scope.PROCESS.name)
        asm.load("rcx", At(rule, layout.NUMBER), 4)
        asm.reckon("cmp", "rcx", At("rax", at.tgid), 4)
        asm.jump_if("ne", "next")
        asm.load("rcx", At("rax", at.leader))
        asm.load("rcx", At("rcx", at.born))
        asm.reckon("cmp", "rcx", At(rule, layout.FIRST))
        asm.jump_if("ne", "next")
        asm.jump("hit")

        if self.mark:
            asm.label(Scope.MARKED.name)
            asm.load("rcx", At(rule, layout.NUMBER), 4)
            asm.test_memory(At("rax", self.mark), "rcx")
            asm.jump_if("e", "next")
            asm.jump("hit")

        asm.label(Scope.CGROUP.name)
        self._no_kernel_thread()
        asm.push("rdx")
        asm.load("rdx", At("rax", at.css_set))
        asm.load("rdx", At("rdx", at.group))
        asm.load("rcx", At(rule, layout.NUMBER), 4)
        asm.reckon("cmp", "rcx", At("rdx", at.level), 4)
        asm.jump_if("a", "other")  # not so deep
        asm.shift_left("rcx", 3)
        asm.reckon("add", "rcx", "rdx")
        asm.load("rcx", At("rcx", at.ancestors))
        asm.reckon("cmp", "rcx", At(rule, layout.FIRST))
        asm.jump_if("ne", "other")
        if at.ancestor_pointers:
            asm.load("rcx", At("rcx", at.serial))
            asm.reckon("cmp", "rcx", At(rule, layout.SECOND))
            asm.jump_if("ne", "other")
        asm.pop("rdx")
        asm.jump("hit")
        asm.label("other")
        asm.pop("rdx")
        asm.jump("next")

        asm.label(Scope.USER.name)
        self._no_kernel_thread()
        asm.load("rcx", At("rax", at.cred))
        asm.load("rcx", At("rcx", at.uid), 4)
        asm.reckon("cmp", "rcx", At(rule, layout.NUMBER), 4)
        asm.jump_if("e", "hit")
        asm.load("rcx", At("rax", at.cred))
        asm.load("rcx", At("rcx", at.euid), 4)
        asm.reckon("cmp", "rcx", At(rule, layout.NUMBER), 4)
        asm.jump_if("ne", "next")

        asm.label("hit")
        asm.load("rcx", At(rule, layout.ALLOWED), 4)
        asm.test("rcx")
        asm.jump_if("e", "refuse")
        asm.reckon("cmp", "r9", 1)
        asm.jump_if("b", "next")
        asm.jump_if("a", "refuse")
        asm.push("rax", "rdx")
        asm.load("rdx", At(rule, layout.ALLOW))
        asm.label("network")
        for half, register in ((0, "rdi"), (8, "rsi")):
            asm.move("rax", register)
            asm.reckon("and", "rax", At("rdx", 16 + half))
            asm.reckon("cmp", "rax", At("rdx", half))
            asm.jump_if("ne", "no")
        asm.pop("rdx", "rax")
        asm.jump("next")
        asm.label("no")
        asm.reckon("add", "rdx", layout.NETWORK_SIZE)
        asm.reckon("sub", "rcx", 1)
        asm.jump_if("ne", "network")
        asm.pop("rdx", "rax")

        asm.label("refuse")
        asm.load("rcx", At(rule, layout.COUNTER))
        asm.test("rcx")
        asm.jump_if("e", "uncounted")
        asm.count_up(At("rcx"))
        asm.label("uncounted")
        asm.load("rax", At(rule, layout.ERRNO), 4)
        asm.plain("popfq")
        asm.plain("ret")
        asm.label("nobody")
        asm.move("rax", 0)
        asm.plain("popfq")
        asm.plain("ret")

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

    def _no_kernel_thread(self) -> None:
        """Kernel threads belong to no container and no user."""
        self.asm.load("rcx", At("rax", self.at.flags), 4)
        self.asm.reckon("and", "rcx", _PF_KTHREAD)
        self.asm.jump_if("ne", "next")
