"""A kernel's symbols as an ELF file that gdb takes for the program: where everything is, and how stacks are unwound.

Knows what gdb looks for in such a file: sections that cover the addresses, `.symtab`, and `.debug_frame`. Where symbols
come from is told by the profile and `module_types`, where frames end by `orc`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside import elf
from vmi_inside.errors import MemoryFault, ProfileError, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.symbols import frame_table
from vmi_inside.linux.symbols.code import Code
from vmi_inside.linux.symbols.loaded import Loaded
from vmi_inside.linux.symbols.module_types import module_symbol_list
from vmi_inside.structs import Structs
from vmi_inside.types import U8, U64

_SYMBOL: Final = np.dtype([
    ("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8"),
])  # fmt: skip
_OBJECT, _FUNCTION = 1, 2
_GLOBAL: Final = 1 << 4
_PROGBITS, _SYMTAB, _STRTAB, _NOBITS = 1, 2, 3, 8
_WRITE, _ALLOC, _EXEC = 1, 2, 4
_KERNEL: Final = 1 << 63  # addresses of the kernel's half
_SECTION_LIMIT: Final = 0xFEFF  # SHN_LORESERVE
#: Where the kernel's own image is cut: first and last symbol, and whether it is code.
_IMAGE: Final = ((".text", "_stext", "_etext", True), (".init.text", "_sinittext", "_einittext", True))


@dataclass(frozen=True, slots=True)
class Written:
    """What is in the file: `symbols`, of which `modules` modules' are some; `frames` say how stacks are unwound."""

    symbols: int
    modules: int
    frames: int
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Range:
    """A stretch of the kernel's addresses."""

    name: str
    start: int
    end: int
    code: bool


def write_symbols(kernel: Kernel, file: IO[bytes]) -> Written:
    """Write the file. Raises `NoSymbol` where the kernel does not tell where it ends."""
    notices: list[str] = []
    with kernel.operation():
        code = Code(kernel)
        modules = code.modules
        if modules is None:
            notices.append("the list of modules cannot be read: the kernel's own symbols only")
        ranges = _image(kernel) + (_of_modules(modules) if modules is not None else [])
        text, symbols = _kernel_symbols(kernel)
        texts, parts = [text], [symbols]
        at = len(text)
        for module in _each(modules):
            more, found = _module_symbols(kernel, module, at)
            texts.append(more)
            parts.append(found)
            at += len(more)
        try:
            frames = frame_table.build(kernel, code)
        except (ProfileError, MemoryFault, Unsupported) as error:
            frames = frame_table.Frames(b"", 0)
            notices.append(f"no frames: gdb will guess where functions return to ({error})")
    ranges = _disjoint(ranges)[: _SECTION_LIMIT - 5]
    table = _placed(np.concatenate(parts), ranges)
    names = np.concatenate(texts)
    names[((names < 32) | (names > 126)) & (names != 0)] = ord("?")  # gdb prints them as they are
    _write(file, ranges, table, names, frames.data)
    return Written(len(table), 0 if modules is None else len(modules.modules), frames.count, tuple(notices))


def _image(kernel: Kernel) -> list[_Range]:
    """The kernel's own image: its code, and what lies between."""
    found = []
    for name, first, last, code in _IMAGE:
        start, end = kernel.profile.find_symbol(first), kernel.profile.find_symbol(last)
        if start is not None and end is not None and start < end:
            found.append(_Range(name, start, end, code))
    here = kernel.profile.origin
    data: list[_Range] = []
    for one in [*sorted(found, key=lambda one: one.start), _Range("", kernel.symbol("_end"), 0, False)]:
        if here < one.start:
            data.append(_Range(f".data.{len(data)}", here, one.start, False))
        here = max(here, one.end)
    return found + data


def _of_modules(modules: Loaded) -> list[_Range]:
    found = []
    for owner, base, size, code in zip(
        modules.owner.tolist(), modules.base.tolist(), modules.size.tolist(), modules.text.tolist(), strict=True
    ):
        if base < _KERNEL:
            continue
        name = f"{modules.name[owner]}{'.text' if code else '.data'}"
        found.append(_Range(name.encode("ascii", "replace").decode(), base, base + size, code))
    return found


def _disjoint(ranges: list[_Range]) -> list[_Range]:
    """Ascending, without overlaps: code before data, where both claim an address."""
    found: list[_Range] = []
    for one in sorted(ranges, key=lambda one: (not one.code, one.start)):
        left = _rest(one, found)
        if left is not None and left.end < 1 << 64:
            found.append(left)
    return sorted(found, key=lambda one: one.start)


def _rest(one: _Range, others: list[_Range]) -> _Range | None:
    """What others leave over of a range, behind the one in which it begins: a module's layout begins with its code."""
    start = max((other.end for other in others if other.start <= one.start < other.end), default=one.start)
    end = min((other.start for other in others if start <= other.start < one.end), default=one.end)
    return _Range(one.name, start, end, one.code) if start < end else None


def _kernel_symbols(kernel: Kernel) -> tuple[U8, NDArray[np.void]]:
    """Names as `.strtab` has them, and entries of `.symtab`. The profile keeps names as such a table needs them."""
    symbols = kernel.profile.symbols
    rows = np.arange(symbols.fixed, len(symbols))  # what does not move is no address: offsets of per-CPU variables
    table = np.zeros(len(rows), _SYMBOL)
    table["name"] = symbols.starts[rows] + 1
    letter = symbols.text[symbols.starts[rows]]
    table["info"] = np.where((letter >= ord("A")) & (letter <= ord("Z")), _GLOBAL, 0)
    table["value"] = symbols.values[rows].view(np.uint64) + np.uint64(kernel.profile.origin)
    return np.array(symbols.text, np.uint8), table


def _each(modules: Loaded | None) -> Iterator[Structs]:
    """Each module as one row."""
    if modules is not None:
        for row in range(len(modules.modules)):
            yield modules.modules.select(np.array([row]))


def _module_symbols(kernel: Kernel, module: Structs, at: int) -> tuple[U8, NDArray[np.void]]:
    """The same of a module, whose names will begin at `at`."""
    try:
        found = module_symbol_list(kernel, module)
    except (ProfileError, MemoryFault):
        found = []
    names = [name.encode("utf-8", "replace").replace(b"\0", b"") + b"\0" for name, _ in found]
    table = np.zeros(len(names), _SYMBOL)
    table["name"] = at + np.cumsum([0, *map(len, names)])[:-1]
    table["value"] = np.fromiter((value & (1 << 64) - 1 for _, value in found), np.uint64, len(names))
    return np.frombuffer(b"".join(names), np.uint8), table


def _placed(table: NDArray[np.void], ranges: list[_Range]) -> NDArray[np.void]:
    """Symbols that lie in a section, ascending, local ones first; with their section, kind, and size up to the next."""
    starts: U64 = np.array([one.start for one in ranges], np.uint64)
    ends: U64 = np.array([one.end for one in ranges], np.uint64)
    code = np.array([one.code for one in ranges], np.bool_)
    table = table[np.argsort(table["value"], kind="stable")]
    value = table["value"]
    section = np.searchsorted(starts, value, "right") - 1
    inside = (section >= 0) & (value < ends[section])
    table, section, value = table[inside], section[inside], value[inside]
    table["section"] = section + 1
    table["info"] |= np.where(code[section], _FUNCTION, _OBJECT).astype(np.uint8)
    # The next greater value, or the section's end.
    following = np.append(value, np.uint64(0))[np.searchsorted(value, value, "right")]
    limit = ends[section]
    table["size"] = np.where((following > value) & (following < limit), following, limit) - value
    return table[np.argsort(table["info"] >> 4, kind="stable")]


def _write(file: IO[bytes], ranges: list[_Range], table: NDArray[np.void], names: U8, frames: bytes) -> None:
    labels = b"\0"
    headers = [elf.SECTION.pack(*(0,) * 10)]
    for one in ranges:
        flags = _ALLOC | (_EXEC if one.code else _WRITE)
        headers.append(elf.SECTION.pack(
            len(labels), _NOBITS, flags, one.start, elf.HEADER.size, one.end - one.start, 0, 0, 16, 0
        ))  # fmt: skip
        labels += one.name.encode() + b"\0"
    table = np.concatenate((np.zeros(1, _SYMBOL), table))
    local = int((table["info"] >> 4 == 0).sum())
    extra = (b".debug_frame", b".symtab", b".strtab", b".shstrtab")
    where = [len(labels) + sum(len(name) + 1 for name in extra[:at]) for at in range(len(extra))]
    labels += b"\0".join(extra) + b"\0"
    contents = (frames, table.tobytes(), names.tobytes(), labels)
    kinds = ((_PROGBITS, 0, 0, 8, 0), (_SYMTAB, len(ranges) + 3, local, 8, _SYMBOL.itemsize),
             (_STRTAB, 0, 0, 1, 0), (_STRTAB, 0, 0, 1, 0))  # fmt: skip
    offset = elf.HEADER.size
    for name, data, (kind, link, info, align, size) in zip(where, contents, kinds, strict=True):
        headers.append(elf.SECTION.pack(name, kind, 0, 0, offset, len(data), link, info, align, size))
        offset += len(data) + -len(data) % 8
    file.write(elf.HEADER.pack(
        elf.IDENT, elf.ET_EXEC, elf.EM_X86_64, 1, 0, 0, offset, 0, elf.HEADER.size, 0, 0, elf.SECTION.size,
        len(headers), len(headers) - 1,
    ))  # fmt: skip
    for data in contents:
        file.write(data + bytes(-len(data) % 8))
    file.write(b"".join(headers))
