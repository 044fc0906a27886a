"""A profile as plain JSON, for programs that know none of the field's formats.

Addresses are those of this boot; types are written as C declares them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from vmi_inside.errors import WrongProfile
from vmi_inside.profile import btf
from vmi_inside.profile.declare import declared
from vmi_inside.profile.profile import Profile

_NEST_LIMIT: Final = 32


def plain(profile: Profile) -> dict[str, Any]:
    """`kernel`, `symbols`, `structs` and `enums`. Of several types of one name the first is told.

    A symbol is its address and nm's letter; a member its offset and size in bytes, its type, and for a bit field
    `bit_offset` and `bit_size`. Raises `WrongProfile` when the types are damaged.
    """
    types = profile.types
    structs: dict[str, Any] = {}
    enums: dict[str, Any] = {}
    for one in range(1, types.end_id):
        record = types.record(one)
        if not record.name:
            continue
        if record.kind in (btf.STRUCT, btf.UNION) and record.name not in structs:
            members = dict(_members(profile, record, 0, 0))
            kind = "union" if record.kind == btf.UNION else "struct"
            structs[record.name] = {"kind": kind, "size": record.last, "members": members}
        elif record.kind in (btf.ENUM, btf.ENUM64):
            enums.setdefault(record.name, dict(types.enumerators(one)))
    symbols = profile.symbols
    told: dict[str, list[dict[str, Any]]] = {}
    for row in range(len(symbols)):
        symbol = symbols[row]
        address = symbol.value if symbol.fixed else (symbol.value + profile.origin) % (1 << 64)
        told.setdefault(symbol.name, []).append({"address": address, "type": symbol.type})
    return {
        "kernel": {
            "release": profile.release, "build_id": profile.build_id, "banner": profile.banner,
            "text": profile.origin, "slide": profile.slide,
        },
        "symbols": told,
        "structs": structs,
        "enums": enums,
    }  # fmt: skip


def _members(profile: Profile, record: btf.Record, at: int, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The members, those of nameless structs in line, at `at` bits from the start."""
    types = profile.types
    if depth > _NEST_LIMIT:
        raise WrongProfile(f"struct {record.name} is nested too deeply")
    words = iter(record.words)
    for name_at, of, where in zip(words, words, words, strict=True):
        bits, place = (where >> 24, where & 0xFFFFFF) if record.flag else (0, where)
        name = types.string(name_at)
        if not name:
            inner = types.record(of)
            if inner.kind in (btf.STRUCT, btf.UNION):
                yield from _members(profile, inner, at + place, depth + 1)
            continue
        size = types.type(of).size
        told: dict[str, Any] = {"offset": (at + place) // 8, "size": size, "type": declared(types, of)}
        if bits:
            unit = 8 * (size or 1)
            told["offset"] = (at + place) // unit * unit // 8
            told |= {"bit_offset": (at + place) % unit, "bit_size": bits}
        yield name, told
