"""The code of gates, run in an emulator on planted structs: every hook, every scope, and every branch both ways."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import capstone
import pytest
import unicorn
from unicorn import x86_const as x86

from vmi_inside.control.assemble import Assembler, At
from vmi_inside.control.gates import layout, operations, stub
from vmi_inside.control.gates.layout import Rule, Scope, State
from vmi_inside.control.gates.offsets import Offsets
from vmi_inside.control.gates.operations import OPERATIONS
from vmi_inside.linux.symbols.gated import AREA_SIZE

BASE = 0xFFFF_FFFF_86BF_A000
DATA = 0xFFFF_8880_0000_0000
STACK = 0xFFFF_C900_0000_0000
FUNCTIONS = 0xFFFF_FFFF_8500_0000
GS = 0xFFFF_8881_0000_0000
BACK = 0xFFFF_FFFF_8400_0000
OFFSETS = Offsets(
    current=0x1FB80, tgid=2420, flags=44, leader=2480, born=2784, cred=2960, css_set=3600, uid=8, euid=24, group=128,
    level=208, ancestors=1792, ancestor_pointers=True, serial=88, sock=24, kind=4, family=16, protocol=516, peer=0,
    peer6=56, name=0, name_size=8, private=200, file_dentry=24, file_mount=16, inode=48, parent=24, number=64,
    generation=592, block=40, device=16, mount=32, above=16, mountpoint=24,
)  # fmt: skip
VARIANTS = {
    "6.1": OFFSETS,
    "5.10": dataclasses.replace(OFFSETS, ancestor_pointers=False),
    "without IPv6": dataclasses.replace(OFFSETS, peer6=-1),
    "7.2": dataclasses.replace(OFFSETS, current=0xFFFF_FFFF_895B_D018),
}
MARK = 28
NUMBERS = stub.Numbers(reading_module=2, loading_module=3)
TASK, LEADER, CRED, CSS, GROUP, ABOVE, SOCKET, SOCK, MESSAGE, NAME, FILE, OTHER, COUNTER = (
    DATA + 0x4000 * at for at in range(13)
)
BORN = 0x1234_5678_9ABC
CONNECTED = "93.184.216.34"
ARGUMENTS = (x86.UC_X86_REG_RDI, x86.UC_X86_REG_RSI, x86.UC_X86_REG_RDX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_R8,
             x86.UC_X86_REG_R9)  # fmt: skip
KEPT = (x86.UC_X86_REG_RBX, x86.UC_X86_REG_RBP, x86.UC_X86_REG_R12, x86.UC_X86_REG_R13, x86.UC_X86_REG_R14,
        x86.UC_X86_REG_R15)  # fmt: skip
BRANCHES: dict[str, dict[int, set[bool]]] = {}
HOOKS = [hooked for operation in OPERATIONS.values() for hooked in operation.hooks]


class Machine:
    """A processor with the code of one variant, and a kernel's structs around it."""

    def __init__(self, variant: str) -> None:
        self.offsets = VARIANTS[variant]
        targets = tuple(
            stub.Target(hooked.symbols[0], FUNCTIONS + 0x100 * at + 5, hooked.kind, operation.bit)
            for at, (operation, hooked) in enumerate(
                (operation, hooked) for operation in OPERATIONS.values() for hooked in operation.hooks
            )
        )
        self.behind = {target.symbol: target.behind for target in targets}
        self.code = stub.assemble(BASE, self.offsets, MARK, targets, NUMBERS)
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.uc.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)  # no paging: kernel addresses as they are
        for start, size, access in (
            (BASE, AREA_SIZE, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC),
            (DATA, 0x40000, unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE),
            (STACK, 0x4000, unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE),
            (FUNCTIONS, 0x4000, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC),
            (BACK, 0x1000, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC),
        ):
            self.uc.mem_map(start, size, access)
        current = (GS + self.offsets.current) & (1 << 64) - 1
        self.uc.mem_map(current & ~0xFFF, 0x1000, unicorn.UC_PROT_READ)
        self.uc.mem_write(current, struct.pack("<Q", TASK))
        self.uc.mem_write(BASE + layout.CODE_AT, self.code.raw)
        self.uc.mem_write(FUNCTIONS, b"\xf4" * 0x4000)
        self.uc.mem_write(BACK, b"\xf4" * 0x1000)
        self.branches = BRANCHES.setdefault(variant, conditional(self.code.raw))
        self._last: tuple[int, int] | None = None
        self.uc.hook_add(unicorn.UC_HOOK_CODE, self._step)
        self.plant()

    def _step(self, uc: unicorn.Uc, address: int, size: int, _: object) -> None:
        if self._last is not None:
            self.branches[self._last[0]].add(address != self._last[1])
        self._last = (address, address + size) if address in self.branches else None

    def poke(self, at: int, value: int, size: int = 8) -> None:
        self.uc.mem_write(at, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))

    def plant(self) -> None:
        """A thread of process 4242, which user 1000 runs in a group of the third level; a connected TCP socket."""
        at = self.offsets
        for base, offset, value, size in (
            (TASK, at.tgid, 4242, 4), (TASK, at.flags, 0x400000, 4), (TASK, at.leader, LEADER, 8),
            (LEADER, at.born, BORN, 8), (TASK, at.cred, CRED, 8), (TASK, at.css_set, CSS, 8), (CRED, at.uid, 1000, 4),
            (CRED, at.euid, 1001, 4), (CSS, at.group, GROUP, 8), (GROUP, at.level, 3, 4),
            (GROUP, at.ancestors + 8 * 2, ABOVE, 8), (ABOVE, at.serial, 77, 8), (SOCKET, at.sock, SOCK, 8),
            (SOCKET, at.kind, 1, 2), (SOCK, at.family, 2, 2), (SOCK, at.protocol, 6, 2), (FILE, at.private, SOCKET, 8),
            (OTHER, at.tgid, 4343, 4), (OTHER, at.leader, OTHER, 8), (OTHER, at.cred, CRED, 8),
            (MESSAGE, at.name, 0, 8), (MESSAGE, at.name_size, 16, 4), (COUNTER, 0, 0, 8),
        ):  # fmt: skip
            self.poke(base + offset, value, size)
        self.poke(SOCK + at.peer, int.from_bytes(ip_address(CONNECTED).packed, "little"), 4)

    def rules(self, *rules: Rule) -> None:
        """Put these into the table."""
        state = State(len(self.code.raw), b"12345678", MARK, (), dict(enumerate(rules)))
        for at, raw in layout.encode(BASE, state).items():
            self.uc.mem_write(BASE + at, raw)

    def call(self, symbol: str, *arguments: int, steps: int = 2000) -> int | None:
        """Enter a hook as its function would be; what it returns, or None when the function goes on, whole."""
        for register, value in zip(ARGUMENTS, (*arguments, *range(0x61, 0x67)), strict=False):
            self.uc.reg_write(register, value)
        for register in KEPT:
            self.uc.reg_write(register, 0x7000 + register)
        before = [self.uc.reg_read(register) for register in (*ARGUMENTS, *KEPT)]
        stack = STACK + 0x3F00
        self.uc.reg_write(x86.UC_X86_REG_RSP, stack)
        self.poke(stack, BACK)
        self.uc.reg_write(x86.UC_X86_REG_GS_BASE, GS)
        self.uc.reg_write(x86.UC_X86_REG_EFLAGS, 0x202)
        self._last = None
        self.uc.emu_start(self.code.entry[symbol], 0, count=steps)
        rip = self.uc.reg_read(x86.UC_X86_REG_RIP)
        assert self.uc.reg_read(x86.UC_X86_REG_EFLAGS) & 0x200, "interrupts stay on"
        assert [self.uc.reg_read(register) for register in (*ARGUMENTS, *KEPT)] == before
        if rip == self.behind[symbol] + 1:  # behind the hlt that stands there
            assert self.uc.reg_read(x86.UC_X86_REG_RSP) == stack
            return None
        assert rip == BACK + 1
        assert self.uc.reg_read(x86.UC_X86_REG_RSP) == stack + 8
        value: int = self.uc.reg_read(x86.UC_X86_REG_RAX)
        return value - (1 << 64) if value >> 63 else value

    def name(self, address: str, family: int | None = None) -> int:
        """A socket address in memory."""
        ip = ip_address(address)
        if ip.version == 4:
            raw = struct.pack("<H2s4s", family or 2, b"\0\x50", ip.packed)
        else:
            raw = struct.pack("<H2s4x16s", family or 10, b"\0\x50", ip.packed)
        self.uc.mem_write(NAME, raw if family is None else struct.pack("<H", family) + raw[2:])
        return NAME


def conditional(raw: bytes) -> dict[int, set[bool]]:
    """The addresses of all conditional jumps, by a disassembly that must know every byte."""
    reader = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    found: dict[int, set[bool]] = {}
    seen = 0
    for line in reader.disasm(raw, BASE + layout.CODE_AT):
        seen += line.size
        if line.mnemonic.startswith("j") and line.mnemonic != "jmp":
            found[line.address] = set()
    assert seen == len(raw)
    return found


@pytest.fixture(params=VARIANTS, scope="module")
def _machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(request.param)


@pytest.fixture
def machine(_machine: Machine) -> Iterator[Machine]:
    yield _machine
    _machine.plant()
    _machine.poke(TASK + MARK, 0, 4)
    _machine.rules()


def rule(operation: str = "network", scope: Scope = Scope.PROCESS, **more: object) -> Rule:
    kind = OPERATIONS[operation]
    said: dict[str, object] = {
        "operations": kind.bit, "scope": scope, "families": operations.families(kind, unix=False), "errno": 13,
        "number": 4242, "first": BORN, "counter": COUNTER,
    }  # fmt: skip
    return Rule(**{**said, **more})  # type: ignore[arg-type]


def arguments(kind: str, family: int) -> tuple[int, ...]:
    """What a hook is called with."""
    return {
        "create": (family, 1, 0, 0), "splice": (FILE, 0), "getsockopt": (SOCKET, 6, 35), "connect": (SOCKET, NAME),
        "send": (SOCKET, MESSAGE), "read-module": (FILE, 2), "load-module": (3,), "tracer": (OTHER, 2),
        "traced": (OTHER,), "signal": (OTHER, 0, 15),
    }.get(kind, (SOCKET, 0))  # fmt: skip


def test_without_rules_everything_goes_on(machine: Machine) -> None:
    machine.rules()
    for hooked in HOOKS:
        assert machine.call(hooked.symbols[0], *arguments(hooked.kind, 2)) is None


def test_a_process_is_refused_and_nobody_else(machine: Machine) -> None:
    machine.rules(rule("exec"))
    assert machine.call("security_bprm_creds_for_exec", FILE) == -13
    assert machine.uc.mem_read(COUNTER, 8) == struct.pack("<Q", 1)
    machine.poke(TASK + machine.offsets.tgid, 4243, 4)
    assert machine.call("security_bprm_creds_for_exec", FILE) is None
    assert machine.call("security_file_open", FILE) is None


def test_a_later_process_of_the_same_pid_is_let_through(machine: Machine) -> None:
    machine.rules(rule("exec", first=BORN - 1))
    assert machine.call("security_bprm_creds_for_exec", FILE) is None


def test_errno_is_the_rules(machine: Machine) -> None:
    machine.rules(rule("exec", errno=1, counter=0))
    assert machine.call("security_bprm_creds_for_exec", FILE) == -1


def test_a_second_rule_counts(machine: Machine) -> None:
    machine.rules(rule("kill"), rule("exec", number=1), rule("exec", errno=1))
    assert machine.call("security_bprm_creds_for_exec", FILE) == -1


def test_marked_tasks(machine: Machine) -> None:
    machine.rules(rule("open", Scope.MARKED, number=4))
    assert machine.call("security_file_open", FILE) is None
    machine.poke(TASK + MARK, 2, 4)
    assert machine.call("security_file_open", FILE) is None
    machine.poke(TASK + MARK, 6, 4)
    assert machine.call("security_file_open", FILE) == -13


def test_a_group_and_those_within(machine: Machine) -> None:
    level, at = 2, machine.offsets
    machine.rules(rule("open", Scope.CGROUP, number=level, first=ABOVE, second=77))
    assert machine.call("security_file_open", FILE) == -13
    machine.poke(TASK + at.flags, 0x200000, 4)
    assert machine.call("security_file_open", FILE) is None, "kernel threads"
    machine.poke(TASK + at.flags, 0, 4)
    machine.rules(rule("open", Scope.CGROUP, number=4, first=ABOVE, second=77))
    assert machine.call("security_file_open", FILE) is None, "deeper than the task's"
    machine.rules(rule("open", Scope.CGROUP, number=level, first=ABOVE + 8, second=77))
    assert machine.call("security_file_open", FILE) is None, "another group"
    machine.rules(rule("open", Scope.CGROUP, number=level, first=ABOVE, second=78))
    later = machine.call("security_file_open", FILE)
    assert later == (None if at.ancestor_pointers else -13), "a later group at the same address"


def test_a_user(machine: Machine) -> None:
    for uid, said in ((1000, -13), (1001, -13), (0, None)):
        machine.rules(rule("open", Scope.USER, number=uid))
        assert machine.call("security_file_open", FILE) == said
    machine.rules(rule("open", Scope.USER, number=1000))
    machine.poke(TASK + machine.offsets.flags, 0x200000, 4)
    assert machine.call("security_file_open", FILE) is None


def test_a_rule_of_a_later_version_is_passed_over(machine: Machine) -> None:
    machine.rules(rule("open"))
    machine.poke(BASE + layout.RULES_AT + layout.SCOPE, 5, 4)
    assert machine.call("security_file_open", FILE) is None


@pytest.mark.parametrize(("family", "said"), [(1, None), (2, -13), (10, -13), (16, None), (17, -13), (45, -13)])
def test_families(machine: Machine, family: int, said: int | None) -> None:
    machine.rules(rule())
    machine.poke(SOCK + machine.offsets.family, family, 2)
    for hooked in OPERATIONS["network"].hooks:
        assert machine.call(hooked.symbols[0], *arguments(hooked.kind, family)) == said, hooked


def test_families_beyond_the_last_are_refused(machine: Machine) -> None:
    machine.rules(rule())
    for family in (63, 64, 65, 0xFFFF):
        machine.poke(SOCK + machine.offsets.family, family, 2)
        for hooked in OPERATIONS["network"].hooks:
            assert machine.call(hooked.symbols[0], *arguments(hooked.kind, family)) == -13


def test_unix_sockets_when_asked(machine: Machine) -> None:
    machine.rules(rule(families=operations.families(OPERATIONS["network"], unix=True)))
    assert machine.call("security_socket_create", 1, 1, 0, 0) == -13
    assert machine.call("security_socket_create", 16, 1, 0, 0) is None


def test_what_the_kernel_does_for_itself_goes_on(machine: Machine) -> None:
    machine.rules(rule())
    assert machine.call("security_socket_create", 2, 1, 0, 1) is None


def test_a_socket_that_is_being_closed_goes_on(machine: Machine) -> None:
    machine.rules(rule())
    machine.poke(SOCKET + machine.offsets.sock, 0)
    for hooked in OPERATIONS["network"].hooks[1:]:
        assert machine.call(hooked.symbols[0], *arguments(hooked.kind, 2)) is None
    machine.poke(FILE + machine.offsets.private, 0)
    for symbol in ("sock_splice_read", "sock_sendpage"):
        assert machine.call(symbol, FILE, 0) is None


def test_only_one_socket_option(machine: Machine) -> None:
    machine.rules(rule())
    assert machine.call("security_socket_getsockopt", SOCKET, 6, 35) == -13
    assert machine.call("security_socket_getsockopt", SOCKET, 6, 11) is None
    assert machine.call("security_socket_getsockopt", SOCKET, 1, 35) is None


# -- networks that are let through -------------------------------------------------------------------------------------

ALLOWED = tuple(map(ip_network, ("10.0.0.0/8", "192.168.7.1/32", "fd09::/64", "127.0.0.0/8", "::1/128")))


@pytest.mark.parametrize(
    ("family", "kind", "protocol", "said"),
    [(2, 1, 0, None), (10, 2, 17, None), (2, 2, 1, None), (10, 2, 58, None), (2, 1, 6, None), (2, 3, 0, -13),
     (2, 1, 262, -13), (2, 5, 0, -13), (17, 3, 0, -13), (40, 1, 0, -13), (1, 1, 0, None)],
)  # fmt: skip
def test_sockets_that_may_be_made(machine: Machine, family: int, kind: int, protocol: int, said: int | None) -> None:
    machine.rules(rule(networks=ALLOWED))
    assert machine.call("security_socket_create", family, kind, protocol, 0) == said
    if family == 10 and machine.offsets.peer6 < 0:
        said = -13  # a kernel without IPv6 would have no such socket
    for offset, value in (("family", family), ("protocol", protocol)):
        machine.poke(SOCK + getattr(machine.offsets, offset), value, 2)
    machine.poke(SOCKET + machine.offsets.kind, kind, 2)
    for symbol in ("security_socket_bind", "security_socket_listen", "security_socket_accept"):
        assert machine.call(symbol, SOCKET, 0) == said
    machine.uc.mem_write(SOCK + machine.offsets.peer, bytes(4))  # not connected
    for symbol in ("security_socket_sendmsg", "security_socket_recvmsg"):
        assert machine.call(symbol, SOCKET, MESSAGE) == said


PEERS = [("10.1.2.3", True), ("11.1.2.3", False), ("192.168.7.1", True), ("192.168.7.2", False),
         ("127.0.0.53", True), ("fd09::77", True), ("fd09:0:0:1::77", False), ("::1", True), ("::2", False),
         ("::ffff:10.0.0.1", True), ("::ffff:11.0.0.1", False), ("a00::1", False)]  # fmt: skip


@pytest.mark.parametrize(("address", "allowed"), PEERS)
def test_connecting(machine: Machine, address: str, allowed: bool) -> None:
    machine.rules(rule(networks=ALLOWED))
    assert machine.call("security_socket_connect", SOCKET, machine.name(address)) == (None if allowed else -13)
    for family in (1, 17):
        assert machine.call("security_socket_connect", SOCKET, machine.name(address, family)) == -13
    assert machine.call("security_socket_connect", SOCKET, machine.name(address, 0)) in (None, -13)
    machine.uc.mem_write(NAME, bytes(2))  # AF_UNSPEC: an end of the connection
    assert machine.call("security_socket_connect", SOCKET, NAME) is None
    machine.poke(SOCKET + machine.offsets.kind, 3, 2)
    assert machine.call("security_socket_connect", SOCKET, machine.name(address)) == -13


@pytest.mark.parametrize(("address", "allowed"), PEERS)
def test_peers_of_connected_sockets(machine: Machine, address: str, allowed: bool) -> None:
    at, ip = machine.offsets, ip_address(address)
    if ip.version == 6 and at.peer6 < 0:
        allowed = False
    machine.rules(rule(networks=ALLOWED))
    machine.poke(SOCK + at.family, 2 if ip.version == 4 else 10, 2)
    machine.uc.mem_write(SOCK + (at.peer if ip.version == 4 else max(at.peer6, 56)), ip.packed)
    said = None if allowed else -13
    for symbol in ("security_socket_sendmsg", "security_socket_recvmsg"):
        assert machine.call(symbol, SOCKET, MESSAGE) == said
    for symbol in ("sock_splice_read", "sock_sendpage"):
        assert machine.call(symbol, FILE, 0) == said
    # A stream goes to its peer whatever name the message has.
    machine.poke(MESSAGE + at.name, machine.name("10.1.1.1"))
    assert machine.call("security_socket_sendmsg", SOCKET, MESSAGE) == said
    machine.poke(MESSAGE + at.name, machine.name("1.1.1.1"))
    assert machine.call("security_socket_sendmsg", SOCKET, MESSAGE) == said


@pytest.mark.parametrize(("address", "allowed"), PEERS)
def test_names_of_messages(machine: Machine, address: str, allowed: bool) -> None:
    at = machine.offsets
    machine.rules(rule(networks=ALLOWED))
    machine.poke(SOCKET + at.kind, 2, 2)
    machine.poke(SOCK + at.protocol, 17, 2)
    for peer in ("0.0.0.0", "10.0.0.1", CONNECTED):
        machine.uc.mem_write(SOCK + at.peer, ip_address(peer).packed)
        machine.poke(MESSAGE + at.name, machine.name(address))
        machine.poke(MESSAGE + at.name_size, 28, 4)
        assert machine.call("security_socket_sendmsg", SOCKET, MESSAGE) == (None if allowed else -13)
        machine.uc.mem_write(NAME, bytes(2))
        assert machine.call("security_socket_sendmsg", SOCKET, MESSAGE) == -13, "no family"
        machine.poke(MESSAGE + at.name_size, 0, 4)
        said = -13 if peer == CONNECTED else None
        assert machine.call("security_socket_sendmsg", SOCKET, MESSAGE) == said, "a name of no length is none"


# -- operations that are about no socket -------------------------------------------------------------------------------


def test_modules(machine: Machine) -> None:
    machine.rules(rule("module"))
    assert machine.call("security_kernel_read_file", FILE, 2, 1) == -13
    assert machine.call("security_kernel_read_file", FILE, 1, 1) is None
    assert machine.call("security_kernel_load_data", 3, 1) == -13
    assert machine.call("security_kernel_load_data", 1, 1) is None
    assert machine.call("security_kernel_module_request", NAME) == -13


# Within this file system: root (1) > srv (2) > data (3) > file (4); it is mounted on /mnt (12) of another one, which
# is the root.
TREE = DATA + 0x30000
LEAF, DIRECTORY, TOP, ROOT, MNT, ABOVE_ROOT, NAMELESS = (TREE + 0x400 * at for at in range(7))
MOUNTED, FIRST_MOUNT = TREE + 0x4000, TREE + 0x4100


def plant_tree(machine: Machine) -> None:
    at = machine.offsets
    for dentry, parent, number, device in (
        (LEAF, DIRECTORY, 4, 0x800001), (DIRECTORY, TOP, 3, 0x800001), (TOP, ROOT, 2, 0x800001),
        (ROOT, ROOT, 1, 0x800001), (MNT, ABOVE_ROOT, 12, 9), (ABOVE_ROOT, ABOVE_ROOT, 1, 9),
    ):  # fmt: skip
        inode = dentry + 0x8000
        block = TREE + 0x5000 + (0x100 if device == 9 else 0)
        for base, offset, value, size in (
            (dentry, at.parent, parent, 8), (dentry, at.inode, inode, 8), (inode, at.number, number, 8),
            (inode, at.generation, 7, 4), (inode, at.block, block, 8), (block, at.device, device, 4),
        ):  # fmt: skip
            machine.poke(base + offset, value, size)
    machine.poke(FILE + at.file_dentry, LEAF)
    machine.poke(FILE + at.file_mount, MOUNTED + at.mount)
    for mount, above, point in ((MOUNTED, FIRST_MOUNT, MNT), (FIRST_MOUNT, FIRST_MOUNT, ABOVE_ROOT)):
        machine.poke(mount + at.above, above)
        machine.poke(mount + at.mountpoint, point)


@pytest.mark.parametrize(
    ("number", "device", "generation", "said"),
    [(4, 0x800001, 7, -13), (3, 0x800001, 7, -13), (2, 0x800001, 7, -13), (1, 0x800001, 7, -13), (12, 9, 7, -13),
     (1, 9, 7, -13), (3, 9, 7, None), (12, 0x800001, 7, None), (3, 0x800001, 8, None), (5, 0x800001, 7, None)],
)  # fmt: skip
def test_directories(machine: Machine, number: int, device: int, generation: int, said: int | None) -> None:
    plant_tree(machine)
    machine.rules(rule("open", folders=(layout.Folder(number, device, generation, "/there"),)))
    assert machine.call("security_file_open", FILE) == said
    elsewhere = layout.Folder(99, 9, 7, "/elsewhere")
    machine.rules(rule("open", folders=(elsewhere, layout.Folder(number, device, generation, "/there"))))
    assert machine.call("security_file_open", FILE) == said
    machine.rules(rule("open", folders=(elsewhere,)), rule("open", errno=1))
    assert machine.call("security_file_open", FILE) == -1, "the next rule is asked with the same file"
    machine.rules(rule("exec", folders=(layout.Folder(number, device, generation, "/there"),)))
    assert machine.call("security_file_open", FILE) is None


def test_a_name_without_a_file_is_passed_over(machine: Machine) -> None:
    plant_tree(machine)
    machine.poke(DIRECTORY + machine.offsets.inode, 0)
    machine.rules(rule("open", folders=(layout.Folder(2, 0x800001, 7, "/srv"),)))
    assert machine.call("security_file_open", FILE) == -13


def test_directories_in_a_circle_are_refused(machine: Machine) -> None:
    plant_tree(machine)
    machine.poke(TOP + machine.offsets.parent, LEAF)
    machine.rules(rule("open", folders=(layout.Folder(99, 9, 7, "/elsewhere"),)))
    assert machine.call("security_file_open", FILE, steps=200_000) == -13
    plant_tree(machine)
    machine.poke(FIRST_MOUNT + machine.offsets.above, MOUNTED)
    assert machine.call("security_file_open", FILE, steps=200_000) == -13


def test_tracing(machine: Machine) -> None:
    machine.rules(rule("ptrace"))
    assert machine.call("security_ptrace_access_check", OTHER, 0x2 | 0x10) == -13
    assert machine.call("security_ptrace_access_check", OTHER, 0x1 | 0x8) is None
    assert machine.call("security_ptrace_traceme", OTHER) is None
    assert machine.call("security_ptrace_traceme", TASK) == -13


def test_signals(machine: Machine) -> None:
    machine.rules(rule("kill"))
    assert machine.call("security_task_kill", OTHER, 0, 15, 0) == -13
    assert machine.call("security_task_kill", TASK, 0, 6, 0) is None


def test_every_branch_was_taken_and_not_taken() -> None:
    """Runs last: what the tests above went through, of each variant."""
    assert set(BRANCHES) == set(VARIANTS)
    for variant, branches in BRANCHES.items():
        lame = {hex(at) for at, outcomes in branches.items() if outcomes != {True, False}}
        assert not lame, f"{variant}: {lame}"


# -- the assembler and the records -------------------------------------------------------------------------------------


def test_the_assembler_writes_what_a_disassembler_reads() -> None:
    asm = Assembler(0xFFFF_FFFF_8000_0000)
    asm.push("rdi", "r9", "r12")
    asm.load("rax", At("rsp", 8))
    asm.load("r12", At("r12", -8), 4)
    asm.load("rcx", At("r13", 0x7FFF_FFFF), 2)
    asm.load("rdx", At(None, 0xFFFF_FFFF_8000_1000), 1)
    asm.load_gs("r10", 0xFFFF_FFFF_895B_D018)
    asm.load_gs("rax", 0x1FB80)
    asm.move("r9", 1)
    asm.move("rdi", 0xFFFF_8880_0000_0000)
    asm.move("r8", "rdi")
    asm.reckon("cmp", "r11", -1)
    asm.reckon("and", "rcx", At("r10", 16), 4)
    asm.compare_memory(At("rdx", 8), 300, 4)
    asm.compare_memory(At("r10", 8), -2, 8)
    asm.compare_memory(At("r10"), 7, 1)
    asm.count_up(At("rcx"))
    asm.jump(0xFFFF_FFFF_8000_0000)
    asm.pop("r12")
    reader = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    lines = [f"{line.mnemonic} {line.op_str}" for line in reader.disasm(asm.finish(), asm.origin)]
    assert lines == [
        "push rdi", "push r9", "push r12", "mov rax, qword ptr [rsp + 8]", "mov r12d, dword ptr [r12 - 8]",
        "movzx ecx, word ptr [r13 + 0x7fffffff]", "movzx edx, byte ptr [0xffffffff80001000]",
        "mov r10, qword ptr gs:[0xffffffff895bd018]", "mov rax, qword ptr gs:[0x1fb80]", "mov r9d, 1",
        "movabs rdi, 0xffff888000000000", "mov r8, rdi", "cmp r11, -1", "and ecx, dword ptr [r10 + 0x10]",
        "cmp dword ptr [rdx + 8], 0x12c", "cmp qword ptr [r10 + 8], -2", "cmp byte ptr [r10], 7",
        "lock inc qword ptr [rcx]", "jmp 0xffffffff80000000", "pop r12",
    ]  # fmt: skip


def test_the_assembler_refuses_what_does_not_fit() -> None:
    asm = Assembler(0xFFFF_FFFF_8000_0000)
    with pytest.raises(ValueError, match="too far"):
        asm.jump(0x1000_0000)
    with pytest.raises(ValueError, match="does not fit"):
        asm.load("rax", At("rax", 1 << 31))
    asm.jump("nowhere")
    with pytest.raises(KeyError):
        asm.finish()
    asm.label("here")
    with pytest.raises(ValueError, match="twice"):
        asm.label("here")


def test_records_are_read_as_they_were_written() -> None:
    rules = {
        0: rule(networks=ALLOWED, pid=4242, time=1_764_000_000, name="curl", entry="20261124-1"),
        3: rule("kill", Scope.CGROUP, number=2, first=ABOVE, second=77, errno=1),
        4: rule("open", folders=(layout.Folder(2, 9, 7, "/srv"), layout.Folder(3, 9, 7, "/a\u00e9"))),
    }
    hooks = (layout.Hook(FUNCTIONS, b"\x0f\x1f\x44\0\0"), layout.Hook(FUNCTIONS + 16, b"\x66\x66\x66\x66\x90"))
    state = State(3000, b"abcdefgh", MARK, hooks, rules)
    raw = bytearray(b"\xcc" * AREA_SIZE)
    for at, piece in layout.encode(BASE, state).items():
        raw[at : at + len(piece)] = piece
    assert layout.decode(BASE, bytes(raw)) == state


def test_records_of_others_are_left_alone() -> None:
    raw = bytearray(b"\xcc" * AREA_SIZE)
    with pytest.raises(layout.NotOurs):
        layout.decode(BASE, bytes(raw))
    state = State(3000, b"abcdefgh", MARK, (), {0: rule(networks=ALLOWED)})
    for at, piece in layout.encode(BASE, state).items():
        raw[at : at + len(piece)] = piece
    for at, lie in ((8, b"\3"), (12, b"\xff"), (16, b"\xff\xff"), (24, b"\xff\xff\xff")):
        lying = raw.copy()
        lying[at : at + len(lie)] = lie
        with pytest.raises(layout.NotOurs):
            layout.decode(BASE, bytes(lying))
    for at, lie in ((layout.SCOPE, b"\x09"), (layout.ALLOW, bytes(8)), (layout.ALLOWED, b"\xff\xff\xff\x7f")):
        lying = raw.copy()
        lying[layout.RULES_AT + at : layout.RULES_AT + at + len(lie)] = lie
        with pytest.raises(layout.NotOurs):
            layout.decode(BASE, bytes(lying))


def test_networks_that_are_none_are_not_ours() -> None:
    raw = bytearray(b"\xcc" * AREA_SIZE)
    state = State(3000, b"abcdefgh", MARK, (), {0: rule(networks=ALLOWED)})
    for at, piece in layout.encode(BASE, state).items():
        raw[at : at + len(piece)] = piece
    for at, lie in ((15, b"\x01"), (16, b"\x55")):  # bits of the host, a mask with holes
        lying = raw.copy()
        lying[layout.NETWORKS_AT + at : layout.NETWORKS_AT + at + 1] = lie
        with pytest.raises(layout.NotOurs):
            layout.decode(BASE, bytes(lying))


def test_there_is_an_end_to_rules_and_networks() -> None:
    with pytest.raises(ValueError, match="room for"):
        layout.encode(BASE, State(0, bytes(8), 0, (), dict.fromkeys(range(33), rule())))
    many = tuple(ip_network((at << 8, 24)) for at in range(129))
    with pytest.raises(ValueError, match="room for"):
        layout.encode(BASE, State(0, bytes(8), 0, (), {0: rule(networks=many)}))
