"""Keys and keyrings that the kernel keeps: /proc/keys, without regard to who may see which.

Knows `struct key` and `key_type` (include/linux/key.h, include/linux/key-type.h) and the tree of all keys by serial
number (security/keys/key.c). What the keys' payloads are is left to others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside import rbtree
from vmi_inside.errors import Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux import clock
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64


class KernelKeys(Table):
    """One row for each key, by serial number; osquery's column names where it has them."""

    serial_number: Text  # eight hexadecimal digits
    flags: Text  # as in /proc/keys: instantiated, Revoked, Dead, in Quota, Under construction, Negative, invalidated
    usage: I64  # references
    timeout: Text  # perm; expd; or how long it still lives, as in /proc/keys: 30s 5m 2h 3d 1w
    permissions: Text  # eight hexadecimal digits: possessor, user, group, others
    uid: I64
    gid: I64  # -1 for none, where /proc/keys shows 65534
    type: Text
    description: Text
    content: Text  # what /proc/keys says of it: of keyrings how many keys, of user and logon keys how many bytes
    expiry: I64  # seconds since the epoch; 0 for a key without end
    address: U64  # of struct key


#: KEY_FLAG_* (include/linux/key.h) and the letters of /proc/keys, in its order; I, N and i stand apart.
_REVOKED, _DEAD, _QUOTA, _CONSTRUCT, _INVALIDATED = 1, 0, 2, 3, 5
#: Seconds: from here on a key is said to have so many of the unit.
_UNITS: Final = ((7 * 86400, "w"), (86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
#: TIME64_MAX stands for "never" since 6.7, as 0 did before.
_NEVER: Final = (1 << 63) - 1
_TYPE_LIMIT, _DESCRIPTION_LIMIT = 64, 4096
_BY_SIZE: Final = frozenset(("user", "logon"))


def kernel_keys(kernel: Kernel, columns: Iterable[str] | None = None) -> KernelKeys:
    """All keys. `columns` asks for some columns only. Raises `Unsupported` where the kernel keeps none."""
    wanted = list(KernelKeys.schema if columns is None else columns)
    KernelKeys.check(wanted)
    with kernel.operation():
        keys, sure, notes = _keys(kernel)
        keys.fetch(
            "usage.refs.counter", "serial", "expiry", "uid.val", "gid.val", "perm", "datalen", "state", "flags",
            "type", "description", "keys.nr_leaves_on_tree",
        )  # fmt: skip
        faults = Faults(len(keys))
        faults.mark(keys.fault, "key unreadable")
        faults.mark(~sure, "not where the tree has it")
        kinds = keys.follow("type")
        names, ok = kernel.strings(kinds.pointer("name"), _TYPE_LIMIT)
        faults.mark(kinds.fault | ~ok, "type unreadable")
        expiry = keys.number("expiry")
        expiry = np.where(expiry == _NEVER, 0, expiry)
        gid = keys.number("gid.val")
        data: dict[str, Column] = {
            "serial_number": text(f"{each & 0xFFFFFFFF:08x}" for each in keys.number("serial").tolist()),
            "flags": _flags(keys),
            "usage": keys.number("usage.refs.counter"),
            "timeout": _timeouts(expiry, clock.now(kernel)),
            "permissions": text(f"{each:08x}" for each in keys.unsigned("perm").tolist()),
            "uid": keys.number("uid.val"),
            "gid": np.where(gid == 0xFFFFFFFF, -1, gid),
            "type": text(names),
            "content": _content(keys, names),
            "expiry": expiry,
            "address": keys.address,
        }
        if "description" in wanted:
            shown, fine = kernel.strings(keys.pointer("description"), _DESCRIPTION_LIMIT)
            faults.mark(~fine, "description unreadable")
            data["description"] = text(shown)
        data["fault"] = faults.column()
    return KernelKeys({name: data[name] for name in dict.fromkeys((*wanted, "fault"))}, notes)


def _keys(kernel: Kernel) -> tuple[Structs, np.ndarray, tuple[str, ...]]:
    """All keys, which of them hang in the tree as they say, and where the tree was cut."""
    key = kernel.find_struct("key")
    symbol = kernel.profile.find_symbol("key_serial_tree")
    if key is None or symbol is None:
        raise Unsupported("this kernel keeps no keys (it is built without CONFIG_KEYS)")
    root = kernel.structs("rb_root", [symbol]).fetch("rb_node")
    found = rbtree.nodes(kernel.space, root.pointer("rb_node"), kernel.struct("rb_node"), what="keys")
    notes = ("keys: the tree's root could not be read", *found.faults) if root.fault.any() else found.faults
    return kernel.structs(key, found.address - np.uint64(key.member("serial_node").offset)), found.sure, notes


def _flags(keys: Structs) -> Text:
    out = []
    for bits, state in zip(keys.unsigned("flags").tolist(), keys.number("state").tolist(), strict=True):
        letters = [(state != 0, "I"), (bits >> _REVOKED & 1, "R"), (bits >> _DEAD & 1, "D"), (bits >> _QUOTA & 1, "Q"),
                   (bits >> _CONSTRUCT & 1, "U"), (state < 0, "N"), (bits >> _INVALIDATED & 1, "i")]  # fmt: skip
        out.append("".join(letter if there else "-" for there, letter in letters))
    return text(out)


def _timeouts(expiry: I64, now: float | None) -> Text:
    out = []
    for each in expiry.tolist():
        left = each - int(now or 0)
        unit = next(((size, letter) for size, letter in _UNITS if left >= size), (1, "s"))
        out.append("perm" if each == 0 else "expd" if left <= 0 else f"{left // unit[0]}{unit[1]}")
    return text(out)


def _content(keys: Structs, kinds: list[str]) -> Text:
    out = []
    columns = (kinds, keys.number("state").tolist(), keys.number("datalen").tolist(),
               keys.unsigned("keys.nr_leaves_on_tree").tolist())  # fmt: skip
    for kind, state, size, leaves in zip(*columns, strict=True):
        if state <= 0:
            out.append("")
        elif kind == "keyring":
            out.append(str(leaves) if leaves else "empty")
        else:
            out.append(str(size) if kind in _BY_SIZE else "")
    return text(out)
