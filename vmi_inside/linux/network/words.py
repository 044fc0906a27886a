"""Addresses and flags of the network in words.

Knows how MAC and IP addresses are written, and how flags are. What they belong to is left to the tables.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

import numpy as np

from vmi_inside.table import Text, text
from vmi_inside.types import I64, U8, Mask

#: MAX_ADDR_LEN (include/linux/netdevice.h).
HARDWARE_LIMIT = 32
INET, INET6 = 2, 10


def inet(raw: U8, which: Mask | None = None) -> Text:
    """IPv4 addresses (n, 4) or IPv6 ones (n, 16), in network order, as text; empty where `which` (n,) says no."""
    family = socket.AF_INET if raw.shape[1] == 4 else socket.AF_INET6
    cells = np.ascontiguousarray(raw).view(f"V{raw.shape[1]}")[:, 0].tolist()
    known = {cell: socket.inet_ntop(family, cell) for cell in set(cells)}
    shown = text(known[cell] for cell in cells)
    return shown if which is None else np.where(which, shown, "").astype(object)


def given(raw: U8) -> Mask:
    """Which rows (n,) of addresses are not all zero."""
    some: Mask = np.logical_or.reduce(raw != 0, axis=1)
    return some


def masks(bits: I64, width: int) -> Text:
    """Netmasks of `bits` (n,) ones, `width` bytes long."""
    known = {each: _mask(each, width) for each in set(bits.tolist())}
    return text(known[each] for each in bits.tolist())


def _mask(bits: int, width: int) -> str:
    ones = min(max(bits, 0), 8 * width)
    value = ((1 << ones) - 1) << (8 * width - ones)
    return socket.inet_ntop(socket.AF_INET if width == 4 else socket.AF_INET6, value.to_bytes(width, "big"))


def hardware(raw: U8, size: I64) -> Text:
    """Link-layer addresses: the first `size` (n,) bytes of each row of `raw` (n, 32), joined by colons."""
    sizes = np.clip(size, 0, raw.shape[1]).tolist()
    return text(cell.tobytes()[:each].hex(":") for cell, each in zip(raw, sizes, strict=True))


def flags(bits: I64, names: Mapping[int, str], joint: str = " ") -> Text:
    """The names of the bits that are set in each of `bits` (n,), in the order of `names`."""
    known = {each: joint.join(name for bit, name in names.items() if each & bit) for each in set(bits.tolist())}
    return text(known[each] for each in bits.tolist())


def code(values: I64, names: Mapping[int, str]) -> Text:
    """Names of codes (n,); the number itself where it has none."""
    known = {each: names.get(each, str(each)) for each in set(values.tolist())}
    return text(known[each] for each in values.tolist())
