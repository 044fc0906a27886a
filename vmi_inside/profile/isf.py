"""A profile as volatility3's symbol table: the Intermediate Symbol Format, 6.2.0.

Knows the format (volatility3's `schemas/schema-6.2.0.json`) and how BTF says the same. Addresses are those that the
kernel was linked at, as everywhere in that format: the reader finds the slide.

BTF tells the types of few globals. `profiles/linux/globals.json` has those that are asked for most; of the others the
type is given as void, and the reader casts.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any, Final

from vmi_inside.errors import WrongProfile
from vmi_inside.profile import btf
from vmi_inside.profile.btf import Btf
from vmi_inside.profile.ctypes import CType
from vmi_inside.profile.profile import LINKED_AT, Profile
from vmi_inside.types import MASK64, align_up

FORMAT: Final = "6.2.0"
_VOID: Final = {"kind": "base", "name": "void"}
_DEPTH_LIMIT: Final = 64  # pointers to pointers, arrays of arrays
_KINDS: Final = {btf.STRUCT: "struct", btf.UNION: "union", btf.ENUM: "enum", btf.ENUM64: "enum"}
_BOOL: Final = 4  # BTF_INT_BOOL, BTF_INT_CHAR (include/uapi/linux/btf.h)
_CHAR: Final = 2
_KEEPER: Final = "tk_core"


def isf(profile: Profile, version: str, tables_at: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The whole table, as `json` takes it. `version` is the producer's. Raises `WrongProfile` when BTF is damaged.

    `tables_at` are more symbols: addresses, as the guest has them, of kallsyms' own tables.
    """
    types = _Types(profile.types)
    tables = types.tables()
    keeper = _keeper(profile)
    if keeper is not None:
        tables["user"][_KEEPER] = keeper
    return {
        "metadata": {
            "linux": {"symbols": [], "types": []},
            "producer": {"name": "vmi-inside", "version": version},
            "format": FORMAT,
        },
        "base_types": tables["base"],
        "user_types": tables["user"],
        "enums": tables["enum"],
        "symbols": {**dict(_symbols(profile, types)), **_tables(profile, tables_at or {})},
    }


def _tables(profile: Profile, tables_at: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Symbols of kallsyms' tables; their number is an unsigned int since 4.20 (kernel/kallsyms_internal.h)."""
    of = {"kallsyms_num_syms": {"kind": "base", "name": "unsigned int"}}
    return {
        name: {"address": (at - profile.slide) & MASK64, "type": of.get(name, _VOID)} for name, at in tables_at.items()
    }


def _symbols(profile: Profile, types: _Types) -> Iterator[tuple[str, dict[str, Any]]]:
    symbols = profile.symbols
    chosen: dict[str, int] = {}
    for row in range(len(symbols)):
        one = symbols[row]
        before = chosen.get(one.name)
        # Of several of one name the one that a lookup by name gives: one that moves, and of these a global one.
        if before is None or (symbols[before].fixed, symbols[before].type.islower()) > (one.fixed, one.type.islower()):
            chosen[one.name] = row
    variables = types.variables
    nameless = _keeper(profile) is not None
    for name, row in chosen.items():
        one = symbols[row]
        entry: dict[str, Any] = {"address": one.value if one.fixed else one.value + LINKED_AT}
        if profile.is_code(row):
            entry["type"] = {"kind": "function"}
        else:
            known = variables.get(name) or types.alias(profile.listed_texts(name))
            entry["type"] = types.describe(known) if known is not None else types.of(profile.listed_type(name))
        if name == _KEEPER and nameless:
            entry["type"] = {"kind": "struct", "name": _KEEPER}
        if name == "linux_banner":
            entry["type"] = {"kind": "array", "count": len(profile.build.banner) + 1, "subtype": types.char}
            entry["constant_data"] = base64.b64encode(profile.build.banner + b"\0").decode()
        yield name, entry


def _keeper(profile: Profile) -> dict[str, Any] | None:
    """The struct of `tk_core`, which has no name before 6.13, so that BTF does not tell it; None where it does.

    A sequence counter and a struct timekeeper, since 3.17 (kernel/time/timekeeping.c).
    """
    types = profile.types
    counter = types.struct("seqcount_raw_spinlock") or types.struct("seqcount")
    keeper = types.struct("timekeeper")
    if counter is None or keeper is None or types.struct("tk_data") is not None:
        return None
    at = align_up(counter.size, 8)
    return {
        "size": at + keeper.size,
        "fields": {
            "seq": {"type": {"kind": "struct", "name": counter.name}, "offset": 0},
            "timekeeper": {"type": {"kind": "struct", "name": keeper.name}, "offset": at},
        },
        "kind": "struct",
    }


class _Types:
    """All types of a kernel, by the names that the format refers to them by."""

    def __init__(self, types: Btf) -> None:
        self._types = types
        self._names: dict[int, str] = {}
        self._described: dict[int, dict[str, Any]] = {}
        #: Global variables whose type BTF tells, by name.
        self.variables: dict[str, int] = {}
        self.char: dict[str, Any] = {"kind": "base", "name": "char"}

    def tables(self) -> dict[str, dict[str, Any]]:
        """`base`, `user` and `enum` types."""
        base: dict[str, Any] = {
            "void": {"size": 0, "signed": False, "kind": "void", "endian": "little"},
            "pointer": {"size": 8, "signed": False, "kind": "int", "endian": "little"},
        }
        every = [(one, self._types.record(one)) for one in range(1, self._types.end_id)]
        taken: set[str] = set()
        # A type without a name has that of the typedef it was made for, as `kernel_cap_t` since 6.3.
        typedefs: dict[int, str] = {}
        for _, record in every:
            if record.kind == btf.TYPEDEF:
                typedefs.setdefault(record.last, record.name)
        for one, record in every:
            if record.kind == btf.VAR:
                self.variables.setdefault(record.name, record.last)
            elif record.kind in (btf.INT, btf.FLOAT):
                base.setdefault(record.name, _base(record))
            elif record.kind in _KINDS:
                # Builds have several structs of one name, local to their files: the first keeps it.
                name = record.name or typedefs.get(one) or f"unnamed_{one:x}"
                self._names[one] = name if name not in taken else f"{name}_{one:x}"
                taken.add(name)
        user = {
            self._names[one]: self._struct(record) for one, record in every if record.kind in (btf.STRUCT, btf.UNION)
        }
        enum = {
            self._names[one]: self._enum(one, record) for one, record in every if record.kind in (btf.ENUM, btf.ENUM64)
        }
        return {"base": base, "user": user, "enum": enum}

    def describe(self, one: int, depth: int = 0) -> dict[str, Any]:
        """A reference to the type of that id."""
        known = self._described.get(one)
        if known is None:
            known = self._described[one] = self._describe(one, depth)
        return known

    def alias(self, texts: list[str]) -> int | None:
        """The id of the first of these that is a typedef's name: what it stands for may have no name of its own."""
        return next((one for text in texts for one in self._types.ids(text, btf.TYPEDEF)), None)

    def of(self, ctype: CType | None) -> dict[str, Any]:
        """A reference to a type that is known otherwise."""
        if ctype is None or ctype.kind in ("void", "unknown"):
            return _VOID
        if ctype.kind == "pointer":
            return {"kind": "pointer", "subtype": self.of(ctype.target)}
        if ctype.kind == "array":
            return {"kind": "array", "count": ctype.count, "subtype": self.of(ctype.target)}
        if ctype.kind in ("struct", "union", "enum"):
            if not ctype.name:
                return _VOID
            return {"kind": ctype.kind, "name": ctype.name}
        return {"kind": "base", "name": ctype.name}

    def _describe(self, one: int, depth: int) -> dict[str, Any]:
        for _ in range(_DEPTH_LIMIT):
            if one == 0:
                return _VOID
            record = self._types.record(one)
            if record.kind not in (btf.TYPEDEF, btf.VOLATILE, btf.CONST, btf.RESTRICT, btf.TYPE_TAG, btf.VAR):
                break
            one = record.last
        else:
            raise WrongProfile(f"type {one} refers to itself")
        if depth > _DEPTH_LIMIT:
            raise WrongProfile(f"type {one} is nested too deeply")
        if record.kind in _KINDS:
            return {"kind": _KINDS[record.kind], "name": self._names[one]}
        if record.kind == btf.PTR:
            return {"kind": "pointer", "subtype": self.describe(record.last, depth + 1)}
        if record.kind == btf.ARRAY:
            of, _, count = record.words
            return {"kind": "array", "count": count, "subtype": self.describe(of, depth + 1)}
        if record.kind in (btf.INT, btf.FLOAT):
            return {"kind": "base", "name": record.name}
        if record.kind in (btf.FUNC, btf.FUNC_PROTO):
            return {"kind": "function"}
        if record.kind == btf.FWD:
            kind = btf.UNION if record.flag else btf.STRUCT
            found = next(self._types.ids(record.name, kind), None)
            return _VOID if found is None else {"kind": _KINDS[kind], "name": self._names[found]}
        return _VOID

    def _struct(self, record: btf.Record) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        words = iter(record.words)
        for number, (name_at, of, where) in enumerate(zip(words, words, words, strict=True)):
            bits, at = (where >> 24, where & 0xFFFFFF) if record.flag else (0, where)
            name = self._types.string(name_at)
            field: dict[str, Any] = {"type": self.describe(of), "offset": at // 8}
            if bits:
                size = self._types.type(of).size or 1
                field["offset"] = at // (8 * size) * size
                field["type"] = {
                    "kind": "bitfield", "bit_length": bits, "bit_position": at % (8 * size), "type": field["type"],
                }  # fmt: skip
            if not name:
                name, field["anonymous"] = f"unnamed_field_{number:x}", True
            fields.setdefault(name, field)
        return {"size": record.last, "fields": fields, "kind": _KINDS[record.kind]}

    def _enum(self, one: int, record: btf.Record) -> dict[str, Any]:
        base = {1: "char", 2: "short int", 4: "unsigned int", 8: "long unsigned int"}.get(record.last, "unsigned int")
        return {"size": record.last, "base": base, "constants": dict(self._types.enumerators(one))}


def _base(record: btf.Record) -> dict[str, Any]:
    encoding = record.words[0] >> 24 if record.words else 0
    kind = (
        "float" if record.kind == btf.FLOAT else "bool" if encoding & _BOOL else "char" if encoding & _CHAR else "int"
    )
    if record.name in ("char", "signed char", "unsigned char"):  # the compiler seldom sets the flag
        kind = "char"
    return {"size": record.last, "signed": bool(encoding & 1), "kind": kind, "endian": "little"}
