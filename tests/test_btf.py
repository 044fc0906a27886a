"""Type information, written as pahole writes it, and read back."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi_inside.errors import NoMember, WrongProfile
from vmi_inside.profile import btf
from vmi_inside.profile.btf import Btf
from vmi_inside.profile.ctypes import CType


class Blob:
    """Writes BTF. Every `add` gives the id of the new type; `base` is how many types and string bytes lie before."""

    def __init__(self, base: Btf | None = None) -> None:
        self.strings = b"" if base else b"\0"
        self.types = b""
        self.next_id = base.end_id if base else 1
        self.first_string = base.end_string if base else 0
        if base:
            self.strings = b"\0"

    def string(self, text: str) -> int:
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return self.first_string + len(self.strings) - len(text) - 1

    def add(
        self, kind: int, name: str | int = "", last: int = 0, *words: int, vlen: int = 0, flag: bool = False
    ) -> int:
        at = self.string(name) if isinstance(name, str) else name
        info = kind << 24 | vlen | flag << 31
        self.types += struct.pack(f"<{3 + len(words)}I", at, info, last, *(word & 0xFFFF_FFFF for word in words))
        self.next_id += 1
        return self.next_id - 1

    def integer(self, name: str, size: int, signed: bool = False, bits: int | None = None, at: int = 0) -> int:
        return self.add(btf.INT, name, size, signed << 24 | at << 16 | (size * 8 if bits is None else bits))

    def pointer(self, to: int) -> int:
        return self.add(btf.PTR, "", to)

    def array(self, of: int, count: int) -> int:
        return self.add(btf.ARRAY, "", 0, of, 0, count)

    def struct(self, name: str, size: int, *members: tuple[Any, ...], union: bool = False, flag: bool = False) -> int:
        """Members are name, type, offset in bits and, with `flag`, the width of a bit field."""
        words = []
        for member, of, at, *bits in members:
            words += [self.string(member), of, at | (bits[0] if bits else 0) << 24]
        return self.add(btf.UNION if union else btf.STRUCT, name, size, *words, vlen=len(members), flag=flag)

    def enum(self, name: str, *values: tuple[str, int], signed: bool = False) -> int:
        words = [word for key, value in values for word in (self.string(key), value)]
        return self.add(btf.ENUM, name, 4, *words, vlen=len(values), flag=signed)

    def enum64(self, name: str, *values: tuple[str, int], signed: bool = False) -> int:
        words = [word for key, value in values for word in (self.string(key), value, value >> 32)]
        return self.add(btf.ENUM64, name, 8, *words, vlen=len(values), flag=signed)

    def blob(self, layout: bytes = b"") -> bytes:
        length = 32 if layout else 24
        sizes = (length, 0, len(self.types), len(self.types), len(self.strings))
        header = btf.MAGIC + b"\0" + struct.pack("<5I", *sizes)
        if layout:
            header += struct.pack("<II", len(self.types) + len(self.strings), len(layout))
        return header + self.types + self.strings + layout


def small() -> Blob:
    blob = Blob()
    integer = blob.integer("int", 4, signed=True)
    char = blob.integer("char", 1)
    const = blob.add(btf.CONST, "", integer)
    typedef = blob.add(btf.TYPEDEF, "pid_t", const)
    comm = blob.array(char, 16)
    node = blob.next_id
    blob.struct("list_head", 16, ("next", node + 1, 0), ("prev", node + 1, 64))
    pointer = blob.pointer(node)
    inner = blob.struct("", 8, ("low", integer, 0), ("high", integer, 32), union=False)
    either = blob.struct("", 8, ("both", pointer, 0), ("", inner, 0), union=True)
    blob.struct("task", 64, ("pid", typedef, 0), ("comm", comm, 32), ("tasks", node, 192), ("", either, 320))
    return blob


def member_of(found: CType | None, *paths: str) -> tuple[int, int, int, int]:
    assert found is not None
    one = found.member(*paths)
    return one.offset, one.size, one.bit_offset, one.bit_size


def test_members_have_their_offsets_through_anonymous_structs() -> None:
    task = Btf(small().blob()).struct("task")
    assert task is not None
    assert task.size == 64
    assert list(task.members) == ["pid", "comm", "tasks", "both", "low", "high"]
    assert member_of(task, "pid") == (0, 4, 0, 0)
    assert member_of(task, "comm") == (4, 16, 0, 0)
    assert member_of(task, "comm[3]") == (7, 1, 0, 0)
    assert member_of(task, "tasks.prev") == (32, 8, 0, 0)
    assert member_of(task, "missing", "high") == (44, 4, 0, 0)
    assert task.member("tasks.next").type.target.name == "list_head"
    assert task.member("pid").type.signed
    assert not task.has("comm[16]")
    with pytest.raises(NoMember, match="missing"):
        task.member("missing")


def test_both_styles_of_bit_fields() -> None:
    blob = Blob()
    unsigned = blob.integer("unsigned int", 4)
    old = blob.integer("", 4, bits=3, at=2)
    blob.struct("old", 8, ("a", unsigned, 0), ("b", old, 32))
    blob.struct(
        "new", 12, ("a", unsigned, 0, 5), ("b", unsigned, 5, 27), ("c", unsigned, 62, 6), ("d", unsigned, 64), flag=True
    )
    types = Btf(blob.blob())
    assert member_of(types.struct("old"), "b") == (4, 4, 2, 3)
    assert member_of(types.struct("new"), "a") == (0, 4, 0, 5)
    new = types.struct("new")
    assert new is not None
    assert new.member("a").type is types.type(unsigned)
    assert member_of(types.struct("new"), "b") == (0, 4, 5, 27)
    assert member_of(types.struct("new"), "c") == (7, 2, 6, 6)  # packed, across two units
    assert member_of(types.struct("new"), "d") == (8, 4, 0, 0)


def test_enums_of_both_sizes_and_signs() -> None:
    blob = Blob()
    blob.enum("small", ("A", 1), ("B", -1), signed=True)
    blob.enum("plain", ("C", 0xFFFF_FFFF))
    blob.enum64("wide", ("D", 1 << 40), ("E", -2), signed=True)
    blob.enum("", ("ANONYMOUS_F", 7))
    types = Btf(blob.blob())
    assert types.enum("small") == {"A": 1, "B": -1}
    assert types.enum("plain") == {"C": 0xFFFF_FFFF}
    assert types.enum("wide") == {"D": 1 << 40, "E": -2}
    assert types.enumerator("ANONYMOUS_F") == 7
    assert types.enumerator("D") == 1 << 40
    assert types.enumerator("F") is None
    assert types.enum("D") is None


def test_a_declaration_is_no_definition() -> None:
    blob = Blob()
    known = blob.add(btf.FWD, "file", 0)
    unknown = blob.add(btf.FWD, "opaque", 0)
    pointers = [blob.pointer(known), blob.pointer(unknown)]
    blob.struct("holder", 16, ("file", pointers[0], 0), ("opaque", pointers[1], 64))
    blob.struct("file", 24, ("flags", blob.integer("int", 4), 0))
    types = Btf(blob.blob())
    holder = types.struct("holder")
    assert holder is not None
    assert holder.member("file").type.target.size == 24
    assert holder.member("opaque").type.target.kind == "unknown"
    assert types.struct("opaque") is None


def test_typedefs_of_anonymous_structs_are_structs() -> None:
    blob = Blob()
    counter = blob.struct("", 4, ("counter", blob.integer("int", 4), 0))
    blob.add(btf.TYPEDEF, "atomic_t", blob.add(btf.VOLATILE, "", counter))
    types = Btf(blob.blob())
    assert member_of(types.struct("atomic_t"), "counter") == (0, 4, 0, 0)
    assert types.struct("int") is None
    basic = types.basic("int")
    assert basic is not None
    assert basic.size == 4


def test_strings_may_share_their_ends() -> None:
    blob = Blob()
    at = blob.string("old_inode") + 4
    blob.add(btf.STRUCT, at, 8)
    found = Btf(blob.blob()).struct("inode")
    assert found is not None
    assert found.name == "inode"


def test_a_module_continues_its_kernel() -> None:
    kernel = Btf(small().blob())
    node = next(kernel.ids("list_head", btf.STRUCT))
    blob = Blob(kernel)
    mine = blob.struct("btrfs_inode", 24, ("list", node, 0), ("value", 1, 128))
    blob.add(btf.STRUCT, next(kernel_string(kernel, "task")), 4)  # a name in the kernel's strings
    blob.enum("states", ("MODULE_STATE", 3))
    module = Btf(blob.blob(), kernel)
    assert member_of(module.struct("btrfs_inode"), "list.prev") == (8, 8, 0, 0)
    assert member_of(module.struct("btrfs_inode"), "value") == (16, 4, 0, 0)
    assert module.type(mine).name == "btrfs_inode"
    assert [module.type(one).size for one in module.ids("task", btf.STRUCT)] == [4, 64]  # its own first
    assert module.struct("list_head") is kernel.struct("list_head")
    assert module.enumerator("MODULE_STATE") == 3
    assert kernel.struct("btrfs_inode") is None


def test_a_module_whose_strings_begin_with_a_name() -> None:
    """Its strings go on behind its kernel's: there need be no empty one. Names of its own may stand in the kernel's."""
    base = small()
    base.enum("shared", ("KERNEL_STATE", 1), ("OTHER_STATE", 2))
    kernel = Btf(base.blob())
    blob = Blob(kernel)
    blob.strings = b""
    blob.enum("", ("FIRST_STATE", 4))
    words = (next(kernel_string(kernel, "OTHER_STATE")), 5)
    blob.add(btf.ENUM, "own", 4, *words, vlen=1)
    module = Btf(blob.blob(), kernel)
    assert module.enumerator("FIRST_STATE") == 4
    assert module.enumerator("OTHER_STATE") == 5  # its own before its kernel's
    assert module.enumerator("KERNEL_STATE") == 1
    assert module.enum("own") == {"OTHER_STATE": 5}
    assert module.enum("shared") == kernel.enum("shared") == {"KERNEL_STATE": 1, "OTHER_STATE": 2}
    with pytest.raises(WrongProfile, match="begin and end with NUL"):
        Btf(blob.blob())  # of a kernel there has to be


def kernel_string(types: Btf, name: str) -> Any:
    return (at for at in types._string_places(name))


@pytest.mark.parametrize(
    ("make", "kind", "size", "name"),
    [
        (lambda blob: blob.add(btf.FLOAT, "double", 8), "float", 8, "double"),
        (lambda blob: blob.pointer(0), "pointer", 8, ""),
        (lambda blob: blob.struct("pair", 12), "struct", 12, "pair"),
        (lambda blob: blob.struct("either", 12, union=True), "union", 12, "either"),
        (lambda blob: blob.enum64("wide"), "enum", 8, "wide"),
        (lambda blob: blob.add(btf.FUNC, "f", blob.add(btf.FUNC_PROTO, "", 0)), "function", 0, "f"),
        (lambda blob: blob.add(btf.DATASEC, ".data", 64), "unknown", 0, ".data"),
        (lambda blob: blob.add(btf.FWD, "opaque"), "unknown", 0, "opaque"),
        (lambda blob: blob.add(btf.TYPE_TAG, "user", blob.add(btf.RESTRICT, "", blob.pointer(0))), "pointer", 8, ""),
        (lambda blob: blob.array(blob.array(blob.pointer(0), 3), 4), "array", 96, ""),
        (lambda blob: blob.array(blob.add(btf.TYPEDEF, "t", blob.array(blob.enum("e"), 5)), 2), "array", 40, ""),
        (lambda blob: blob.array(blob.enum64("e"), 2), "array", 16, ""),
        (lambda blob: blob.array(blob.add(btf.FLOAT, "float", 4), 2), "array", 8, ""),
        (lambda blob: blob.array(blob.struct("u", 6, union=True), 2), "array", 12, ""),
        (lambda blob: blob.array(blob.add(btf.FWD, "opaque"), 7), "array", 0, ""),
    ],
)
def test_what_each_kind_is(make: Any, kind: str, size: int, name: str) -> None:
    blob = Blob()
    one = make(blob)
    blob.struct("holder", 128, ("it", one, 0))
    types = Btf(blob.blob())
    found = types.type(one)
    assert (found.kind, found.size, found.name) == (kind, size, name)
    assert types.type(one) is found
    assert member_of(types.struct("holder"), "it") == (0, size, 0, 0)


def test_records_are_what_was_written() -> None:
    kernel = Btf(small().blob())
    blob = Blob(kernel)
    written = [
        (btf.INT, "number", False, 4, (32,)), (btf.PTR, "", False, 1, ()), (btf.ARRAY, "", False, 0, (1, 2, 3)),
        (btf.STRUCT, "s", True, 8, (0, 1, 2, 0, 3, 4)), (btf.UNION, "u", False, 8, (0, 1, 2)),
        (btf.ENUM, "e", True, 4, (0, 7)), (btf.FWD, "f", True, 0, ()), (btf.TYPEDEF, "t", False, 1, ()),
        (btf.FUNC, "g", False, 1, ()), (btf.FUNC_PROTO, "", False, 1, (0, 1, 0, 2)), (btf.VAR, "v", False, 1, (1,)),
        (btf.DATASEC, "d", False, 8, (1, 0, 8)), (btf.FLOAT, "x", False, 8, ()), (btf.DECL_TAG, "y", False, 1, (9,)),
        (btf.TYPE_TAG, "z", False, 1, ()), (btf.ENUM64, "w", False, 8, (0, 1, 2)),
    ]  # fmt: skip
    ids = [
        blob.add(kind, name, last, *words, vlen=len(words) // btf._EACH.get(kind, 1) if kind in btf._EACH else 0,
                 flag=flag)
        for kind, name, flag, last, words in written
    ]  # fmt: skip
    module = Btf(blob.blob(), kernel)
    assert [tuple(module.record(one)) for one in ids] == written
    assert module.enumerators(ids[5]) == [("", 7)]
    for one in range(1, kernel.end_id):
        assert module.record(one) == kernel.record(one)
    for types in (kernel, module):
        with pytest.raises(WrongProfile, match=f"no type {types.end_id}, only {types.end_id - 1}"):
            types.record(types.end_id)
        for one in (0, -1):
            with pytest.raises(WrongProfile, match=f"no type {one}"):
                types.record(one)


@pytest.mark.parametrize("length", [1, 510, 511, 512, 513])
def test_names_are_read_to_a_limit(length: int) -> None:
    blob = Blob()
    one = blob.struct("n" * length, 8)
    types = Btf(blob.blob())
    if length < btf._NAME_LIMIT:
        assert types.type(one).name == "n" * length
    else:
        with pytest.raises(WrongProfile, match="no string at offset 0x1"):
            types.type(one)
    with pytest.raises(WrongProfile, match="no string"):
        types.string(types.end_string)


def test_a_struct_of_too_many_members_is_refused() -> None:
    blob = Blob()
    number = blob.integer("int", 4)
    part = blob.struct("", 8, *[("", number, 0)] * 0x8000)
    blob.struct("fits", 8, ("", part, 0), ("last", number, 32))
    blob.struct("s", 8, ("", part, 0), ("", part, 0), ("last", number, 32))
    types = Btf(blob.blob())
    assert member_of(types.struct("fits"), "last") == (4, 4, 0, 0)
    found = types.struct("s")
    assert found is not None
    with pytest.raises(WrongProfile, match="too many members"):
        found.member("last")


@pytest.mark.parametrize(
    ("changed", "believed"),
    [
        ({}, True), ({"length": 23}, False), ({"types_size": 0}, False), ({"types_at": 2}, False),
        ({"types_size": 14}, False), ({"strings_at": 15}, False), ({"strings_at": 17}, True),
        ({"strings_size": 0}, False), ({"strings_size": (64 << 20) - 40}, True),
        ({"strings_size": (64 << 20) - 39}, False), ({"types_at": 4}, False), ({"types_at": 4, "strings_at": 20}, True),
    ],
)  # fmt: skip
def test_headers(changed: dict[str, int], believed: bool) -> None:
    told = {"length": 24, "types_at": 0, "types_size": 16, "strings_at": 16, "strings_size": 9, **changed}
    header = btf.MAGIC + b"\0" + struct.pack("<5I", *told.values())
    total = told["length"] + told["strings_at"] + told["strings_size"]
    assert btf.size(header) == (total if believed else None)
    assert btf.size(memoryview(header + b"more")) == (total if believed else None)


def test_strings_begin_and_end_with_nul() -> None:
    raw = small().blob()
    at = 24 + struct.unpack_from("<I", raw, 16)[0]
    for place in (at, len(raw) - 1):
        damaged = bytearray(raw)
        damaged[place] = 65
        with pytest.raises(WrongProfile, match="begin and end with NUL"):
            Btf(bytes(damaged))


def test_variables_have_types() -> None:
    blob = Blob()
    blob.add(btf.VAR, "runqueues", blob.struct("rq", 40), 1)
    found = Btf(blob.blob()).variable("runqueues")
    assert found is not None
    assert found.name == "rq"


def test_newer_kinds_that_describe_themselves_are_stepped_over() -> None:
    blob = Blob()
    blob.add(20, "loc", 0, 1, 2, 3, 4, 5, vlen=2)
    blob.struct("behind", 8)
    layout = bytes(4) * 20 + bytes((4, 8, 0, 0))  # of kind 20: four bytes once, eight for each part
    found = Btf(blob.blob(layout)).struct("behind")
    assert found is not None
    assert found.size == 8
    with pytest.raises(WrongProfile, match="no known kind"):
        Btf(blob.blob())


def test_what_was_kept_is_used_without_walking(monkeypatch: pytest.MonkeyPatch) -> None:
    types = Btf(small().blob())
    monkeypatch.setattr(btf, "_walk", None)
    again = Btf.from_arrays(types.arrays())
    assert member_of(again.struct("task"), "high") == (44, 4, 0, 0)
    damaged = dict(types.arrays())
    del damaged["btf.order"]
    with pytest.raises(WrongProfile):
        Btf.from_arrays(damaged)


def loop_of_typedefs(blob: Blob) -> str:
    blob.add(btf.TYPEDEF, "again", blob.next_id)
    blob.struct("s", 8, ("m", 1, 0))
    return "m"


def struct_that_holds_itself(blob: Blob) -> str:
    blob.struct("s", 8, ("", blob.next_id, 0))
    return "m"


def tower_of_structs(blob: Blob) -> str:
    inner = blob.struct("", 4, ("x", 0, 0))
    for _ in range(60):
        inner = blob.struct("", 8, ("", inner, 0), ("", inner, 32))
    blob.struct("s", 8, ("", inner, 0))
    return "m"


def array_of_itself(blob: Blob) -> str:
    blob.array(blob.next_id, 2)
    blob.struct("s", 8, ("m", 1, 0))
    return "m"


def type_out_of_range(blob: Blob) -> str:
    blob.struct("s", 8, ("m", 99, 0))
    return "m"


@pytest.mark.parametrize(
    "make", [loop_of_typedefs, struct_that_holds_itself, tower_of_structs, array_of_itself, type_out_of_range]
)
def test_hostile_types_end_in_an_error(make: Any) -> None:
    blob = Blob()
    name = make(blob)
    found = Btf(blob.blob()).struct("s")
    assert found is not None
    with pytest.raises(WrongProfile):
        found.member(name)


def test_a_header_followed_by_zeros_is_no_type_information() -> None:
    raw = small().blob()
    with pytest.raises(WrongProfile, match="no known kind"):
        Btf(raw[:24] + bytes(len(raw) - 24))
    assert btf.size(raw[:24]) == len(raw)
    assert btf.size(raw[:23]) is None
    assert btf.size(b"\0" * 24) is None


@pytest.mark.parametrize("keep", [0, 10, 24, 40, -1])
def test_what_is_cut_off_is_told(keep: int) -> None:
    with pytest.raises(WrongProfile):
        Btf(small().blob()[:keep])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_damage_is_an_error_or_harmless(at: int, what: bytes) -> None:
    raw = bytearray(small().blob())
    at %= len(raw) - len(what)
    raw[at : at + len(what)] = what
    try:
        types = Btf(np.frombuffer(bytes(raw), np.uint8))
        for one in range(types.end_id):
            found = types.type(one)
            dict(found.members)
            assert found.target.kind
        types.struct("task")
        types.enumerator("A")
    except WrongProfile:
        pass
