"""YARA rules over a guest: where strings of rules stand in the memory of processes, the kernel, RAM, or in files.

What is looked through is `streams`' knowledge, how rules are matched `scan.yara`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np

from vmi_inside.linux.contents.streams import Pieces, Stream
from vmi_inside.scan.yara import Scanner, TimeOut
from vmi_inside.table import Table, Text, text
from vmi_inside.types import I64, U64

#: Matches that are told, unless said otherwise.
MATCH_LIMIT: Final = 100_000
#: Bytes of a match that are shown.
_EXCERPT: Final = 64


class YaraMatches(Table):
    """One row for each place where a string of a rule that matched stands."""

    rule: Text
    namespace: Text  # the file that the rule is from
    tags: Text
    kind: Text  # process, kernel, physical, file
    pid: I64  # 0 where it is no process
    name: Text  # of the process
    path: Text  # of the region, or of the file
    address: U64  # or the offset in the file
    string: Text  # its identifier; empty for a rule without strings
    length: I64  # bytes
    data: Text  # the match, or its first 64 bytes; what is not printable ASCII as \\xNN


class _Enough(Exception):
    """There are as many matches as were asked for."""


def yara_matches(
    streams: Iterable[Stream],
    scanner: Scanner,
    *,
    limit: int = MATCH_LIMIT,
    progress: Callable[[Stream, int], None] = lambda stream, size: None,
) -> YaraMatches:
    """Look through streams, and tell at most `limit` matches. `progress` is told of each piece before it is scanned."""
    found: dict[tuple[str | int, ...], tuple[int, str]] = {}
    notes: list[str] = []
    try:
        for stream in streams:
            for match in scanner.scan(_counted(stream, progress)):
                about = match.rule, match.namespace, " ".join(match.tags)
                # A string that was cut by a border is found again, longer: the longest counts.
                key = (*about, stream.kind, stream.pid, stream.name, stream.path, match.address, match.string)
                if found.get(key, (-1, ""))[0] < match.length:
                    found[key] = match.length, excerpt(match.data)
                if len(found) > limit:
                    raise _Enough
    except TimeOut as error:
        notes.append(str(error))
    except _Enough:
        notes.append(f"cut after {limit} matches")
    rows = [(*key, *value) for key, value in found.items()][:limit]
    columns = list(zip(*rows, strict=True)) or [()] * (len(YaraMatches.schema) - 1)
    data = {}
    for name, column in zip(YaraMatches.schema, columns, strict=False):
        kind = {"pid": np.int64, "length": np.int64, "address": np.uint64}.get(name)
        data[name] = text(map(str, column)) if kind is None else np.array(column, dtype=kind)
    data["fault"] = text("" for _ in data["rule"])
    return YaraMatches(data, notes)


def excerpt(data: bytes) -> str:
    r"""The first bytes as text, what is not printable ASCII as `\xNN`."""
    shown = "".join(chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in data[:_EXCERPT])
    return shown + "..." if len(data) > _EXCERPT else shown


def _counted(stream: Stream, progress: Callable[[Stream, int], None]) -> Pieces:
    def pieces() -> Iterator[tuple[int, bytes]]:
        for address, data in stream.pieces:
            progress(stream, len(data))
            yield address, data

    return pieces()
