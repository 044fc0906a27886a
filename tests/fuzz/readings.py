"""All that is read of a guest: each table, each check, contents of processes and files, dumps; by name.

Knows what a well-formed table is, whatever the guest says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import IO, Any, Final, cast

import numpy as np

from tests.fuzz.watch import Violation
from vmi_inside.errors import NoFile, NoProcess
from vmi_inside.guest import Guest
from vmi_inside.linux.contents.core_dump import write_core
from vmi_inside.linux.contents.process_contents import ProcessContents
from vmi_inside.linux.integrity.checks import DETECTORS
from vmi_inside.linux.symbols.symbol_file import write_symbols
from vmi_inside.profile.learn import learn
from vmi_inside.table import Table
from vmi_inside.tables import TABLES

Reading = Callable[[Guest], object]

#: numpy's kinds of dtypes for the words of `Table.describe`.
_KINDS: Final = {"text": "O", "integer": "iu", "unsigned": "u", "boolean": "b", "real": "f"}


def well_formed(table: Table) -> None:
    """Raise `Violation` unless columns are of one length and of the types that the class promises, all of it text."""
    words = table.describe()
    for name in table.columns:
        column = table.column(name)
        if len(column) != len(table) or column.ndim != 1:
            raise Violation(f"{type(table).__name__}.{name}: {column.shape} in a table of {len(table)} rows")
        if column.dtype.kind not in _KINDS.get(words[name], "iufbO"):
            raise Violation(f"{type(table).__name__}.{name}: {column.dtype} for {words[name]}")
        if column.dtype == object:
            for value in column.tolist():
                if not isinstance(value, str):
                    raise Violation(f"{type(table).__name__}.{name}: {value!r} is no text")
                value.encode()  # a lone surrogate cannot be written anywhere
    if not all(isinstance(note, str) for note in table.notes):
        raise Violation(f"{type(table).__name__}: notes {table.notes!r}")


def _table(name: str, guest: Guest) -> Table:
    table: Table = guest.read(TABLES[name])
    well_formed(table)
    return table


def _check(name: str, guest: Guest) -> Table:
    found = guest.check([name])
    well_formed(found)
    return found


def _info(guest: Guest) -> Table:
    found = guest.info()
    well_formed(found)
    return found


def _some_processes(guest: Guest) -> Iterator[ProcessContents]:
    """The first processes, and those with most memory."""
    table = guest.processes(("pid", "total_size"))
    for pid in dict.fromkeys([*np.unique(table.pid)[:3].tolist(), *table.sorted("-total_size").pid[:2].tolist()]):
        with suppress(NoProcess):
            yield guest.process_contents(pid)


def _contents(guest: Guest) -> None:
    for contents in _some_processes(guest):
        for part in islice(contents.parts(), 64):
            bytes(part.data)


def _core(guest: Guest) -> None:
    for contents in islice(_some_processes(guest), 2):
        write_core(guest.kernel, contents, cast("IO[bytes]", _Nowhere()))


def _symbols(guest: Guest) -> None:
    write_symbols(guest.kernel, cast("IO[bytes]", _Nowhere()))


def _files(guest: Guest) -> None:
    table = guest.cached_files(("path", "cached"))
    for path in dict.fromkeys(table.sorted("-cached").path[:8].tolist()):
        with suppress(NoFile):
            content = guest.file_content(path)
            content.missing()
            for chunk in islice(content.chunks(), 16):
                bytes(chunk.data)


def _streams(guest: Guest) -> None:
    pieces = (piece for stream in islice(guest.streams(kernel=True), 4) for piece in stream.pieces)
    for _ in islice(pieces, 16):
        pass


def _learn(guest: Guest) -> None:
    learn(guest.kernel.space.memory)


class _Nowhere:
    """A file whose bytes go nowhere: those of hostile sizes would be holes in a real one."""

    def __init__(self) -> None:
        self.at = 0

    def seek(self, to: int, whence: int = 0) -> int:
        if not 0 <= to < 1 << 63 or whence:
            raise Violation(f"seek: to {to:#x}")
        self.at = to
        return to

    def tell(self) -> int:
        return self.at

    def write(self, data: Any) -> int:
        self.at += memoryview(data).nbytes
        return memoryview(data).nbytes

    def truncate(self, size: int) -> int:
        return size


#: Readings by name: tables, checks, and what else there is.
READINGS: Final[dict[str, Reading]] = {
    "info": _info,
    "learn": _learn,
    **{name: partial(_table, name) for name in TABLES},
    **{f"check-{name}": partial(_check, name) for name in DETECTORS if name != "image"},
    "contents": _contents,
    "core": _core,
    "files": _files,
    "symbols": _symbols,
    "streams": _streams,
}
