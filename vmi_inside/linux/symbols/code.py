"""Whose code lies at an address, and what it is called: the kernel's, a module's, eBPF's, a trampoline's.

Knows the kernel's text by symbols, modules by `loaded`, eBPF's programs and trampolines by `bpf_kallsyms` (struct
bpf_ksym, include/linux/bpf.h, 5.8), ftrace's by `ftrace_ops_trampoline_list` (kernel/trace/ftrace.c, 5.9) and kprobes'
pages by `kprobe_insn_slots` (kernel/kprobes.c). What code does there is the asker's matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.errors import MemoryFault, NoSymbol, ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux.symbols.loaded import Loaded, loaded
from vmi_inside.linux.symbols.module_types import module_symbols
from vmi_inside.structs import Structs
from vmi_inside.table import Text
from vmi_inside.types import PAGE_SIZE, U64, Mask

#: What one program, trampoline or page of probes may take.
_CODE_LIMIT: Final = 16 << 20
_PIECES: Final = 1 << 16
#: First and last symbol of each stretch of the kernel's own code (include/asm-generic/sections.h).
_KERNEL: Final = (("kernel", ("_stext", "_text"), "_etext"), ("init", ("_sinittext",), "_einittext"))


@dataclass(frozen=True, slots=True)
class Piece:
    """Code that no file came with: whose, what it is called, and where."""

    owner: str
    name: str
    start: int
    end: int


class Code:
    """The code of one reading. Nothing is read before it is asked for; make a new one for each reading."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._of_module: dict[int, tuple[U64, list[str]]] = {}

    @cached_property
    def modules(self) -> Loaded | None:
        """The modules on the kernel's list; None where it cannot be read."""
        try:
            return loaded(self.kernel)
        except (ProfileError, MemoryFault):
            return None

    @cached_property
    def kernel_ranges(self) -> tuple[tuple[str, int, int], ...]:
        """The kernel's own stretches of code: owner, start, end."""
        found = []
        for owner, first, last in _KERNEL:
            start, end = self.kernel.profile.find_symbol(*first), self.kernel.profile.find_symbol(last)
            if start is not None and end is not None and start < end:
                found.append((owner, start, end))
        return tuple(found)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Programs, trampolines and probes that live outside the kernel's and the modules' text."""
        found: list[Piece] = []
        for finder in (_bpf, _ftrace, _kprobes):
            try:
                found += [one for one in finder(self.kernel) if 0 < one.end - one.start <= _CODE_LIMIT]
            except (ProfileError, MemoryFault):
                continue  # this kernel has none of these
        return tuple(found[:_PIECES])

    def owners(self, address: U64) -> Text:
        """Whose code each of `n` addresses is: kernel, init, a module's name, bpf, ftrace, kprobes; or empty."""
        out = np.full(len(address), "", dtype=object)
        for piece in self.pieces:
            out[_within(address, piece.start, piece.end)] = piece.owner
        if self.modules is not None:
            row = self.modules.within(address, text=True)
            hit = row >= 0
            out[hit] = np.array([*self.modules.name, ""], dtype=object)[row[hit]]
        for owner, start, end in self.kernel_ranges:
            out[_within(address, start, end)] = owner
        return out

    def symbols(self, address: U64, *, returns: bool = False) -> Text:
        """Names (n,) as a stack trace has them: `vfs_read+0x9a`, `nf_hook+0x10 [nf_tables]`; a number where unknown.

        `returns` takes them for return addresses: they belong to the function that calls, which a call that does not
        return may end (`%pB`). Then an address of 0 has no name.
        """
        unique, back = np.unique(address, return_inverse=True)
        before = int(returns)
        at = unique - np.uint64(before)
        rows = self.modules.within(at) if self.modules is not None else np.full(len(unique), -1)
        named = [self._name(one, row, before) for one, row in zip(at.tolist(), rows.tolist(), strict=True)]
        out = np.array([*named, ""], dtype=object)
        if returns:
            out[:-1][unique == 0] = ""
        return out[back]

    def _name(self, address: int, module: int, more: int) -> str:
        """The name of an address, and `more` than how far it is behind it."""
        found = self.kernel.profile.symbol_at(address, first=bool(more))
        if found is not None:
            return f"{found[0]}{_behind(found[1] + more)}"
        if module >= 0:
            return self._in_module(address, module, more)
        for piece in self.pieces:
            if piece.start <= address < piece.end:
                return f"{piece.name}{_behind(address - piece.start + more)} [{piece.owner}]"
        return f"{address + more:#x}"

    def _in_module(self, address: int, row: int, more: int) -> str:
        assert self.modules is not None
        if row not in self._of_module:
            self._of_module[row] = self._symbols(self.modules.modules.select(np.array([row])))
        values, names = self._of_module[row]
        at = int(np.searchsorted(values, np.uint64(address), "right")) - 1
        label = f"[{self.modules.name[row]}]"
        if at < 0:
            return f"{address + more:#x} {label}"
        return f"{names[at]}{_behind(address - int(values[at]) + more)} {label}"

    def _symbols(self, module: Structs) -> tuple[U64, list[str]]:
        """Values, ascending, and names of a module's symbols."""
        try:
            table = module_symbols(self.kernel, module)
        except (ProfileError, MemoryFault):
            table = {}
        ordered = sorted((value, name) for name, value in table.items() if value)
        return np.array([value for value, _ in ordered], dtype=np.uint64), [name for _, name in ordered]


def _behind(offset: int) -> str:
    return f"+{offset:#x}" if offset else ""


def _within(address: U64, start: int, end: int) -> Mask:
    inside: Mask = (address - np.uint64(start)) < np.uint64(end - start)
    return inside


def _listed(kernel: Kernel, symbol: str, ctype: str, link: str, at: int = 0) -> Structs:
    """The structs on a global list, `at` bytes behind the symbol."""
    found = walk.serial(kernel.space, kernel.symbol(symbol) + at, what=symbol, limit=_PIECES)
    kind = kernel.struct(ctype)
    return kernel.structs(kind, found.address - np.uint64(kind.member(link).offset))


def _bpf(kernel: Kernel) -> Iterator[Piece]:
    rows = _listed(kernel, "bpf_kallsyms", "bpf_ksym", "lnode").fetch("start", "end", "name")
    spans = zip(rows.text("name"), rows.pointer("start").tolist(), rows.pointer("end").tolist(), strict=True)
    yield from (Piece("bpf", name, start, end) for name, start, end in spans)


def _ftrace(kernel: Kernel) -> Iterator[Piece]:
    rows = _listed(kernel, "ftrace_ops_trampoline_list", "ftrace_ops", "list").fetch("trampoline", "trampoline_size")
    spans = zip(rows.pointer("trampoline").tolist(), rows.number("trampoline_size").tolist(), strict=True)
    yield from (Piece("ftrace", "ftrace_trampoline", start, start + size) for start, size in spans)


def _kprobes(kernel: Kernel) -> Iterator[Piece]:
    """Pages that hold the instructions that probes displaced."""
    for symbol in ("kprobe_insn_slots", "kprobe_optinsn_slots"):
        if kernel.profile.find_symbol(symbol) is None:
            continue
        try:
            pages = kernel.struct("kprobe_insn_cache").member("pages").offset
            rows = _listed(kernel, symbol, "kprobe_insn_page", "list", pages).fetch("insns")
        except NoSymbol:
            continue
        yield from (Piece("kprobes", symbol, start, start + PAGE_SIZE) for start in rows.pointer("insns").tolist())
