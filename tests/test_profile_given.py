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
from vmi_inside.profile.given import Given, load
from vmi_inside.profile.symbols import Symbols

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


def build(size: int = 64, member: str = "pid", offset: int = 8) -> Btf:
    """Types of a kernel whose task_struct is of that size, with a member there."""
    fields = {member: {"offset": offset, "type": {"kind": "base", "name": "int"}}}
    structs = {"task_struct": {"kind": "struct", "size": size, "fields": fields}}
    return Btf(encoded({**table(), "user_types": {**table()["user_types"], **structs}}))


def symbols(tmp_path: Path, schedule: int = 0x5000) -> Symbols:
    path = tmp_path / "System.map"
    path.write_text(f"ffffffff81000000 T _text\n{0xFFFFFFFF81000000 + schedule:x} T schedule\n")
    found = load(path).symbols
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("types", "schedule", "told"),
    [
        (build(), 0x5000, ""),
        (None, None, ""),
        (build(member="another"), 0x5000, ""),  # what only one of them has tells nothing
        (build(), 0x6000, "its symbol schedule is at _text+0x6000, the guest's at _text+0x5000"),
        (build(72), None, "its struct task_struct has 72 bytes, the guest's 64"),
        (build(offset=12), None, "its task_struct.pid is at 12, the guest's at 8"),
    ],
)
def test_a_profile_of_another_build_is_told_from_the_guests(
    tmp_path: Path, types: Btf | None, schedule: int | None, told: str
) -> None:
    mine = None if schedule is None else symbols(tmp_path, schedule)
    given = Given("it", types, mine)
    assert given.differs(symbols(tmp_path), build()) == told
    if types is not None:
        assert given.differs(symbols(tmp_path), None) == (told if "symbol" in told else "")


def test_two_files_are_one_profile(tmp_path: Path) -> None:
    symbols(tmp_path)
    (tmp_path / "types").write_bytes(bytes(build().blob))
    for files in ("System.map,{0}/types", "types,{0}/System.map"):
        found = load(f"{tmp_path}/{files.format(tmp_path)}")
        assert found.types is not None
        assert found.types.struct("task_struct") is not None
        assert found.symbols is not None
        assert found.symbols.find("schedule") is not None
        assert found.path == f"{tmp_path}/{files.format(tmp_path)}".replace(",", ", ")
    with pytest.raises(WrongProfile, match="none: No such file"):
        load(f"{tmp_path}/types,{tmp_path}/none")


def test_names_of_a_map_need_be_no_words(tmp_path: Path) -> None:
    path = tmp_path / "System.map"
    path.write_bytes(b"ffffffff81000000 T _text\nffffffff81000010 t a\x95\xff\n")
    assert load(path).symbols is not None


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WrongProfile, match="No such file"):
        load(tmp_path / "none")
