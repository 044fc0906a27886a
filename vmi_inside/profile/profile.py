"""One kernel's symbols and types, under one roof, with the slide of the running kernel applied.

Knows what belongs to a kernel build and what to one boot of it. How it is learned is left to `learn`, where builds are
kept to `cache`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Final

from vmi_inside.errors import NoMember, NoSymbol, WrongProfile
from vmi_inside.profile.arrays import Arrays
from vmi_inside.profile.btf import Btf
from vmi_inside.profile.ctypes import CType
from vmi_inside.profile.find import Banner
from vmi_inside.profile.symbols import Symbol, Symbols
from vmi_inside.types import MASK64

#: Where x86_64 kernels are linked to run: __START_KERNEL with the default CONFIG_PHYSICAL_START.
LINKED_AT: Final = 0xFFFF_FFFF_8100_0000

_CODE: Final = "tTwW"
_CODE_ENDS: Final = (("_stext", "_etext"), ("_sinittext", "_einittext"))
_GLOBAL: Final = re.compile(r"(?:struct |union |enum )?([\w ]+?) ?(\**)(?:\[(\d+)\])?$")


@dataclass(frozen=True, slots=True)
class Build:
    """One kernel build, wherever it runs.

    `banner` is its text with the newline, `build_id` the linker's in hexadecimal or empty. `anchor` is how far behind
    `_text` in memory the banner stands that `find` meets.
    """

    banner: bytes
    build_id: str
    anchor: int
    symbols: Symbols
    types: Btf

    @property
    def release(self) -> str:
        """What `uname -r` says."""
        return Banner(0, self.banner).release

    def meta(self) -> dict[str, str | int]:
        """What is not an array, for `from_parts`."""
        return {"banner": self.banner.decode("latin-1"), "build_id": self.build_id, "anchor": self.anchor}

    def arrays(self) -> Arrays:
        """The arrays, for `from_parts`."""
        return {**self.symbols.arrays(), **self.types.arrays()}

    @classmethod
    def from_parts(cls, meta: Mapping[str, object], arrays: Arrays) -> Build:
        """Put together again, nothing copied. Raises `WrongProfile`."""
        match meta:
            case {"banner": str(banner), "build_id": str(build_id), "anchor": int(anchor)}:
                symbols, types = Symbols.from_arrays(arrays), Btf.from_arrays(arrays)
                return cls(banner.encode("latin-1"), build_id, anchor, symbols, types)
        raise WrongProfile("the profile does not say which kernel it is of")


class Profile:
    """A running kernel's symbols and types. Immutable; holds nothing that was read from the guest's state.

    `origin` is the virtual address of `_text` in this boot.
    """

    def __init__(self, build: Build, origin: int) -> None:
        self.build = build
        self.origin = origin
        # What was asked for will be asked for again: by each table, at each reading.
        self._symbols: dict[str, int | None] = {}
        self._structs: dict[str, CType | None] = {}
        self._enumerators: dict[str, int | None] = {}

    def __repr__(self) -> str:
        return f"<Profile {self.release}, {len(self.symbols)} symbols, {len(self.types)} types>"

    @property
    def symbols(self) -> Symbols:
        """All symbols, with values relative to `_text`."""
        return self.build.symbols

    @property
    def types(self) -> Btf:
        """All types."""
        return self.build.types

    @property
    def build_id(self) -> str:
        """The linker's build id in hexadecimal; empty where the kernel has none."""
        return self.build.build_id

    @property
    def banner(self) -> str:
        """What /proc/version says."""
        return self.build.banner.decode("utf-8", "backslashreplace").rstrip("\n")

    @property
    def release(self) -> str:
        """What `uname -r` says."""
        return self.build.release

    @property
    def slide(self) -> int:
        """How far KASLR moved the kernel from where it was linked to run."""
        return self.origin - LINKED_AT

    # -- symbols ----------------------------------------------------------------------------------------------------

    def symbol(self, name: str) -> int:
        """The address of a symbol; of a per-CPU one before 6.15 its offset in the per-CPU area. Raises `NoSymbol`."""
        found = self.find_symbol(name)
        if found is None:
            raise NoSymbol(name)
        return found

    def find_symbol(self, *names: str) -> int | None:
        """The address of the first of these symbols that the kernel has, or None."""
        for name in names:
            if name not in self._symbols:
                row = self.symbols.find(name)
                self._symbols[name] = None if row is None else self._address(row)
            found = self._symbols[name]
            if found is not None:
                return found
        return None

    def symbols_named(self, name: str) -> list[int]:
        """The addresses of all symbols of that name, ascending: local functions and variables may share one."""
        return [self._address(row) for row in self.symbols.rows(name)]

    def symbols_like(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Name and address of all symbols whose names start so, ascending. Looks through all names: some 10 ms."""
        for one in self.symbols.matching(prefix):
            yield one.name, self._slid(one)

    def symbol_at(self, address: int, *, first: bool = False) -> tuple[str, int] | None:
        """The symbol that `address` belongs to and how far behind it: None outside.

        Of several names of one place the first global one, or the very `first`, as in a kernel's stack trace.
        """
        end = self.find_symbol("_end")
        if not self.origin <= address < (end if end is not None else MASK64):
            return None
        found = self.symbols.at(address - self.origin, first=first)
        return (self.symbols[found[0]].name, found[1]) if found else None

    def is_code(self, row: int) -> bool:
        """Whether the symbol in that row of `symbols` is of code.

        The letter alone does not tell: kernels since 7.0 give that of code to variables in `.data`, too.
        """
        one = self.symbols[row]
        if one.type not in _CODE or one.fixed:
            return False
        return not self._code or any(start <= one.value < end for start, end in self._code)

    @cached_property
    def _code(self) -> list[tuple[int, int]]:
        """Where the kernel's own code is, relative to `_text`."""
        pairs = [(self.find_symbol(first), self.find_symbol(last)) for first, last in _CODE_ENDS]
        return [(a - self.origin, b - self.origin) for a, b in pairs if a is not None and b is not None and a < b]

    def room(self, name: str) -> int:
        """Bytes from a symbol to the next one behind it: what its variable takes at the most; 0 where none follows.

        Raises `NoSymbol`.
        """
        row = self.symbols.find(name)
        if row is None:
            raise NoSymbol(name)
        fixed = self.symbols.fixed
        values = self.symbols.values[:fixed] if row < fixed else self.symbols.values[fixed:]
        behind = values[values > self.symbols.values[row]]
        return int(behind.min() - self.symbols.values[row]) if len(behind) else 0

    def _address(self, row: int) -> int:
        value = int(self.symbols.values[row])
        return value if row < self.symbols.fixed else (value + self.origin) & MASK64

    def _slid(self, one: Symbol) -> int:
        return one.value if one.fixed else (one.value + self.origin) & MASK64

    # -- types ------------------------------------------------------------------------------------------------------

    def struct(self, *names: str) -> CType:
        """The first of these structs or unions that the kernel has. Raises `NoMember`."""
        for name in names:
            if name not in self._structs:
                self._structs[name] = self.types.struct(name)
            found = self._structs[name]
            if found is not None:
                return found
        raise NoMember(" or ".join(names))

    def enum(self, *names: str) -> Mapping[str, int]:
        """The enumerators of the first of these enums that the kernel has. Raises `NoMember`."""
        for name in names:
            found = self.types.enum(name)
            if found is not None:
                return found
        raise NoMember(" or ".join(names))

    def enumerator(self, *names: str) -> int | None:
        """The value of the first of these enumerators that the kernel has, or None."""
        for name in names:
            if name not in self._enumerators:
                self._enumerators[name] = self.types.enumerator(name)
            found = self._enumerators[name]
            if found is not None:
                return found
        return None

    def global_type(self, name: str) -> CType:
        """The type of a global variable: the kernel's own word, or else the table's. Raises `NoMember`.

        BTF tells the types of per-CPU variables only, on most kernels; `profiles/linux/globals.json` has others.
        """
        found = self.types.variable(name) or self.listed_type(name)
        if found is None:
            raise NoMember(" or ".join(_globals().get(name, [f"typeof({name})"])))
        return found

    def listed_texts(self, name: str) -> list[str]:
        """How the table writes the type of a global: the alternatives, in C."""
        return _globals().get(name, [])

    def listed_type(self, name: str) -> CType | None:
        """The type of a global by the table alone; None where it has none, or none that this kernel has."""
        for text in _globals().get(name, ()):
            found = self._parse(text)
            if found is not None:
                return found
        return None

    def _parse(self, text: str) -> CType | None:
        """The type that C would write so: a name, then asterisks, then one length in brackets."""
        hit = _GLOBAL.match(text)
        if hit is None:
            raise WrongProfile(f"globals.json has a type that is none: {text!r}")
        name, stars, count = hit.groups()
        found = self.types.struct(name) or self.types.basic(name)
        for _ in stars:
            if found is not None:
                found = CType("pointer", size=8, target=lambda inner=found: inner)  # type: ignore[misc]
        if found is None or count is None:
            return found
        inner = found
        return CType("array", size=int(count) * inner.size, count=int(count), target=lambda: inner)


@cache
def _globals() -> dict[str, list[str]]:
    """`profiles/linux/globals.json`: for each global its type, or several alternatives."""
    told: dict[str, str | list[str]] = json.loads(data("linux/globals.json"))
    return {name: [one] if isinstance(one, str) else one for name, one in told.items()}


def data(name: str) -> str:
    """The text of a file of the top-level folder `profiles/`, which is shipped as `vmi_inside.profile_data`."""
    beside = Path(__file__).parents[2] / "profiles" / name
    if beside.is_file():  # a plain checkout
        return beside.read_text("utf-8")
    from importlib.resources import files

    return files("vmi_inside.profile_data").joinpath(name).read_text("utf-8")
