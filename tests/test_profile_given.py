"""Files that claim to be profiles: damaged ones, lies, and forms that nobody knows, are refused in words."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from vmi_inside.errors import WrongProfile
from vmi_inside.profile.btf import Btf
from vmi_inside.profile.encode import encoded
from vmi_inside.profile.given import load

VOID = {"kind": "base", "name": "void"}


def table(**more: Any) -> dict[str, Any]:
    return {
        "base_types": {"int": {"size": 4, "signed": True, "kind": "int"}, "void": {"size": 0, "kind": "void"}},
        "user_types": {
            "node": {
                "kind": "struct", "size": 24,
                "fields": {
                    "next": {"offset": 0, "type": {"kind": "pointer", "subtype": {"kind": "struct", "name": "node"}}},
                    "low": {
                        "offset": 8,
                        "type": {"kind": "bitfield", "bit_position": 3, "bit_length": 5,
                                 "type": {"kind": "base", "name": "int"}},
                    },
                    "many": {
                        "offset": 12,
                        "type": {"kind": "array", "count": 3, "subtype": {"kind": "base", "name": "int"}},
                    },
                },
            }
        },
        "enums": {"color": {"size": 4, "base": "int", "constants": {"RED": -1, "BLUE": 2}}},
        "symbols": {"_text": {"address": 0xFFFFFFFF81000000}, "it": {"address": 0xFFFFFFFF81000100, "type": VOID}},
        **more,
    }  # fmt: skip


def test_types_come_back_as_they_were() -> None:
    types = Btf(encoded(table()))
    node = types.struct("node")
    assert node is not None
    assert (node.size, node.member("next").type.target) == (24, node)
    low = node.member("low")
    assert (low.offset, low.bit_offset, low.bit_size) == (8, 3, 5)
    assert (node.member("many").size, node.member("many[2]").offset) == (12, 20)
    assert types.enum("color") == {"RED": -1, "BLUE": 2}


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress], ids=["plain", "gz", "xz"])
def test_packed_and_plain(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(pack(json.dumps(table()).encode()))
    given = load(path)
    assert given.symbols is not None
    assert int(given.symbols.values[given.symbols.find("it")]) == 0x100  # type: ignore[index]


DEEP: Any = VOID
for _ in range(200):
    DEEP = {"kind": "pointer", "subtype": DEEP}
LIES = {
    "nothing": b"",
    "text": b"hello\n",
    "cut xz": lzma.compress(b"{}" * 1000)[:40] + b"junk" * 20,
    "cut gz": gzip.compress(b"{}" * 1000)[:12] + b"junk",
    "cut json": b'{"user_types": {',
    "nested json": b'{"a":' * 100_000,
    "other json": b'{"a": 1}',
    "short elf": b"\x7fELF" + bytes(8),
    "elf without sections": b"\x7fELF" + bytes(100),
    "short btf": b"\x9f\xeb\x01\0" + bytes(4),
    "lists": json.dumps(table(user_types={"x": []})).encode(),
    "no kind": json.dumps(table(user_types={"x": {"size": 1, "fields": {}}})).encode(),
    "far member": json.dumps(
        table(user_types={"x": {"kind": "struct", "size": 1, "fields": {"y": {"offset": 1 << 40, "type": VOID}}}})
    ).encode(),
    "negative size": json.dumps(table(user_types={"x": {"kind": "struct", "size": -1, "fields": {}}})).encode(),
    "deep": json.dumps(
        table(user_types={"x": {"kind": "struct", "size": 1, "fields": {"y": {"offset": 0, "type": DEEP}}}})
    ).encode(),
    "no address": json.dumps(table(symbols={"x": {}})).encode(),
    "rekall": b'{"$STRUCTS": {"x": 1}}',
    "rekall member without a type": b'{"$STRUCTS": {"x": [8, {"y": [0]}]}}',
    "rekall type of no words": b'{"$STRUCTS": {"x": [8, {"y": [0, []]}]}}',
    "elf with far sections": b"\x7fELF".ljust(0x28, b"\0") + b"\xff" * 24,
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(tmp_path: Path, lie: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(LIES[lie])
    with pytest.raises(WrongProfile):
        load(path)


def test_names_of_a_map_need_be_no_words(tmp_path: Path) -> None:
    path = tmp_path / "System.map"
    path.write_bytes(b"ffffffff81000000 T _text\nffffffff81000010 t a\x95\xff\n")
    assert load(path).symbols is not None


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WrongProfile, match="No such file"):
        load(tmp_path / "none")
