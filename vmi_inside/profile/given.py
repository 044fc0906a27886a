"""A profile that somebody gives in a file, for kernels whose memory does not tell: what it says, and of which kernel.

Knows the kinds of files: volatility3's ISF (plain, .xz, .gz), Rekall's JSON, a System.map, raw BTF, an ELF file with
BTF. How it is fitted to the kernel that runs is left to `learn`.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import lzma
import mmap
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from vmi_inside.errors import WrongProfile
from vmi_inside.profile import btf
from vmi_inside.profile.btf import Btf
from vmi_inside.profile.encode import encoded, from_rekall
from vmi_inside.profile.profile import LINKED_AT
from vmi_inside.profile.symbols import ORIGIN, Symbols

_SIZE_LIMIT: Final = 1 << 30  # of a file, and of what it unpacks to
_MAP_LINE: Final = re.compile(rb"([0-9a-f]{16}) ([A-Za-z]) (\S+)$", re.MULTILINE)
#: By these two kernel builds are told apart: the first are far from each other, the last are changed often.
_SIGNS: Final = ("linux_banner", "init_task", "init_uts_ns", "schedule", "_etext", "_end")
_STRUCTS: Final = ("task_struct", "mm_struct", "file", "inode", "sock", "net", "module", "super_block")
_ELF: Final = b"\x7fELF"
_FIRST_MOVING: Final = 0xFFFF_FFFF_8000_0000


@dataclass(frozen=True, slots=True)
class Given:
    """What a file, or several, say. `banner` is that of the kernel it is of, or empty where the file does not tell."""

    path: str
    types: Btf | None = None
    symbols: Symbols | None = None
    banner: bytes = b""

    def differs(self, symbols: Symbols, types: Btf | None) -> str:
        """In what this is not of the kernel with these symbols and types, in words; empty when it may be."""
        if self.symbols is not None:
            for name in _SIGNS:
                theirs, ours = self.symbols.find(name), symbols.find(name)
                if theirs is None or ours is None:
                    continue
                there, here = int(self.symbols.values[theirs]), int(symbols.values[ours])
                if there != here:
                    return f"its symbol {name} is at _text{there:+#x}, the guest's at _text{here:+#x}"
        if self.types is None or types is None:
            return ""
        for name in _STRUCTS:
            told, own = self.types.struct(name), types.struct(name)
            if told is None or own is None:
                continue
            if told.size != own.size:
                return f"its struct {name} has {told.size} bytes, the guest's {own.size}"
            for member in own.members:
                if told.has(member) and told.member(member).offset != own.member(member).offset:
                    there, here = told.member(member).offset, own.member(member).offset
                    return f"its {name}.{member} is at {there}, the guest's at {here}"
        return ""

    def joined(self, other: Given) -> Given:
        """This and another file's: a System.map and types."""
        return Given(
            f"{self.path}, {other.path}", self.types or other.types, self.symbols or other.symbols,
            self.banner or other.banner,
        )  # fmt: skip


def load(paths: str | Path) -> Given:
    """What the file says; several have commas between them. Raises `WrongProfile`: of no known kind, or damaged."""
    made = [_load(Path(each)) for each in str(paths).split(",")]
    found = made[0]
    for one in made[1:]:
        found = found.joined(one)
    return found


def _load(path: Path) -> Given:
    try:
        if path.stat().st_size > _SIZE_LIMIT:
            raise WrongProfile(f"{path} is too large for a profile")
        with path.open("rb") as file:
            if file.read(4) == _ELF:  # with debug information hundreds of megabytes, of which few are looked at
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                    return Given(str(path), Btf(_section(whole, path)))
        raw = path.read_bytes()
        if raw[:6] == b"\xfd7zXZ\0":
            raw = lzma.LZMADecompressor(memlimit=_SIZE_LIMIT).decompress(raw, _SIZE_LIMIT)
        elif raw[:2] == b"\x1f\x8b":
            raw = zlib.decompressobj(31).decompress(raw, _SIZE_LIMIT)
    except OSError as error:
        raise WrongProfile(f"{path}: {error.strerror}") from error
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise WrongProfile(f"{path} is damaged: {error}") from error
    if raw[:3] == btf.MAGIC:
        return Given(str(path), Btf(raw))
    if raw.lstrip()[:1] == b"{":
        return _json(raw, path)
    lines = _MAP_LINE.findall(raw)
    if lines:
        return Given(
            str(path),
            symbols=_symbols((int(at, 16), kind.decode("latin-1"), name.decode("latin-1")) for at, kind, name in lines),
        )
    raise WrongProfile(
        f"{path} is no profile that we know: ISF, Rekall's JSON, a System.map, BTF, or a vmlinux with BTF"
    )


def _json(raw: bytes, path: Path) -> Given:
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise WrongProfile(f"{path} is no JSON: {error}") from error
    table = from_rekall(told) if "$STRUCTS" in told else told
    if not isinstance(table.get("user_types"), dict) or not isinstance(table.get("symbols"), dict):
        raise WrongProfile(f"{path} is neither a symbol table of volatility3 nor a profile of Rekall")
    try:
        symbols = _symbols(
            (each["address"], "T" if (each.get("type") or {}).get("kind") == "function" else "D", name)
            for name, each in table["symbols"].items()
        )
        banner = _banner(table["symbols"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WrongProfile(f"{path}: its symbols do not hold together ({error})") from error
    return Given(str(path), Btf(encoded(table)), symbols, banner)


def _banner(symbols: Mapping[str, Any]) -> bytes:
    told = symbols.get("linux_banner", {}).get("constant_data")
    try:
        return base64.b64decode(told).rstrip(b"\0") if told else b""
    except binascii.Error:
        return b""


def _symbols(told: Iterable[tuple[int, str, str]]) -> Symbols:
    """Symbols by their linked addresses. Raises `WrongProfile` without `_text`."""
    rows = sorted({(at % (1 << 64), kind, name) for at, kind, name in told})
    origin = next((at for at, _, name in rows if name in (ORIGIN, "_stext") and at >= _FIRST_MOVING), LINKED_AT)
    rows.sort(key=lambda row: (row[0] >= _FIRST_MOVING, row[0]))
    fixed = sum(at < _FIRST_MOVING for at, _, _ in rows)
    pieces = [f"{kind}{name}".encode("latin-1", "replace") + b"\0" for _, kind, name in rows]
    sizes = np.array([len(piece) for piece in pieces], np.int64)
    starts = np.concatenate(([1], 1 + np.cumsum(sizes))).astype(np.uint32)
    text = np.frombuffer(b"\0" + b"".join(pieces) + bytes(8), np.uint8)
    signed = [at if at < 1 << 63 else at - (1 << 64) for at, _, _ in rows[:fixed]]
    values = np.array(signed + [at - origin for at, _, _ in rows[fixed:]], np.int64)
    return Symbols(text, starts, values, fixed)


def _section(raw: bytes | mmap.mmap, path: Path) -> bytes:
    """The section `.BTF` of a 64-bit little-endian ELF file."""
    try:
        table, size, count, names = struct.unpack_from("<Q10xHHH", raw, 0x28)
        headers = [struct.unpack_from("<IIQQQQ", raw, table + one * size) for one in range(count)]
        for name_at, _, _, _, at, length in headers:
            start = headers[names][4] + name_at
            if raw[start : start + 5] == b".BTF\0":
                return raw[at : at + length]
    except (struct.error, IndexError, OverflowError) as error:
        raise WrongProfile(f"{path} is a damaged ELF file") from error
    raise WrongProfile(
        f"{path} has no BTF: make it with `pahole -J {path.name}` from its debug information, or name another file"
    )
