"""The kernel's types as drgn's, each made when it is asked for.

Knows BTF's kinds and drgn's constructors of types. Imported only where drgn is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from drgn import (
    Object,
    Program,
    Qualifiers,
    Type,
    TypeEnumerator,
    TypeKind,
    TypeKindSet,
    TypeMember,
    TypeParameter,
)

from vmi_inside.errors import WrongProfile
from vmi_inside.kernel import Kernel
from vmi_inside.linux.symbols.module_types import every_module
from vmi_inside.profile import btf
from vmi_inside.profile.btf import Btf

_BOOL: Final = 4  # BTF_INT_BOOL (include/uapi/linux/btf.h)
_DEPTH_LIMIT: Final = 64
_QUALIFIERS: Final = {
    btf.CONST: Qualifiers.CONST, btf.VOLATILE: Qualifiers.VOLATILE, btf.RESTRICT: Qualifiers.RESTRICT,
}  # fmt: skip
_KINDS: Final = {
    TypeKind.STRUCT: (btf.STRUCT,), TypeKind.UNION: (btf.UNION,), TypeKind.ENUM: (btf.ENUM, btf.ENUM64),
    TypeKind.TYPEDEF: (btf.TYPEDEF,), TypeKind.INT: (btf.INT,), TypeKind.BOOL: (btf.INT,),
    TypeKind.FLOAT: (btf.FLOAT,),
}  # fmt: skip


class TypesOfAll:
    """The types of the kernel, and of the modules that are loaded when one is asked for."""

    def __init__(self, program: Program, kernel: Kernel) -> None:
        self.kernel = Types(program, kernel.profile.types)
        self._program = program
        self._kernel = kernel
        self._modules: dict[int, Types] = {}

    def find(self, _: Program, kinds: TypeKindSet, name: str, filename: str | None) -> Type | None:
        """drgn's type finder: the kernel's, or the first module's."""
        if filename:  # BTF does not tell files
            return None
        found = self.kernel.find(kinds, name)
        if found is not None:
            return found
        for module in every_module(self._kernel):
            if module.types is not None:
                own = self._modules.setdefault(
                    id(module.types), Types(self._program, module.types, self.kernel)
                )  # what was parsed is kept with the kernel: an id stays its own
                found = own.find(kinds, name)
                if found is not None:
                    return found
        return None


class Types:
    """The types of one BTF blob for one program; a module's have the kernel's as `base`."""

    def __init__(self, program: Program, types: Btf, base: Types | None = None) -> None:
        self._program = program
        self._types = types
        self._base = base
        self._made: dict[int, Type] = {}

    def find(self, kinds: TypeKindSet, name: str) -> Type | None:
        """The first type of that name and one of these kinds."""
        wanted = {each for kind in kinds for each in _KINDS.get(kind, ())}
        for one in self._types.ids(name, *wanted):
            found = self.type(one)
            if found.kind in kinds:
                return found
        return None

    def type(self, one: int, depth: int = 0) -> Type:
        """The type of that id. Raises `WrongProfile` when the types are damaged."""
        if self._base is not None and self._types.base is not None and one < self._types.base.end_id:
            return self._base.type(one, depth)
        found = self._made.get(one)
        if found is None:
            if depth > _DEPTH_LIMIT:
                raise WrongProfile(f"type {one} is nested too deeply")
            found = self._made[one] = self._make(one, depth + 1)
        return found

    def _make(self, one: int, depth: int) -> Type:
        program = self._program
        if one == 0:
            return program.void_type()
        record = self._types.record(one)
        kind, name, last = record.kind, record.name, record.last
        if kind in _QUALIFIERS:
            inner = self.type(last, depth)
            return inner.qualified(inner.qualifiers | _QUALIFIERS[kind])
        if kind in (btf.TYPE_TAG, btf.DECL_TAG, btf.VAR, btf.FUNC):
            return self.type(last, depth)
        if kind == btf.TYPEDEF:
            return program.typedef_type(name, self.type(last, depth))
        if kind == btf.PTR:
            return program.pointer_type(self.type(last, depth))
        if kind == btf.ARRAY:
            of, _, count = record.words
            return (
                program.array_type(self.type(of, depth), count) if count else program.array_type(self.type(of, depth))
            )
        if kind == btf.INT:
            encoding = record.words[0] >> 24
            if encoding & _BOOL:
                return program.bool_type(name, last)
            return program.int_type(name, last, bool(encoding & 1))
        if kind == btf.FLOAT:
            return program.float_type(name, last)
        if kind in (btf.STRUCT, btf.UNION):
            constructor = program.struct_type if kind == btf.STRUCT else program.union_type
            return constructor(name or None, last, list(self._members(record)))
        if kind in (btf.ENUM, btf.ENUM64):
            told = self._types.enumerators(one)
            base = program.int_type("int" if record.flag else "unsigned int", last, record.flag)
            return program.enum_type(name or None, base, [TypeEnumerator(label, value) for label, value in told])
        if kind == btf.FWD:
            whole = next(self._types.ids(name, btf.UNION if record.flag else btf.STRUCT), None)
            if whole is not None:
                return self.type(whole, depth)
            return program.union_type(name) if record.flag else program.struct_type(name)
        if kind == btf.FUNC_PROTO:
            return self._function(record, depth)
        return program.void_type()

    def _members(self, record: btf.Record) -> Iterator[TypeMember]:
        words = iter(record.words)
        for name_at, of, where in zip(words, words, words, strict=True):
            bits, at = (where >> 24, where & 0xFFFFFF) if record.flag else (0, where)
            name = self._types.string(name_at) or None

            def load(of: int = of, bits: int = bits) -> Type | Object:
                found = self.type(of)
                return Object(self._program, found, bit_field_size=bits) if bits else found

            yield TypeMember(load, name, at)

    def _function(self, record: btf.Record, depth: int) -> Type:
        words = iter(record.words)
        told = list(zip(words, words, strict=True))
        variadic = bool(told) and told[-1] == (0, 0)
        parameters = [
            TypeParameter(lambda of=of: self.type(of), self._types.string(name_at) or None)
            for name_at, of in told[: len(told) - variadic]
        ]
        return self._program.function_type(self.type(record.last, depth), parameters, variadic)
