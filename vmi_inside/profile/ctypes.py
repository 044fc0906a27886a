"""C types as data: what BTF, ISF or Rekall's JSON say, in one form.

Knows the shape of C types and how to find a member by alternatives and dotted paths, through anonymous structs. Where
the types come from is left to `btf` and its peers; reading memory with them, to `structs`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from vmi_inside.errors import NoMember

Kind = Literal["void", "int", "float", "enum", "pointer", "array", "struct", "union", "function", "unknown"]

_STEP: Final = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Member:
    """One member: `offset` in bytes from the start of the struct that was asked, `size` in bytes.

    For a bit field, `bit_size` is its width and `bit_offset` the number of bits below it in the little-endian unit of
    `size` bytes at `offset`; otherwise both are 0.
    """

    name: str
    offset: int
    size: int
    type: CType
    bit_offset: int = 0
    bit_size: int = 0


class CType:
    """One C type, typedefs and qualifiers removed; what it refers to is loaded when first asked for.

    `size` is in bytes (0 when not known), `count` an array's number of elements, `signed` an integer's or enum's.
    `name` is the type's own, empty for pointers, arrays and anonymous types.
    """

    __slots__ = ("_found", "_load_members", "_load_target", "_members", "_target", "count", "kind", "name", "plans",
                 "signed", "size")  # fmt: skip

    def __init__(
        self,
        kind: Kind,
        name: str = "",
        size: int = 0,
        *,
        signed: bool = False,
        count: int = 0,
        target: Callable[[], CType] | None = None,
        members: Callable[[], Mapping[str, Member]] | None = None,
    ) -> None:
        self.kind: Kind = kind
        self.name = name
        self.size = size
        self.signed = signed
        self.count = count
        self._load_target = target
        self._load_members = members
        self._target: CType | None = None
        self._members: Mapping[str, Member] | None = None
        self._found: dict[str, Member | None] = {}
        #: How `structs` reads sets of members: tables ask for the same ones again and again.
        self.plans: dict[tuple[object, ...], Any] = {}

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name or '(anonymous)'}, {self.size} bytes>"

    @property
    def target(self) -> CType:
        """What a pointer points at, or an array holds; `void` where that is not known."""
        if self._target is None:
            self._target = self._load_target() if self._load_target else VOID
        return self._target

    @property
    def members(self) -> Mapping[str, Member]:
        """Members by name, in order; those of anonymous structs and unions are found here too, flattened."""
        if self._members is None:
            self._members = self._load_members() if self._load_members else {}
        return self._members

    def member(self, *paths: str) -> Member:
        """The first of `paths` that this type has: alternatives for names that changed between kernels.

        A path is a name, or names joined by dots that step into members, with `[n]` stepping into arrays:
        `"signal"`, `"se.vruntime"`, `"pid_links[1].next"`. Raises `NoMember`.
        """
        for path in paths:
            found = self._find(path)
            if found is not None:
                return found
        raise NoMember(f"{self.kind} {self.name}".strip(), " or ".join(paths))

    def has(self, *paths: str) -> bool:
        """Whether one of `paths` is there."""
        return any(self._find(path) is not None for path in paths)

    def _find(self, path: str) -> Member | None:
        plain = self.members.get(path)
        if plain is not None:
            return plain
        if path not in self._found:
            self._found[path] = self._step_to(path)
        return self._found[path]

    def _step_to(self, path: str) -> Member | None:
        here: CType = self
        offset = 0
        last: Member | None = None
        for name, index in _STEP.findall(path):
            if name:
                last = here.members.get(name)
                if last is None:
                    return None
            else:
                if here.kind != "array" or (here.count and int(index) >= here.count):
                    return None
                step = here.target
                last = Member(f"[{index}]", int(index) * step.size, step.size, step)
            offset += last.offset
            here = last.type
        if last is None:
            return None
        return Member(path, offset, last.size, last.type, last.bit_offset, last.bit_size)


VOID: Final = CType("void")


class Types(Protocol):
    """A source of C types by name."""

    def struct(self, name: str) -> CType | None:
        """The struct or union of that name, or None. Never a mere forward declaration."""
        ...

    def enum(self, name: str) -> Mapping[str, int] | None:
        """The enumerators of the enum of that name, or None."""
        ...

    def enumerator(self, name: str) -> int | None:
        """The value of an enumerator found by its own name in any enum, anonymous ones too, or None."""
        ...
