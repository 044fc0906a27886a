"""Snapshots in files: one JSON object, gzipped when the file's name ends in `.gz`.

Knows the format: `{"format": "vmi-inside snapshot", "version": 1, "name", "taken", "took", "paused", "whole", "notes",
"tables": {name: {"columns": {column: [...]}, "notes": [...]}}}`. A file is as little to be trusted as a guest: what
does not fit is an error in one line.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from vmi_inside.errors import BadSnapshot, NoSuchDomain, PermissionDenied, VmiError
from vmi_inside.snapshot import Snapshot
from vmi_inside.table import Column, Table, text
from vmi_inside.tables import TABLES

_FORMAT: Final = "vmi-inside snapshot"
_VERSION: Final = 1
#: Bytes of JSON that are read at the most.
_LIMIT: Final = 1 << 30
_DTYPES: Final = {"integer": np.int64, "unsigned": np.uint64, "boolean": np.bool_, "real": np.float64}
_KINDS: Final = {"integer": int, "unsigned": int, "boolean": bool, "real": float, "text": str}


def save(snapshot: Snapshot, path: Path, *, replace: bool = False) -> None:
    """Write a snapshot; the file is there whole, or not at all, and readable by its owner only.

    Raises `VmiError` when there is a file already and `replace` was not asked for, and when it cannot be written.
    """
    told = {
        "format": _FORMAT,
        "version": _VERSION,
        "name": snapshot.name,
        "taken": snapshot.taken,
        "took": snapshot.took,
        "paused": snapshot.paused,
        "whole": snapshot.whole,
        "notes": list(snapshot.notes),
        "tables": {
            name: {
                "columns": {column: table.column(column).tolist() for column in table.columns},
                "notes": list(table.notes),
            }
            for name, table in snapshot.tables.items()
        },
    }
    raw = json.dumps(told, separators=(",", ":")).encode()
    if path.name.endswith(".gz"):
        raw = gzip.compress(raw, 6)
    try:
        descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(raw)
            if replace:
                os.replace(scratch, path)
            else:
                os.link(scratch, path)
        finally:
            if os.path.lexists(scratch):
                os.unlink(scratch)
    except FileExistsError:
        raise VmiError(f"{path}: there is a file of that name already") from None
    except OSError as error:
        raise VmiError(f"{path}: cannot be written: {error.strerror}") from None


def load(path: Path) -> Snapshot:
    """Read a snapshot back. Raises `NoSuchDomain` (no such file), `PermissionDenied`, `BadSnapshot`."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.open(file) if packed else file as source:
                raw = source.read(_LIMIT + 1)
    except FileNotFoundError:
        raise NoSuchDomain(f"{path}: no such file") from None
    except PermissionError:
        raise PermissionDenied(f"{path}: permission denied") from None
    except (OSError, EOFError) as error:
        raise BadSnapshot(f"{path}: cannot be read: {error}") from None
    if len(raw) > _LIMIT:
        raise BadSnapshot(f"{path}: larger than a snapshot can be")
    try:
        told = json.loads(raw)
        if told["format"] != _FORMAT or told["version"] != _VERSION:
            raise BadSnapshot(f"{path}: a snapshot of another version")
        return Snapshot(
            str(told["name"]),
            {name: _table(name, one) for name, one in told["tables"].items() if name in TABLES},
            taken=float(told["taken"]),
            took=float(told["took"]),
            paused=float(told["paused"]),
            whole=bool(told["whole"]),
            notes=map(str, told["notes"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BadSnapshot(f"{path}: no snapshot, or a damaged one ({type(error).__name__}: {error})") from None


def _table(name: str, told: dict[str, Any]) -> Table:
    """A table of what the file says; columns that this release does not know are left out."""
    kind: type[Table] = TABLES[name].table
    words = kind.describe()
    columns = {column: _column(words[column], values) for column, values in told["columns"].items() if column in words}
    if "fault" not in columns:
        raise ValueError(f"{name} has no column fault")
    return kind(columns, map(str, told["notes"]))


def _column(word: str, values: list[Any]) -> Column:
    if any(type(value) is not _KINDS[word] for value in values):
        raise ValueError(f"a value that is no {word}")
    return text(values) if word == "text" else np.array(values, dtype=_DTYPES[word])
