"""YARA rules over bytes that come piece by piece. The only file that imports yara-x.

Knows how rules are compiled and what a match is; where the bytes come from is left to others. Pieces that adjoin
overlap when they are scanned, so that what lies across a border is found; a rule's condition is judged of each piece
by itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vmi_inside.errors import Unsupported, VmiError

#: How far pieces overlap: no longer match is sure to be found across a border.
OVERLAP: Final = 64 << 10
#: Matches of one string in one piece that are told.
_MATCHES: Final = 1000


class BadRules(VmiError):
    """Rules that cannot be read or compiled; the message says where."""


class TimeOut(VmiError):
    """Scanning took longer than was allowed."""


@dataclass(frozen=True, slots=True)
class Match:
    """A rule that matched, and where one of its strings did; without strings, `string` and `data` are empty."""

    rule: str
    namespace: str
    tags: tuple[str, ...]
    string: str
    address: int
    length: int
    data: bytes


class Scanner:
    """Compiled rules. `timeout` is in seconds, of all scanning together; 0 for none.

    Raises `BadRules`, and `Unsupported` when yara-x is not installed.
    """

    def __init__(self, sources: Iterable[tuple[str, str]], timeout: float = 0) -> None:
        try:
            import yara_x
        except ImportError as error:
            raise Unsupported("YARA rules need yara-x: pip install 'vmi-inside[yara]'") from error
        self._timeout_error = yara_x.TimeoutError
        self._failed = yara_x.ScanError
        compiler = yara_x.Compiler()
        for name, source in sources:
            compiler.new_namespace(name)
            try:
                compiler.add_source(source, origin=name)
            except yara_x.CompileError as error:
                raise BadRules(_told(name, compiler, error)) from error
        self._scanner: Any = yara_x.Scanner(compiler.build())
        self._scanner.max_matches_per_pattern(_MATCHES)
        self._deadline = time.monotonic() + timeout if timeout else math.inf
        self._timeout = timeout
        #: Whether that time ran out.
        self.timed_out = False

    def scan(self, pieces: Iterable[tuple[int, bytes]]) -> Iterator[Match]:
        """Matches in pieces (address, bytes), ascending; each string at each address once. Raises `TimeOut`."""
        before, end = b"", None
        without: set[str] = set()
        for address, data in pieces:
            prefix = before if address == end else b""
            whole = prefix + data
            yield from self._scan(address - len(prefix), whole, len(prefix), without)
            before, end = whole[-OVERLAP:], address + len(data)

    def _scan(self, base: int, data: bytes, known: int, without: set[str]) -> Iterator[Match]:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._late()
        if left < math.inf:
            self._scanner.set_timeout(max(math.ceil(left), 1))
        try:
            found = self._scanner.scan(data)
        except self._timeout_error as error:
            raise self._late() from error
        except self._failed as error:
            raise VmiError(f"yara-x cannot scan: {error}") from error
        for rule in found.matching_rules:
            about = rule.identifier, rule.namespace, tuple(rule.tags)
            told = False
            for pattern in rule.patterns:
                for hit in pattern.matches:
                    told = True
                    # What ends in bytes that were scanned before was found then.
                    if hit.offset + hit.length > known or not known:
                        piece = data[hit.offset : hit.offset + hit.length]
                        yield Match(*about, pattern.identifier, base + hit.offset, hit.length, piece)
            if not told and rule.identifier not in without:
                without.add(rule.identifier)
                yield Match(*about, "", base + known, 0, b"")

    def _late(self) -> TimeOut:
        self.timed_out = True
        return TimeOut(f"cut after {self._timeout:g} seconds")


def sources(paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Rules out of files, with the files' names. Raises `BadRules`."""
    for path in paths:
        try:
            yield str(path), path.read_text("utf-8")
        except OSError as error:
            raise BadRules(f"{path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise BadRules(f"{path}: these are no rules, but bytes: {error}") from error


def _told(name: str, compiler: Any, error: Exception) -> str:
    """One line: file, line, column, and what is wrong there."""
    for each in compiler.errors():
        labels = "; ".join(label["text"] for label in each.get("labels", ()) if label.get("text"))
        where = f"{name}:{each['line']}:{each['column']}" if "line" in each else name
        return f"{where}: {each['title']}{f' ({labels})' if labels else ''}"
    return f"{name}: {str(error).splitlines()[0]}"
