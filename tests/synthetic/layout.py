"""A small language for struct layouts, and a profile made of it.

    task_struct 9600
        comm        0xb18  char[16]
        real_parent 0x980  *task_struct
        kind        0x10   u32:3+2        (a bit field: 3 bits, above 2 others)

`|name` for a member marks an anonymous struct: its members count as the outer struct's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vmi_inside.errors import NoMember, NoSymbol
from vmi_inside.profile.ctypes import VOID, CType, Member

_INTS = {
    **{f"u{8 * size}": CType("int", f"u{8 * size}", size) for size in (1, 2, 4, 8)},
    **{f"i{8 * size}": CType("int", f"i{8 * size}", size, signed=True) for size in (1, 2, 4, 8)},
    "char": CType("int", "char", 1, signed=True),
    "void": VOID,
}
_TYPE = re.compile(r"(\*?)(\w+)(?:\[(\d+)\])?(?::(\d+)\+(\d+))?")


class Layout:
    """Structs by name; a later text replaces structs of an earlier one."""

    def __init__(self, *sources: str) -> None:
        self.structs: dict[str, CType] = {}
        for source in sources:
            self.add(source)

    def add(self, source: str) -> None:
        """Read more structs; one of a name that is there takes its place."""
        members: dict[str, tuple[int, str]] = {}
        for line in source.splitlines():
            words = line.split()
            if not words:
                continue
            if line[0].isspace():
                members[words[0]] = (int(words[1], 0), words[2])
            else:
                members = {}
                self.structs[words[0]] = self._struct(words[0], int(words[1], 0), members)

    def _struct(self, name: str, size: int, members: dict[str, tuple[int, str]]) -> CType:
        def load() -> Mapping[str, Member]:
            found: dict[str, Member] = {}
            for member, (offset, word) in members.items():
                made = self._member(member, offset, word)
                found[member.lstrip("|")] = made
                if member.startswith("|"):
                    for inner in made.type.members.values():
                        found[inner.name] = Member(inner.name, offset + inner.offset, inner.size, inner.type)
            return found

        return CType("struct", name, size, members=load)

    def _member(self, name: str, offset: int, word: str) -> Member:
        match = _TYPE.fullmatch(word)
        assert match, word
        star, base, count, bits, below = match.groups()
        ctype = CType("pointer", size=8, target=lambda: self._type(base)) if star else self._type(base)
        if count is not None:
            element = ctype
            ctype = CType("array", size=element.size * int(count), count=int(count), target=lambda: element)
        return Member(name, offset, ctype.size, ctype, int(below or 0), int(bits or 0))

    def _type(self, name: str) -> CType:
        return _INTS.get(name) or self.structs[name]


class SyntheticProfile:
    """What `Kernel` asks of a profile, over a `Layout` and a dict of symbols."""

    release = "synthetic"
    slide = 0

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.symbols: dict[str, int] = {}
        self.enumerators: dict[str, int] = {}
        self.rooms: dict[str, int] = {}
        self.names: dict[int, str] = {}

    def extend(self, source: str) -> None:
        """More structs, or others of these names; members may be of types that are there."""
        self.layout.add(source)

    def room(self, name: str) -> int:
        return self.rooms[name]

    def global_type(self, name: str) -> CType:
        raise NoMember(name)

    def enumerator(self, *names: str) -> int | None:
        return next((self.enumerators[name] for name in names if name in self.enumerators), None)

    def symbol(self, name: str) -> int:
        if name not in self.symbols:
            raise NoSymbol(name)
        return self.symbols[name]

    def find_symbol(self, *names: str) -> int | None:
        return next((self.symbols[name] for name in names if name in self.symbols), None)

    def struct(self, *names: str) -> CType:
        for name in names:
            if name in self.layout.structs:
                return self.layout.structs[name]
        raise NoMember(" or ".join(names))

    def symbol_at(self, address: int, *, first: bool = False) -> tuple[str, int] | None:
        """The last symbol at or before an address of the image, or a name of its own."""
        if address in self.names:
            return self.names[address], 0
        before = [(value, name) for name, value in self.symbols.items() if value <= address < value + (1 << 20)]
        return (max(before)[1], address - max(before)[0]) if before else None
