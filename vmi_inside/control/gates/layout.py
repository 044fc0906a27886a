"""What a gate leaves in the guest, as bytes: a header, the functions hooked, the rules, the networks allowed, the
directories they are about.

Knows the form of these records, which the code of `stub` reads, and which a later controller reads to tell what stands.
They lie in padding of the kernel's text, which the guest itself cannot write. Where that is, is `place`'s matter.

    page 0   header (64 bytes), then 16 bytes for each function hooked; in its second half the names of directories
    page 1   32 rules of 128 bytes
    page 2   128 networks or directories of 32 bytes
    page 3-5 code
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

from vmi_inside.control.gates.entries import SIZE as ENTRY_SIZE
from vmi_inside.linux.symbols.gated import AREA_SIZE, HEADER, HEADER_SIZE, HOOK, HOOK_LIMIT, MAGIC, VERSION
from vmi_inside.types import PAGE_SIZE

#: Where the code finds how many slots of the table of rules to look at.
COUNT_AT: Final = 12

RULES_AT: Final = PAGE_SIZE
_RULE: Final = struct.Struct("<IIQQIiQIIQQIIQ16s24sQ")
RULE_SIZE: Final = _RULE.size
RULE_LIMIT: Final = PAGE_SIZE // RULE_SIZE
#: Where the members of a rule are that the code reads.
OPERATIONS, SCOPE, FAMILIES, ALLOW, ALLOWED, ERRNO, COUNTER, NUMBER, FIRST, SECOND = 0, 4, 8, 16, 24, 28, 32, 40, 48, 56

NETWORKS_AT: Final = 2 * PAGE_SIZE
NETWORK_SIZE: Final = 32
NETWORK_LIMIT: Final = PAGE_SIZE // NETWORK_SIZE
CODE_AT: Final = 3 * PAGE_SIZE
CODE_LIMIT: Final = AREA_SIZE - CODE_AT

#: Of a directory: number of the inode, device, generation, where its name begins in the area, bytes of that.
_FOLDER: Final = struct.Struct("<QIIII8x")
INODE, DEVICE, GENERATION = 0, 8, 12
NAMES_AT: Final = PAGE_SIZE // 2
#: What a rule's list is of.
_NETWORKS, _FOLDERS = 0, 1

Network = IPv4Network | IPv6Network
_MAPPED: Final = int(IPv6Address("::ffff:0:0"))


class Scope(IntEnum):
    """Whom a rule is for, and what NUMBER, FIRST and SECOND say of it."""

    PROCESS = 1  # tgid, start_boottime
    MARKED = 2  # bits of the spare word in task_struct; FIRST is the start_boottime of the process where it began
    CGROUP = 3  # level, its ancestor there (pointer or id), and the pointer's serial number
    USER = 4  # uid


@dataclass(frozen=True, slots=True)
class Folder:
    """A directory with all that is below it, or a single file: numbers of its inode, of its file system's device, its
    inode's generation; `path` is for people.
    """

    inode: int
    device: int
    generation: int
    path: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: `operations` in bits; `families` in bits, too, of socket families that are refused.

    `networks` are what it lets through; with any, sockets may be made, bound and listened on, and only peers count.
    `folders`, for opening files, are what it is limited to; a rule has one or the other.
    `counter` is the address of the 64-bit count of refusals, 0 for none, and `base` where it began to count. `pid`,
    `name`, `time` and `entry` are for people: the process it was asked for, its name then, when (seconds since the
    epoch), and the journal's id.
    """

    operations: int
    scope: Scope
    families: int
    errno: int
    number: int
    first: int = 0
    second: int = 0
    counter: int = 0
    networks: tuple[Network, ...] = ()
    pid: int = 0
    time: int = 0
    name: str = ""
    entry: str = ""
    base: int = 0
    folders: tuple[Folder, ...] = ()


@dataclass(frozen=True, slots=True)
class Hook:
    """Five bytes of the kernel's text that were changed: where, and what stood there."""

    at: int
    found: bytes


@dataclass(frozen=True, slots=True)
class State:
    """All that lies in the area but its code: `rules` by slot, `hooks` in the order in which they were made.

    `mark` is the offset of the spare word in `task_struct` (0: none), `code_size` and `code_id` say which code it is.
    """

    code_size: int
    code_id: bytes
    mark: int = 0
    hooks: tuple[Hook, ...] = ()
    rules: dict[int, Rule] = field(default_factory=dict)


class NotOurs(ValueError):
    """The bytes are not what this version writes."""


def encode(base: int, state: State) -> dict[int, bytes]:
    """The pieces by their offset in the area at `base`. Bytes that no piece covers stay padding.

    Raises `ValueError` when there is no room for so much.
    """
    top = max(state.rules, default=-1) + 1
    entries: list[bytes] = []
    names = bytearray()
    for slot in sorted(state.rules):
        entries += map(_network, state.rules[slot].networks)
        for one in state.rules[slot].folders:
            text = one.path.encode("utf-8", "surrogateescape")
            entries.append(_FOLDER.pack(one.inode, one.device, one.generation, NAMES_AT + len(names), len(text)))
            names += text
    if top > RULE_LIMIT or len(entries) > NETWORK_LIMIT or len(state.hooks) > HOOK_LIMIT:
        raise ValueError(
            f"room for {RULE_LIMIT} rules, {NETWORK_LIMIT} networks and directories, {HOOK_LIMIT} functions only"
        )
    if len(names) > PAGE_SIZE - NAMES_AT:
        raise ValueError(f"room for names of directories of {PAGE_SIZE - NAMES_AT} bytes in all only")
    header = HEADER.pack(MAGIC, VERSION, top, len(state.hooks), state.mark, state.code_size, state.code_id)
    pieces = {0: header.ljust(HEADER_SIZE, b"\0") + b"".join(HOOK.pack(one.at, one.found) for one in state.hooks)}
    rules, listed = [], 0
    for slot in range(top):
        rule = state.rules.get(slot)
        if rule is None:
            rules.append(bytes(RULE_SIZE))
            continue
        allow = base + NETWORKS_AT + listed * NETWORK_SIZE
        size = len(rule.folders) or len(rule.networks)
        listed += size
        rules.append(
            _RULE.pack(
                rule.operations, rule.scope, rule.families, allow, size, -rule.errno, rule.counter,
                rule.number, 0, rule.first, rule.second, rule.pid, _FOLDERS if rule.folders else _NETWORKS, rule.time,
                rule.name.encode()[:16], rule.entry.encode()[:24], rule.base,
            )
        )  # fmt: skip
    if rules:
        pieces[RULES_AT] = b"".join(rules)
    if entries:
        pieces[NETWORKS_AT] = b"".join(entries)
    if names:
        pieces[NAMES_AT] = bytes(names)
    return pieces


def decode(base: int, raw: bytes) -> State:
    """What `encode` made: `raw` is the area whole. Raises `NotOurs`."""
    magic, version, top, hooked, mark, code_size, code_id = HEADER.unpack_from(raw)
    if magic != MAGIC:
        raise NotOurs("no header")
    if version != VERSION or top > RULE_LIMIT or hooked > HOOK_LIMIT or code_size > CODE_LIMIT:
        raise NotOurs(f"a header of version {version} with {top} rules, {hooked} functions, {code_size} bytes of code")
    hooks = tuple(Hook(*HOOK.unpack_from(raw, HEADER_SIZE + at * HOOK.size)) for at in range(hooked))
    rules = {}
    for slot in range(top):
        (operations, scope, families, allow, allowed, errno, counter, number, _, first, second, pid, about, time, name,
         entry, begun) = _RULE.unpack_from(raw, RULES_AT + slot * RULE_SIZE)  # fmt: skip
        if not operations:
            continue
        at = allow - base
        if scope not in iter(Scope) or not NETWORKS_AT <= at <= CODE_AT - allowed * NETWORK_SIZE:
            raise NotOurs(f"rule {slot} is of scope {scope} and allows {allowed} networks at {allow:#x}")
        places = range(at, at + allowed * NETWORK_SIZE, NETWORK_SIZE)
        rules[slot] = Rule(
            operations, Scope(scope), families, -errno, number, first, second, counter,
            tuple(_as_network(raw, one) for one in places if about != _FOLDERS),
            pid, time, _text(name), _text(entry), begun,
            tuple(_as_folder(raw, one) for one in places if about == _FOLDERS),
        )  # fmt: skip
    return State(code_size, code_id, mark, hooks, rules)


def hook(entry_at: int, target: int) -> bytes:
    """The 5 bytes of a jump from a function's entry."""
    return b"\xe9" + ((target - entry_at - ENTRY_SIZE) & 0xFFFF_FFFF).to_bytes(4, "little")


def _network(network: Network) -> bytes:
    """Address and mask, each 16 bytes as IPv6 has them; IPv4 is mapped into ::ffff:0:0/96."""
    address, mask = int(network.network_address), int(network.netmask)
    if network.version == 4:
        address, mask = address | _MAPPED, mask | (((1 << 96) - 1) << 32)
    return address.to_bytes(16, "big") + mask.to_bytes(16, "big")


def _as_network(raw: bytes, at: int) -> Network:
    address, mask = (int.from_bytes(raw[start : start + 16], "big") for start in (at, at + 16))
    length = mask.bit_count()
    if mask != ((1 << length) - 1) << (128 - length) or address & ~mask:
        raise NotOurs(f"a network of address {address:#x} and mask {mask:#x}")
    if address >> 32 == _MAPPED >> 32 and length >= 96:
        return ip_network((address & 0xFFFF_FFFF, length - 96))
    return ip_network((address, length))


def _as_folder(raw: bytes, at: int) -> Folder:
    inode, device, generation, start, size = _FOLDER.unpack_from(raw, at)
    if not NAMES_AT <= start <= start + size <= PAGE_SIZE:
        raise NotOurs(f"a name of {size} bytes at {start:#x}")
    return Folder(inode, device, generation, raw[start : start + size].decode("utf-8", "backslashreplace"))


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "backslashreplace")
