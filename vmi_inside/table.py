"""Results: equal-length columns with names, and rows as light objects over them.

Knows nothing of guests. A table's class lists its columns as annotations, in order; the columns are NumPy arrays.
"""

from __future__ import annotations

import inspect
from collections import namedtuple
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self, get_type_hints

import numpy as np
from numpy.typing import NDArray

from vmi_inside.errors import Unsupported
from vmi_inside.types import Mask

#: A column of Python strings (dtype object).
Text = NDArray[np.object_]
Column = NDArray[Any]


class Table:
    """Columns of equal length. Iterate it for rows, take `table.pid` for a whole column.

    A table may have been asked for some of its columns only; `columns` names those that are there. `fault` (object
    dtype) says of each row what could not be read or believed, and is empty for a whole row. `notes` says the same
    of the table: where a walk was cut short.
    """

    fault: Text
    schema: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = [name for name in inspect.get_annotations(cls) if name not in ("schema", "notes")]
        cls.schema = (*(name for name in cls.schema if name != "fault"), *own, "fault")

    def __init__(self, columns: Mapping[str, Column], notes: Iterable[str] = ()) -> None:
        lengths = {len(column) for column in columns.values()}
        unknown = columns.keys() - set(self.schema)
        if len(lengths) > 1 or unknown:
            raise ValueError(f"{type(self).__name__}: columns of lengths {lengths}, unknown {sorted(unknown)}")
        self._data = {name: columns[name] for name in self.schema if name in columns}
        self.notes = tuple(dict.fromkeys(notes))

    def __getattr__(self, name: str) -> Column:
        data: dict[str, Column] = self.__dict__.get("_data", {})
        if name in data:
            return data[name]
        if name in type(self).schema:
            raise AttributeError(f"column {name!r} was not asked for; there are {', '.join(data)}")
        raise AttributeError(f"{type(self).__name__} has no column {name!r}; it has {', '.join(type(self).schema)}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self)} rows of {', '.join(self.columns)}>"

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns that are there, in the table's order."""
        return tuple(self._data)

    def column(self, name: str) -> Column:
        """One column by name. Raises `AttributeError` with the names there are."""
        return self._data[name] if name in self._data else self.__getattr__(name)

    def __len__(self) -> int:
        return next((len(column) for column in self._data.values()), 0)

    def __iter__(self) -> Iterator[Any]:
        row = namedtuple(type(self).__name__ + "Row", self._data, rename=True)  # type: ignore[misc]  # fields known at run time
        return map(row._make, zip(*(column.tolist() for column in self._data.values()), strict=True))

    def __getitem__(self, index: int) -> Any:
        """One row, as iteration gives it."""
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"row {index} of {size}")
        return next(iter(self.where(np.array([index % size]))))

    def where(self, which: Mask | NDArray[np.intp] | slice) -> Self:
        """The rows of a boolean mask (n,), of a slice, or of an array of row numbers, in that order."""
        return type(self)({name: column[which] for name, column in self._data.items()}, self.notes)

    def select(self, *names: str) -> Self:
        """These columns only. Raises `AttributeError` for a column that is not there."""
        return type(self)({name: self.column(name) for name in names}, self.notes)

    def sorted(self, *names: str) -> Self:
        """Rows ordered by these columns, the first counting most; a name that starts with `-` sorts downwards."""
        order = np.arange(len(self))
        for name in reversed(names):
            key = self.column(name.removeprefix("-"))[order]
            _, rank = np.unique(key, return_inverse=True)
            order = order[np.argsort(-rank if name.startswith("-") else rank, kind="stable")]
        return self.where(order)

    def to_dicts(self) -> list[dict[str, Any]]:
        """A list of dicts, one a row, of plain Python values."""
        names = self.columns
        values = zip(*(column.tolist() for column in self._data.values()), strict=True)
        return [dict(zip(names, row, strict=True)) for row in values]

    def to_arrow(self) -> Any:
        """A `pyarrow.Table`. Raises `Unsupported` when pyarrow is not installed."""
        try:
            import pyarrow
        except ImportError:
            raise Unsupported("to_arrow() needs pyarrow: pip install 'vmi-inside[arrow]'") from None
        return pyarrow.table({name: _arrow(pyarrow, column) for name, column in self._data.items()})

    def to_polars(self) -> Any:
        """A `polars.DataFrame`. Raises `Unsupported` when polars is not installed."""
        try:
            import polars
        except ImportError:
            raise Unsupported("to_polars() needs polars: pip install 'vmi-inside[polars]'") from None
        return polars.DataFrame({name: column.tolist() for name, column in self._data.items()})

    @classmethod
    def check(cls, names: Iterable[str]) -> None:
        """Raise `AttributeError` for a name that is no column of this table, with the names there are."""
        for name in names:
            if name not in cls.schema:
                raise AttributeError(f"{cls.__name__} has no column {name!r}; it has {', '.join(cls.schema)}")

    @classmethod
    def describe(cls) -> dict[str, str]:
        """Column names and their types in words, in order."""
        words = {"NDArray[np.object_]": "text"}
        hints = get_type_hints(cls)
        return {name: words.get(str(hints[name]), _word(hints[name])) for name in cls.schema}


def text(values: Iterable[str]) -> Text:
    """A text column of these strings."""
    listed = list(values)
    column = np.empty(len(listed), dtype=object)
    column[:] = listed
    return column


class Faults:
    """Gathers what is wrong with each of `n` rows, in words."""

    def __init__(self, size: int) -> None:
        self._words: list[tuple[Mask, str]] = []
        self._size = size

    def mark(self, which: Mask, word: str) -> None:
        """Mark rows (n,) bool with a word or two on what is wrong."""
        if which.any():
            self._words.append((which.copy(), word))

    def column(self) -> Text:
        """The `fault` column: empty, or the words that apply, joined by `; `."""
        out = np.full(self._size, "", dtype=object)
        for which, word in self._words:
            for row in np.flatnonzero(which).tolist():
                if word not in out[row].split("; "):
                    out[row] = f"{out[row]}; {word}" if out[row] else word
        return out


def _arrow(pyarrow: Any, column: Column) -> Any:
    return pyarrow.array(column.tolist(), pyarrow.string()) if column.dtype == object else pyarrow.array(column)


def _word(hint: object) -> str:
    shown = str(hint)
    for key, word in (
        ("object", "text"),
        ("uint64", "unsigned"),
        ("int64", "integer"),
        ("bool", "boolean"),
        ("float64", "real"),
    ):
        if key in shown:
            return word
    return shown
