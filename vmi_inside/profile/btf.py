"""C types from BTF, the type information that a kernel carries about itself.

Knows the format, of a whole kernel and of one module (split BTF, which continues its base). Where in memory it lies is
told by `learn`.

Source: include/uapi/linux/btf.h, Documentation/bpf/btf.rst (kinds up to ENUM64, 6.0; the layout section, 7.1).
Guests are hostile: what does not hold together raises `WrongProfile`, nothing is followed without a limit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np

from vmi_inside.errors import WrongProfile
from vmi_inside.profile.arrays import Arrays, take
from vmi_inside.profile.ctypes import VOID, CType, Kind, Member
from vmi_inside.profile.names import BUCKETS, ROOM, Index
from vmi_inside.types import U8, U32

MAGIC: Final = b"\x9f\xeb\x01"  # and the version; flags follow
HEADER_SIZE: Final = 24

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO = range(1, 14)
VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(14, 20)

_KINDS: Final = 32
#: What follows a type's three words, in words: once, and for each of its `vlen` parts.
_ONCE: Final = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
_EACH: Final = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}
_LAST_KIND: Final = ENUM64

_ALIASES: Final = frozenset((TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG, DECL_TAG, VAR))
_INDEXED: Final = (STRUCT, UNION, ENUM, TYPEDEF, ENUM64, INT, FLOAT, VAR)
_POINTER_SIZE: Final = 8

_SIZE_LIMIT: Final = 64 << 20  # of a blob; a kernel's is 4 to 8 MB
_HOP_LIMIT: Final = 64  # typedefs and qualifiers of one type, nested anonymous structs, arrays of arrays
_MEMBER_LIMIT: Final = 1 << 16  # of one struct, flattened
_NAME_LIMIT: Final = 512
_LOST: Final = 1 << 30  # words; farther than any type can be


class Record(NamedTuple):
    """One type as it is written: `last` is its size or the type that it refers to, `words` what follows."""

    kind: int
    name: str
    flag: bool
    last: int
    words: tuple[int, ...]


class Btf:
    """One BTF blob. A module's is given its kernel's as `base`. Implements `ctypes.Types`.

    Type ids are those of the format: 1 is the first, a module's go on behind its base's. Raises `WrongProfile` when
    the blob is damaged, here or as late as it is noticed.
    """

    def __init__(
        self,
        blob: U8 | bytes | memoryview,
        base: Btf | None = None,
        *,
        offsets: U32 | None = None,
        index: Index | None = None,
    ) -> None:
        self.blob: U8 = np.frombuffer(blob, np.uint8) if not isinstance(blob, np.ndarray) else blob
        self.base = base
        self.raw = self.blob.data
        (types_at, types_size), (strings_at, strings_size), layout = _sections(self.blob, base is not None)
        self._types = self.raw[types_at : types_at + types_size]
        self._strings = self.raw[strings_at : strings_at + strings_size]
        self._first_id: int = base.end_id if base else 1
        self._first_string: int = base.end_string if base else 0
        self.offsets: U32 = _walk(self._types, layout) if offsets is None else offsets
        self.end_id: int = self._first_id + len(self.offsets)
        self.end_string: int = self._first_string + strings_size
        self.index = self._index() if index is None else index
        self._known: dict[int, CType] = {}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Btf:
        """From what `arrays` gave, without copying or walking. Raises `WrongProfile` when they do not fit together."""
        order, buckets = take(arrays, "btf.order", np.uint32), take(arrays, "btf.buckets", np.uint32)
        if len(buckets) != BUCKETS + 1:
            raise WrongProfile("the index of types is damaged")
        offsets = take(arrays, "btf.offsets", np.uint32)
        return cls(take(arrays, "btf", np.uint8), offsets=offsets, index=Index(order, buckets))

    def arrays(self) -> Arrays:
        """The arrays that `from_arrays` takes; of a base only."""
        index = {"btf.order": self.index.order, "btf.buckets": self.index.buckets}
        return {"btf": self.blob, "btf.offsets": self.offsets, **index}

    def __len__(self) -> int:
        return len(self.offsets)

    # -- by name ----------------------------------------------------------------------------------------------------

    def ids(self, name: str, *kinds: int) -> Iterator[int]:
        """The ids of the types of that name and one of `kinds`; of a module its own before its base's.

        Finds structs, unions, enums, typedefs, integers, floats and variables.
        """
        for one in self.index.candidates(name.encode()):
            name_at, info, _ = self._record(one)
            if _kind(info) in kinds and self.string(name_at) == name:
                yield one
        if self.base:
            yield from self.base.ids(name, *kinds)

    def struct(self, name: str) -> CType | None:
        """See `ctypes.Types`. Finds a typedef of a struct by its name as well: `atomic_t`."""
        for one in self.ids(name, STRUCT, UNION):
            return self.type(one)
        for one in self.ids(name, TYPEDEF):
            found = self.type(one)
            if found.kind in ("struct", "union"):
                return found
        return None

    def enum(self, name: str) -> Mapping[str, int] | None:
        """See `ctypes.Types`."""
        for one in self.ids(name, ENUM, ENUM64):
            return dict(self._enumerators(one))
        return None

    def enumerator(self, name: str) -> int | None:
        """See `ctypes.Types`. Looks through all types: about a millisecond."""
        for at in self._string_places(name):
            words = np.frombuffer(self._types, "<u4")
            hits = (np.flatnonzero(words == at) * 4).astype(np.uint32)
            rows = np.searchsorted(self.offsets, hits, "right") - 1
            for row in rows.tolist():
                one = self._first_id + row
                if _kind(self._record(one)[1]) in (ENUM, ENUM64):
                    for candidate, value in self._enumerators(one):
                        if candidate == name:
                            return value
        return self.base.enumerator(name) if self.base else None

    def basic(self, name: str) -> CType | None:
        """The integer, float or typedef of that name, or None: `unsigned int`, `u64`, `pid_t`."""
        for one in self.ids(name, INT, FLOAT, TYPEDEF):
            return self.type(one)
        return None

    def variable(self, name: str) -> CType | None:
        """The type of the global variable of that name, or None. Most kernels tell it of per-CPU ones only."""
        for one in self.ids(name, VAR):
            return self.type(one)
        return None

    def _string_places(self, name: str) -> Iterator[int]:
        """Where in the strings the name may stand: first of its own, then as the end of a longer one."""
        raw = name.encode() + b"\0"
        text = bytes(self._strings)
        at = text.find(raw)
        while at >= 0:
            yield self._first_string + at
            at = text.find(raw, at + 1)
        if self.base:
            yield from self.base._string_places(name)

    # -- by id ------------------------------------------------------------------------------------------------------

    def string(self, at: int) -> str:
        """The string at an offset. Raises `WrongProfile`."""
        if at < self._first_string and self.base:
            return self.base.string(at)
        at -= self._first_string
        piece = bytes(self._strings[at : at + _NAME_LIMIT]) if at >= 0 else b""
        name, nul, _ = piece.partition(b"\0")
        if not nul:
            raise WrongProfile(f"the type information has no string at offset {at:#x}")
        return name.decode("utf-8", "backslashreplace")

    def type(self, one: int) -> CType:
        """The type of that id, typedefs and qualifiers removed. 0 is void. Raises `WrongProfile`."""
        if one < self._first_id and self.base:
            return self.base.type(one)
        found = self._known.get(one)
        if found is None:
            found = self._known[one] = self._make(one)
        return found

    def record(self, one: int) -> Record:
        """A type as the format has it, typedefs and qualifiers standing for themselves. Raises `WrongProfile`."""
        name_at, info, last = self._record(one)
        kind, count = _kind(info), info & 0xFFFF
        words = self._unpack(f"<{_ONCE.get(kind, 0) + count * _EACH.get(kind, 0)}I", one, 12)
        return Record(kind, self.string(name_at), bool(info >> 31), last, words)

    def enumerators(self, one: int) -> list[tuple[str, int]]:
        """Names and values of the enum of that id."""
        return list(self._enumerators(one))

    def _record(self, one: int) -> tuple[int, int, int]:
        """A type's three words: where its name stands, kind and count, its size or the type that it refers to."""
        if one < self._first_id and self.base:
            return self.base._record(one)
        if not 0 < one < self.end_id:
            raise WrongProfile(f"the type information has no type {one}, only {self.end_id - 1}")
        return self._unpack("<III", one, 0)  # type: ignore[return-value]

    def _unpack(self, form: str, one: int, at: int) -> tuple[int, ...]:
        if one < self._first_id and self.base:
            return self.base._unpack(form, one, at)
        try:
            return struct.unpack_from(form, self._types, int(self.offsets[one - self._first_id]) + at)
        except struct.error:
            raise WrongProfile(f"the type information ends inside type {one}") from None

    def _resolve(self, one: int) -> tuple[int, int, int, int]:
        """Follow typedefs and qualifiers: the id and the record of what stands behind them; id 0 is void."""
        for _ in range(_HOP_LIMIT):
            if one == 0:
                return 0, 0, 0, 0
            name_at, info, last = self._record(one)
            if _kind(info) not in _ALIASES:
                return one, name_at, info, last
            one = last
        raise WrongProfile(f"type {one} refers to itself")

    def _make(self, one: int) -> CType:
        one, name_at, info, last = self._resolve(one)
        if one == 0:
            return VOID
        if one in self._known:
            return self._known[one]
        kind = _kind(info)
        name = self.string(name_at)
        if kind in (STRUCT, UNION):
            return CType(_STRUCTS[kind], name, last, members=lambda: self._members(one))
        if kind == PTR:
            return CType("pointer", size=_POINTER_SIZE, target=lambda: self.type(last))
        if kind == ARRAY:
            element, _, count = self._unpack("<III", one, 12)
            return CType("array", size=count * self._size(element), count=count, target=lambda: self.type(element))
        if kind == INT:
            (encoding,) = self._unpack("<I", one, 12)
            return CType("int", name, last, signed=bool(encoding >> 24 & 1))
        if kind in (ENUM, ENUM64):
            return CType("enum", name, last, signed=bool(info >> 31))
        if kind == FLOAT:
            return CType("float", name, last)
        if kind == FWD:
            # Declared here, defined in another unit: most have their definition elsewhere in the same kernel.
            return next((self.type(i) for i in self.ids(name, UNION if info >> 31 else STRUCT)), CType("unknown", name))
        if kind in (FUNC, FUNC_PROTO):
            return CType("function", name)
        return CType("unknown", name)

    def _size(self, one: int) -> int:
        """The size in bytes, without making a type: arrays of arrays may be deep."""
        count = 1
        for _ in range(_HOP_LIMIT):
            one, _, info, last = self._resolve(one)
            kind = _kind(info)
            if kind == ARRAY:
                one, _, many = self._unpack("<III", one, 12)
                count *= many
                continue
            if kind == PTR:
                return count * _POINTER_SIZE
            return count * last if kind in (INT, STRUCT, UNION, ENUM, ENUM64, FLOAT) else 0
        raise WrongProfile(f"type {one} is an array of itself")

    def _members(self, one: int) -> Mapping[str, Member]:
        found: dict[str, tuple[int, int, int]] = {}
        work = [(one, 0, 0)]  # structs still to be flattened: id, offset in bits, depth
        parts = 0
        while work:
            one, base, depth = work.pop()
            _, info, _ = self._record(one)
            anonymous = []
            count = info & 0xFFFF
            parts += count
            if depth > _HOP_LIMIT or parts > _MEMBER_LIMIT:
                raise WrongProfile(f"type {one} has too many members, or holds itself")
            fields = iter(self._unpack(f"<{3 * count}I", one, 12))
            for name_at, of, where in zip(fields, fields, fields, strict=True):
                bits = where >> 24 if info >> 31 else 0
                at = base + (where & 0xFFFFFF if info >> 31 else where)
                if name_at:
                    found.setdefault(self.string(name_at), (of, at, bits))
                    continue
                inner, _, inside, _ = self._resolve(of)
                if _kind(inside) in (STRUCT, UNION):
                    anonymous.append((inner, at, depth + 1))
            work += reversed(anonymous)
        return _Members(self, dict(sorted(found.items(), key=lambda item: item[1][1])))

    def _member(self, name: str, of: int, at: int, bits: int) -> Member:
        ctype = self.type(of)
        if not bits and ctype.kind == "int":
            # The older style: a bit field has an integer type of its own, with a width and an offset.
            one, _, _, _ = self._resolve(of)
            (encoding,) = self._unpack("<I", one, 12)
            if encoding & 0xFF != ctype.size * 8:
                at += encoding >> 16 & 0xFF
                bits = encoding & 0xFF
        if not bits:
            return Member(name, at // 8, ctype.size, ctype)
        size = ctype.size or 1
        offset, bit = at // (8 * size) * size, at % (8 * size)
        if bit + bits > 8 * size:  # packed, across two units
            offset, bit = at // 8, at % 8
            size = (bit + bits + 7) // 8
        return Member(name, offset, size, ctype, bit, bits)

    def _enumerators(self, one: int) -> Iterator[tuple[str, int]]:
        if one < self._first_id and self.base:
            yield from self.base._enumerators(one)
            return
        _, info, _ = self._record(one)
        count, signed = info & 0xFFFF, info >> 31
        if _kind(info) == ENUM64:
            fields = iter(self._unpack(f"<{3 * count}I", one, 12))
            for name_at, low, high in zip(fields, fields, fields, strict=True):
                value = low | high << 32
                yield self.string(name_at), value - (1 << 64) if signed and high >> 31 else value
        else:
            fields = iter(self._unpack(f"<{2 * count}I", one, 12))
            for name_at, value in zip(fields, fields, strict=True):
                yield self.string(name_at), value - (1 << 32) if signed and value >> 31 else value

    def _index(self) -> Index:
        """Index the names of what is asked for by name, most of all structs: a tenth of all types."""
        words = np.frombuffer(self._types, "<u4")
        at = self.offsets // 4
        name = words[at].astype(np.int64) - self._first_string
        kind = words[at + 1] >> 24 & 31
        rows = np.flatnonzero(np.isin(kind, _INDEXED) & (words[at] != 0) & (name >= 0))
        begin = name[rows]
        text = np.append(np.frombuffer(self._strings, np.uint8), np.zeros(ROOM, np.uint8))
        ends = np.flatnonzero(text == 0)
        inside = begin < len(self._strings)
        rows, begin = rows[inside], begin[inside]
        length = ends[np.searchsorted(ends, begin)] - begin
        # A module's type may have its name in its base's strings: those few are indexed one by one.
        if self.base:
            borrowed = np.flatnonzero(np.isin(kind, _INDEXED) & (words[at] != 0) & (name < 0)).tolist()
            names = [self.base.string(int(words[at[row]])).encode() for row in borrowed]
            begin = np.append(begin, len(text) + np.cumsum([0, *map(len, names)])[:-1]).astype(np.int64)
            length = np.append(length, [len(one) for one in names]).astype(np.int64)
            rows = np.append(rows, borrowed).astype(np.int64)
            text = np.concatenate((text, np.frombuffer(b"".join(names), np.uint8), np.zeros(ROOM, np.uint8)))
        return Index.of(text, begin, length, rows + self._first_id)


class _Members(Mapping[str, Member]):
    """A struct's members by name, each made when first asked for: of the 250 of a task few ever are."""

    def __init__(self, types: Btf, raw: dict[str, tuple[int, int, int]]) -> None:
        self._types = types
        self._raw = raw  # the type's id, the offset in bits, a bit field's width
        self._made: dict[str, Member] = {}

    def __getitem__(self, name: str) -> Member:
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = self._types._member(name, *self._raw[name])
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def __contains__(self, name: object) -> bool:
        return name in self._raw


_STRUCTS: Final[Mapping[int, Kind]] = {STRUCT: "struct", UNION: "union"}


def _kind(info: int) -> int:
    return info >> 24 & 31


def size(header: bytes | memoryview) -> int | None:
    """How long the blob is that begins with this header (24 bytes), or None when it is no BTF header."""
    if len(header) < HEADER_SIZE or bytes(header[:3]) != MAGIC:
        return None
    length, types_at, types_size, strings_at, strings_size = struct.unpack_from("<IIIII", header, 4)
    if length < HEADER_SIZE or not types_size or types_at % 4 or types_size % 4 or strings_at < types_at + types_size:
        return None
    total: int = length + strings_at + strings_size
    return total if strings_size and total <= _SIZE_LIMIT else None


def _sections(blob: U8, split: bool) -> tuple[tuple[int, int], tuple[int, int], bytes]:
    """Where the types and the strings lie, each an offset and a size, and the layout of the kinds, if there is one."""
    header = blob[:32].tobytes()
    if size(header) is None:
        raise WrongProfile("this is no type information (BTF): the header is not right")
    length, types_at, types_size, strings_at, strings_size = struct.unpack_from("<IIIII", header, 4)
    layout = b""
    if length >= 32 and len(header) == 32:
        at, much = struct.unpack_from("<II", header, 24)
        layout = blob[length + at : length + at + min(much, 4 * _KINDS)].tobytes()
    if length + strings_at + strings_size > len(blob):
        raise WrongProfile(f"the type information (BTF) is cut off: {len(blob)} bytes of it are there")
    # The first string is the empty one; a module's go on behind its base's, and need not have another.
    if (blob[length + strings_at] and not split) or blob[length + strings_at + strings_size - 1]:
        raise WrongProfile("the type information (BTF) is damaged: its strings do not begin and end with NUL")
    return (length + types_at, types_size), (length + strings_at, strings_size), layout


def _walk(types: memoryview, layout: bytes) -> U32:
    """Where each type's record starts, in bytes: (n,) uint32. About 0.1 µs a type.

    How long a record would be is computed for every word at once; what is left is to hop from one to the next.
    """
    once, each = bytearray(_KINDS), bytearray(_KINDS)
    for kind in range(1, _KINDS):
        once[kind] = 3 + _ONCE.get(kind, 0)
        each[kind] = _EACH.get(kind, 0)
    known = _LAST_KIND
    # Kinds that are newer than this code describe themselves: bytes once, bytes for each part, flags.
    for kind in range(_LAST_KIND + 1, len(layout) // 4):
        once[kind], each[kind] = 3 + layout[4 * kind] // 4, layout[4 * kind + 1] // 4
        known = kind
    once[known + 1 :] = bytes(_KINDS - 1 - known)
    once[0] = 0
    # The kind is the highest byte of a record's second word, but for a flag and two spare bits.
    words = np.frombuffer(types, "<u4")
    kinds = bytes(types[3::4])
    step = np.frombuffer(kinds.translate(bytes(each) * 8), np.uint8).astype(np.uint32)
    step *= np.frombuffer(types, "<u2")[::2]
    fixed = np.frombuffer(kinds.translate(bytes(once) * 8), np.uint8)
    step += fixed
    step[fixed == 0] = _LOST
    hop = step[1:].data
    end = len(words)
    starts: list[int] = []
    found = starts.append
    at = 0
    while at < end - 2:
        found(at)
        at += hop[at]
    if at >= _LOST:
        raise WrongProfile(f"the type information (BTF) is damaged: type {len(starts)} is of no known kind")
    if at != end:
        raise WrongProfile("the type information (BTF) is damaged: its last type is cut off")
    return np.array(starts, np.uint32) * np.uint32(4)
