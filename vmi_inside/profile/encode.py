"""Types of volatility3's format and of Rekall's written as BTF, so that what reads a kernel's own types reads these.

Knows the formats of the files and what BTF says instead. Files are other people's: what does not hold together raises
`WrongProfile`.

Source: include/uapi/linux/btf.h; volatility3's `schemas/schema-6.2.0.json`; Rekall's profiles as of 1.7 (2017).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from vmi_inside.errors import WrongProfile
from vmi_inside.profile import btf

_DEPTH_LIMIT: Final = 64
_BITS_LIMIT: Final = 1 << 24  # a member's place is 24 bits
_MAGIC: Final = 0xEB9F
_KINDS: Final = {"struct": btf.STRUCT, "union": btf.UNION, "enum": btf.ENUM}
_INT_SIGNED, _INT_CHAR, _INT_BOOL = 1, 2, 4
#: C's types as Rekall names them: bytes, and whether they are signed.
_C_TYPES: Final = {
    "char": (1, True), "signed char": (1, True), "unsigned char": (1, False), "_Bool": (1, False), "bool": (1, False),
    "short": (2, True), "short int": (2, True), "short unsigned int": (2, False), "unsigned short": (2, False),
    "int": (4, True), "unsigned int": (4, False), "long": (8, True), "long int": (8, True),
    "long unsigned int": (8, False), "unsigned long": (8, False), "long long": (8, True), "long long int": (8, True),
    "long long unsigned int": (8, False), "unsigned long long": (8, False), "__int128": (16, True),
}  # fmt: skip


def encoded(table: Mapping[str, Any]) -> bytes:
    """The types of a symbol table (ISF) as BTF. Raises `WrongProfile`."""
    try:
        return _Writer(table).blob()
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as error:
        raise WrongProfile(f"the profile's types do not hold together ({type(error).__name__}: {error})") from error


def from_rekall(profile: Mapping[str, Any]) -> dict[str, Any]:
    """A Rekall profile as a symbol table (ISF), so far as it says the same. Raises `WrongProfile`."""
    try:
        structs, enums = profile["$STRUCTS"], profile.get("$ENUMS", {})
        types = profile.get("$CONSTANT_TYPES", {})
        user = {
            name: {
                "kind": "struct", "size": size,
                "fields": {
                    label: {"offset": told[0], "type": _rekall_type(told[1], structs, enums, 0)}
                    for label, told in fields.items()
                },
            }
            for name, (size, fields) in structs.items()
        }  # fmt: skip
        symbols = {
            name: {
                "address": address,
                "type": _rekall_type(types[name], structs, enums, 0)
                if name in types
                else {"kind": "base", "name": "void"},
            }
            for name, address in {**profile.get("$FUNCTIONS", {}), **profile.get("$CONSTANTS", {})}.items()
        }
        for name in profile.get("$FUNCTIONS", {}):
            symbols[name]["type"] = {"kind": "function"}
        return {
            "base_types": {
                name: {"size": size, "signed": signed, "kind": "int"} for name, (size, signed) in _C_TYPES.items()
            },
            "user_types": user,
            "enums": {
                name: {"size": 4, "constants": {label: int(value, 0) for value, label in labels.items()}}
                for name, labels in enums.items()
            },
            "symbols": symbols,
        }
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise WrongProfile(f"the Rekall profile does not hold together ({type(error).__name__}: {error})") from error


def _rekall_type(told: Any, structs: Any, enums: Any, depth: int) -> dict[str, Any]:
    if depth > _DEPTH_LIMIT:
        raise WrongProfile("the Rekall profile has a type that is nested too deeply")
    name, arguments = told[0], told[1] or {}
    inner: Callable[[], dict[str, Any]] = lambda: _rekall_type(  # noqa: E731
        [arguments.get("target", "Void"), arguments.get("target_args")], structs, enums, depth + 1
    )
    if name == "Pointer":
        return {"kind": "pointer", "subtype": inner()}
    if name == "Array":
        return {"kind": "array", "count": arguments.get("count", 0), "subtype": inner()}
    if name == "BitField":
        start = arguments["start_bit"]
        length = arguments["end_bit"] - start
        return {"kind": "bitfield", "bit_position": start, "bit_length": length, "type": inner()}
    if name == "Enumeration" and arguments.get("enum_name") in enums:
        return {"kind": "enum", "name": arguments["enum_name"]}
    if name == "Enumeration":
        return inner()
    if name == "Function":
        return {"kind": "function"}
    return {"kind": "struct" if name in structs else "base", "name": "void" if name == "Void" else name}


class _Writer:
    """One blob being written: first every type that has a name, then what these refer to."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._strings = bytearray(1)
        self._places: dict[str, int] = {"": 0}
        self._records: list[bytes] = []
        self._ids: dict[tuple[Any, ...], int] = {}
        self._base = {name: each for name, each in table["base_types"].items() if name not in ("void", "pointer")}
        self._user, self._enums = table["user_types"], table["enums"]
        self._variables = {
            name: each["type"] for name, each in table.get("symbols", {}).items()
            if each.get("type") and each["type"] not in ({"kind": "base", "name": "void"}, {"kind": "function"})
        }  # fmt: skip

    def blob(self) -> bytes:
        named = [("base", name) for name in self._base]
        named += [("user", name) for name in self._user] + [("enum", name) for name in self._enums]
        self._ids = {key: at for at, key in enumerate(named, 1)}
        self._records = [b""] * len(named)
        for name, each in self._base.items():
            self._records[self._ids["base", name] - 1] = self._integer(name, each)
        for name, each in self._enums.items():
            self._records[self._ids["enum", name] - 1] = self._enum(name, each)
        for name, each in self._user.items():
            self._records[self._ids["user", name] - 1] = self._struct(name, each)
        for name, told in self._variables.items():
            one = self._reference(told)
            self._records.append(self._record(name, btf.VAR, 0, one) + struct.pack("<I", 1))
        types = b"".join(self._records)
        header = struct.pack("<HBBIIIII", _MAGIC, 1, 0, 24, 0, len(types), len(types), len(self._strings))
        return header + types + bytes(self._strings)

    def _string(self, text: str) -> int:
        at = self._places.get(text)
        if at is None:
            at = self._places[text] = len(self._strings)
            self._strings += text.encode("utf-8", "replace").replace(b"\0", b"?") + b"\0"
        return at

    def _record(self, name: str, kind: int, count: int, last: int, flag: bool = False) -> bytes:
        if count > 0xFFFF:
            raise WrongProfile(f"{name} has {count} parts: more than can be")
        return struct.pack("<III", self._string(name), flag << 31 | kind << 24 | count, last)

    def _integer(self, name: str, told: Mapping[str, Any]) -> bytes:
        size = int(told["size"])
        if told["kind"] == "float":
            return self._record(name, btf.FLOAT, 0, size)
        encoding = _INT_BOOL if told["kind"] == "bool" else _INT_SIGNED if told["signed"] else 0
        return self._record(name, btf.INT, 0, size) + struct.pack("<I", encoding << 24 | min(8 * size, 128))

    def _enum(self, name: str, told: Mapping[str, Any]) -> bytes:
        constants = told["constants"]
        wide = told["size"] == 8 or any(not -(1 << 31) <= value < 1 << 32 for value in constants.values())
        signed = any(value < 0 for value in constants.values())
        out = self._record(name, btf.ENUM64 if wide else btf.ENUM, len(constants), told["size"], signed)
        for label, value in constants.items():
            at = self._string(label)
            low, high = value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF
            out += struct.pack("<III", at, low, high) if wide else struct.pack("<II", at, low)
        return out

    def _struct(self, name: str, told: Mapping[str, Any]) -> bytes:
        fields = told["fields"]
        out = [self._record(name, _KINDS[told["kind"]], len(fields), told["size"], True)]
        for label, field in sorted(fields.items(), key=lambda item: item[1]["offset"]):
            kind, bits, at = field["type"], 0, 8 * field["offset"]
            if kind["kind"] == "bitfield":
                at, bits, kind = at + kind["bit_position"], kind["bit_length"], kind["type"]
            if not 0 <= at < _BITS_LIMIT or not 0 <= bits < 256:
                raise WrongProfile(f"{name}.{label} lies outside every struct")
            shown = "" if field.get("anonymous") else label
            out.append(struct.pack("<III", self._string(shown), self._reference(kind), bits << 24 | at))
        return b"".join(out)

    def _reference(self, told: Mapping[str, Any], depth: int = 0) -> int:
        """The id of the type that is referred to; 0, void, for what the table does not have."""
        if depth > _DEPTH_LIMIT:
            raise WrongProfile("a type is nested too deeply")
        kind = told["kind"]
        if kind == "base":
            return self._ids.get(("base", told["name"]), 0)
        if kind in ("struct", "union", "class"):
            return self._ids.get(("user", told["name"]), 0)
        if kind == "enum":
            return self._ids.get(("enum", told["name"]), 0)
        if kind == "bitfield":
            return self._reference(told["type"], depth + 1)
        if kind == "function":
            return self._made(("function",), lambda: self._record("", btf.FUNC_PROTO, 0, 0))
        inner = self._reference(told["subtype"], depth + 1)
        if kind == "array":
            index = next(iter(self._ids.values()), 0)
            words = struct.pack("<III", inner, index, int(told["count"]))
            return self._made(("array", inner, told["count"]), lambda: self._record("", btf.ARRAY, 0, 0) + words)
        return self._made(("pointer", inner), lambda: self._record("", btf.PTR, 0, inner))

    def _made(self, key: tuple[Any, ...], make: Callable[[], bytes]) -> int:
        if key not in self._ids:
            self._records.append(make())
            self._ids[key] = len(self._records)
        return self._ids[key]
