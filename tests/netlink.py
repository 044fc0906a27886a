"""What a guest's kernel says over netlink of its network, in each of its network namespaces.

Knows rtnetlink's and nfnetlink's messages (include/uapi/linux/), as `workload netlink` dumps them. Comparing is left to
the tests.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tests.lab.guest import LabGuest

ROUTE, NETFILTER = 0, 12
Attributes = dict[int, bytes]
#: Each message: the family's header and the attributes behind it.
Messages = list[tuple[bytes, Attributes]]


def attributes(data: bytes) -> Attributes:
    """Attributes by type, the flags of nesting taken away; of several of a type the last."""
    return dict(listed(data))


def listed(data: bytes) -> list[tuple[int, bytes]]:
    """Attributes in order."""
    found = []
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        if size < 4:
            break
        found.append((kind & 0x3FFF, data[4:size]))
        data = data[(size + 3) & ~3 :]
    return found


def dump(guest: LabGuest, namespace: str, protocol: int, kind: int, header: bytes, asked: bytes = b"") -> Messages:
    """All messages of a dump, in the network namespace of that file; `asked` are the request's own attributes."""
    said = guest.ask(f"workload netlink {namespace} {protocol} {kind} {(header + asked).hex()}")
    bodies = [bytes.fromhex(line.partition(" ")[2]) for line in said.splitlines()]
    return [(body[: len(header)], attributes(body[len(header) :])) for body in bodies]


def namespaces(guest: LabGuest) -> dict[int, str]:
    """Inode numbers of the network namespaces that a task lives in, and a file for each; others have no name inside."""
    said = guest.ask("cd /proc; for p in [0-9]*/task/[0-9]*/ns/net; do echo $p $(readlink $p); done 2>/dev/null; true")
    found: dict[int, str] = {}
    for line in said.splitlines():
        path, _, name = line.partition(" ")
        if name.startswith("net:["):
            found.setdefault(int(name[5:-1]), f"/proc/{path}")
    return found


def everywhere(guest: LabGuest, ask: Callable[[LabGuest, str], list[Any]]) -> dict[int, list[Any]]:
    """What `ask` finds in each network namespace, by inode number."""
    return {inode: ask(guest, path) for inode, path in namespaces(guest).items()}


def text(attributes: Attributes, kind: int) -> str:
    return attributes.get(kind, b"").rstrip(b"\0").decode()


def number(attributes: Attributes, kind: int, default: int = 0) -> int:
    return int.from_bytes(attributes[kind], "little") if kind in attributes else default


def big(attributes: Attributes, kind: int, default: int = 0, *, signed: bool = False) -> int:
    return int.from_bytes(attributes[kind], "big", signed=signed) if kind in attributes else default
