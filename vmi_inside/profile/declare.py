"""Types as C would declare them, with offsets and sizes, as pahole prints them.

Knows C's declarators: pointers to functions, arrays of pointers, qualifiers, bit fields, structs without a name. Types
come from `btf`, with their typedefs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vmi_inside.errors import NoMember, WrongProfile
from vmi_inside.profile import btf
from vmi_inside.profile.btf import Btf

_TAGS: Final = {btf.STRUCT: "struct", btf.UNION: "union", btf.ENUM: "enum", btf.ENUM64: "enum"}
_QUALIFIERS: Final = {btf.CONST: "const", btf.VOLATILE: "volatile", btf.RESTRICT: "restrict"}
_HOP_LIMIT: Final = 64
_NEST_LIMIT: Final = 16  # structs in structs that are printed
_LINE_LIMIT: Final = 1 << 16
_COMMENT_AT: Final = 56
_INDENT: Final = 4


def declared(types: Btf, one: int, name: str = "") -> str:
    """How C declares `name` to be of the type of that id; without a name, the type itself. Raises `WrongProfile`."""
    return _declared(types, one, name, 0)


def printed(types: Btf, name: str) -> Iterator[str]:
    """The lines of a struct, union or enum of that name, or of what a typedef of that name stands for.

    Each member has its offset and size in bytes behind it, a bit field its first bit. Raises `NoMember` and
    `WrongProfile`.
    """
    bare = name.removeprefix("struct ").removeprefix("union ").removeprefix("enum ").strip()
    found = next(types.ids(bare, *_TAGS), None) or next(types.ids(bare, btf.TYPEDEF), None)
    if found is None:
        raise NoMember(name)
    record = types.record(found)
    if record.kind == btf.TYPEDEF:
        inner = _behind(types, found)
        yield f"typedef {declared(types, record.last, bare)};"
        if inner and types.record(inner).kind in _TAGS and not types.record(inner).name:
            yield from _body(types, inner, f"{bare}: ", 0, 0, [0])
        return
    yield from _body(types, found, "", 0, 0, [0])


def _behind(types: Btf, one: int) -> int:
    """The id of what stands behind typedefs and qualifiers."""
    for _ in range(_HOP_LIMIT):
        if one == 0:
            return 0
        record = types.record(one)
        if record.kind not in (btf.TYPEDEF, btf.TYPE_TAG, *_QUALIFIERS):
            return one
        one = record.last
    raise WrongProfile(f"type {one} refers to itself")


def _declared(types: Btf, one: int, text: str, depth: int) -> str:
    if depth > _HOP_LIMIT:
        raise WrongProfile(f"type {one} is nested too deeply")
    waiting: list[str] = []  # qualifiers of what comes next
    for _ in range(_HOP_LIMIT):
        record = types.record(one) if one else None
        kind = record.kind if record else 0
        if record is None:
            return _joined(waiting, "void", text)
        if kind in _QUALIFIERS:
            waiting.append(_QUALIFIERS[kind])
        elif kind == btf.PTR:
            qualified = f"*{' '.join(waiting)} {text}" if waiting else f"*{text}"
            waiting = []
            inner = types.record(record.last).kind if record.last else 0
            text = f"({qualified.rstrip()})" if inner in (btf.ARRAY, btf.FUNC_PROTO) else qualified
        elif kind == btf.ARRAY:
            text = f"{text}[{record.words[2]}]"
            one = record.words[0]
            continue
        elif kind == btf.FUNC_PROTO:
            text = f"{text}({_parameters(types, record, depth)})"
        elif kind not in (btf.TYPE_TAG, btf.FUNC, btf.VAR):
            return _joined(waiting, _named(record), text)
        one = record.last
    raise WrongProfile(f"type {one} refers to itself")


def _parameters(types: Btf, record: btf.Record, depth: int) -> str:
    words = iter(record.words)
    told = [
        _declared(types, of, types.string(name_at), depth + 1) if of or name_at else "..."
        for name_at, of in zip(words, words, strict=True)
    ]
    return ", ".join(told) or "void"


def _named(record: btf.Record) -> str:
    tag = _TAGS.get(record.kind) or (("union" if record.flag else "struct") if record.kind == btf.FWD else "")
    return f"{tag} {record.name or '{...}'}" if tag else record.name


def _joined(qualifiers: list[str], base: str, text: str) -> str:
    return " ".join(part for part in (*qualifiers, base, text) if part)


def _body(types: Btf, one: int, name: str, at: int, depth: int, lines: list[int]) -> Iterator[str]:
    """A struct with its members at `at` bits from where the printing began; `name` is what it is called there."""
    record = types.record(one)
    lead = " " * (_INDENT * depth)
    if record.kind in (btf.ENUM, btf.ENUM64):
        yield f"{lead}{name}{_joined([], _TAGS[record.kind], record.name)} {{"
        for label, value in types.enumerators(one):
            yield f"{lead}{' ' * _INDENT}{label} = {value},"
        yield f"{lead}}};"
        return
    yield f"{lead}{_joined([], _TAGS[record.kind], record.name if not depth else '')} {{"
    words = iter(record.words)
    end = 0
    for name_at, of, where in zip(words, words, words, strict=True):
        lines[0] += 1
        if lines[0] > _LINE_LIMIT:
            raise WrongProfile(f"type {one} has too many members, or holds itself")
        bits, place = (where >> 24, where & 0xFFFFFF) if record.flag else (0, where)
        label = types.string(name_at)
        size = types.type(of).size
        if record.kind == btf.STRUCT and place // 8 > (end + 7) // 8 and not bits:
            yield f"{lead}{' ' * _INDENT}/* {place // 8 - (end + 7) // 8} bytes hole */"
        end = max(end, place + (bits or 8 * size))
        inner = _behind(types, of)
        nested = inner and types.record(inner).kind in (btf.STRUCT, btf.UNION) and not types.record(inner).name
        if nested and depth < _NEST_LIMIT and types.record(of).kind in (btf.STRUCT, btf.UNION):
            yield from _body(types, inner, label, at + place, depth + 1, lines)
            continue
        text = f"{lead}{' ' * _INDENT}{declared(types, of, label)}{f':{bits}' if bits else ''};"
        bit = f":{(at + place) % (8 * (size or 1)):2}" if bits else ""
        offset = (at + place) // (8 * (size or 1)) * size if bits and size else (at + place) // 8
        yield f"{text:<{_COMMENT_AT}} /* {offset:>5}{bit} {size:>5} */"
    close = f"{lead}}}{' ' + name if name and depth else ''};"
    size = record.last
    yield f"{close:<{_COMMENT_AT}} /* {at // 8:>5} {size:>5} */" if depth else f"{close} /* size: {size} */"
