"""Guests' tables, asked in SQL: DuckDB over the columns.

The only file that imports duckdb. Knows which tables and columns a query names, so that only these are read. A query
sees the tables and nothing else: no file, no network, no variable of the program.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any, Final, Protocol

import numpy as np

from vmi_inside.errors import BadQuery, Unsupported
from vmi_inside.table import Column, Table, Text, text
from vmi_inside.tables import TABLES, Reader, Reading
from vmi_inside.types import I64

#: What a query may use, and that it may reach nothing beside the tables.
_CONFIG: Final[dict[str, str | bool | int | float | list[str]]] = {
    "memory_limit": "1GB",
    "threads": "2",
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
}
#: SQL's types for the words of `Table.describe`.
_TYPES: Final = {"text": "VARCHAR", "integer": "BIGINT", "unsigned": "UBIGINT", "boolean": "BOOLEAN", "real": "DOUBLE"}
#: A result of more rows is an error: it would be one of a cross join that nobody wanted.
_ROWS_LIMIT: Final = 5_000_000
_GUEST: Final = "guest"
_INT64: Final = 1 << 63


class Source(Reader, Protocol):
    """What can be asked: a guest, or a snapshot of one."""

    #: What its rows have in the column `guest`.
    name: str

    def reading(self) -> AbstractContextManager[None]:
        """A context in which several tables are read as one operation."""


def query(sources: Source | Iterable[Source], sql: str) -> Table:
    """What a SELECT says of the tables of these guests or snapshots; its columns are the query's.

    The tables are those of `tables.TABLES`, each with a first column `guest`, the guest's name, before its own. Only
    the tables and columns that the query names are read, all of one guest in one operation. Numbers without NULL come
    as NumPy columns, all else as Python objects. Raises `BadQuery` with DuckDB's words, and `Unsupported` when duckdb
    is not installed.
    """
    asked: Sequence[Source] = list(sources) if isinstance(sources, Iterable) else [sources]
    with _connection() as connection:
        tree = _parsed(connection, sql)
        names = _tables(tree)
        _bind(connection, names, sql, tree)
        notes: list[str] = []
        with ExitStack() as stack:
            for source in asked:
                stack.enter_context(source.reading())
            for name in names:
                columns, words = _read(asked, TABLES[name], _columns(tree, name))
                connection.register(name, columns)
                notes += words
        cursor = connection.execute(sql)
        rows = cursor.fetchmany(_ROWS_LIMIT + 1)
        if len(rows) > _ROWS_LIMIT:
            raise BadQuery(f"the result has more than {_ROWS_LIMIT} rows; add a condition or a LIMIT")
        return _result([str(column[0]) for column in cursor.description], rows, notes)


class Known(Table):
    """One row for each table that can be asked."""

    table_name: Text
    column_count: I64
    description: Text


class KnownColumns(Table):
    """One row for each column of each table."""

    table_name: Text
    column_name: Text
    column_type: Text  # SQL's word


def tables() -> Known:
    """The tables that can be asked."""
    return Known({
        "table_name": text(TABLES),
        "column_count": np.array([len(_schema(reading)) for reading in TABLES.values()], dtype=np.int64),
        "description": text(reading.words for reading in TABLES.values()),
        "fault": text("" for _ in TABLES),
    })  # fmt: skip


def schema(*asked: str) -> KnownColumns:
    """The columns of these tables, or of all. Raises `BadQuery` for a table that there is not."""
    for name in asked:
        if name not in TABLES:
            raise BadQuery(f"there is no table {name!r}; there are {', '.join(TABLES)}")
    rows = [(name, column, kind) for name in asked or TABLES for column, kind in _schema(TABLES[name]).items()]
    names = ("table_name", "column_name", "column_type")
    columns = {name: text(row[at] for row in rows) for at, name in enumerate(names)}
    return KnownColumns({**columns, "fault": text("" for _ in rows)})


def _schema(reading: Reading[Any]) -> dict[str, str]:
    own: dict[str, str] = reading.table.describe()
    return {_GUEST: "VARCHAR", **{column: _TYPES.get(word, "VARCHAR") for column, word in own.items()}}


@contextmanager
def _connection() -> Iterator[Any]:
    """A database of its own, in memory; its errors become `BadQuery`."""
    try:
        import duckdb
    except ImportError:
        raise Unsupported("SQL needs duckdb: pip install 'vmi-inside[sql]'") from None
    connection = duckdb.connect(":memory:", config=_CONFIG)
    try:
        connection.execute("SET lock_configuration = true")
        yield connection
    except duckdb.Error as error:
        raise BadQuery(_plain(str(error))) from None
    finally:
        connection.close()


def _plain(words: str) -> str:
    """DuckDB's message in one line, without its picture of the query."""
    return " ".join(words.partition("\n\nLINE")[0].partition("\nLINE")[0].split())


def _parsed(connection: Any, sql: str) -> dict[str, Any]:
    """The query as DuckDB's parser sees it: one SELECT and nothing else."""
    (said,) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchone()
    tree: dict[str, Any] = json.loads(said)
    if tree.get("error"):
        raise BadQuery(_plain(str(tree.get("error_message", "this is no query"))))
    if len(tree["statements"]) != 1:
        raise BadQuery("one query at a time, please")
    return tree


def _nodes(tree: object) -> Iterator[dict[str, Any]]:
    """All objects of the tree; how deep a query may be nested is limited by the parser."""
    work = [tree]
    while work:
        one = work.pop()
        if isinstance(one, dict):
            yield one
            work += one.values()
        elif isinstance(one, list):
            work += one


def _tables(tree: dict[str, Any]) -> list[str]:
    """The guests' tables that the query names. Other names are its own (WITH ...), or wrong: binding tells."""
    return sorted(_named(tree) & TABLES.keys())


def _named(tree: dict[str, Any]) -> set[str]:
    return {str(node.get("table_name", "")).lower() for node in _nodes(tree) if node.get("type") == "BASE_TABLE"}


def _own(tree: dict[str, Any]) -> set[str]:
    """Names that the query itself gives to tables: WITH name AS (...)."""
    maps = (node["cte_map"].get("map") or () for node in _nodes(tree) if isinstance(node.get("cte_map"), dict))
    return {str(entry.get("key", "")).lower() for each in maps for entry in each}


def _bind(connection: Any, names: Iterable[str], sql: str, tree: dict[str, Any]) -> None:
    """Have an unknown table or column told before anything is read."""
    for name in names:
        columns = ", ".join(f'"{column}" {kind}' for column, kind in _schema(TABLES[name]).items())
        connection.execute(f"CREATE TABLE {name} ({columns})")
    unknown = sorted(_named(tree) - TABLES.keys() - _own(tree))
    if unknown:
        near = get_close_matches(unknown[0], TABLES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BadQuery(f"there is no table {unknown[0]!r}; {hint}the tables are {', '.join(TABLES)}")
    connection.execute(f"EXPLAIN {sql}")
    for name in names:
        connection.execute(f"DROP TABLE {name}")


def _columns(tree: dict[str, Any], name: str) -> list[str]:
    """The table's own columns that the query may mean: those that it says anywhere, of whichever table.

    More than it needs does no harm. All of them where it says `*`, or has a table's name in a column's place.
    """
    every = list(TABLES[name].table.schema)
    tables: set[str] = set()
    paths: list[list[str]] = []
    for node in _nodes(tree):
        if {node.get("type"), node.get("class"), node.get("ref_type")} & {"STAR", "PIVOT", "NATURAL", "POSITIONAL"}:
            return every
        if node.get("type") == "BASE_TABLE":
            tables |= {str(node.get(key, "")).lower() for key in ("table_name", "alias")} - {""}
            if node.get("column_name_alias"):
                return every  # processes AS p(a, b, ...): columns by their place
        paths += [[str(word).lower() for word in node.get(key) or ()] for key in ("column_names", "using_columns")]
    if any(len(path) == 1 and path[0] in tables for path in paths):
        return every
    words = {word for path in paths for word in path}
    return [column for column in every if column in words]


def _read(
    sources: Iterable[Source], reading: Reading[Any], wanted: Sequence[str]
) -> tuple[dict[str, Column], list[str]]:
    """One table of all guests, its columns joined; and the notes that reading it left."""
    parts: list[Table] = []
    guests: list[str] = []
    notes: list[str] = []
    for source in sources:
        table: Table = source.read(reading, dict.fromkeys((*wanted, "fault")))
        parts.append(table)
        guests += [source.name] * len(table)
        notes += [f"{source.name}: {reading.name}: {note}" for note in table.notes]
    columns: dict[str, Column] = {_GUEST: text(guests)}
    for name in dict.fromkeys((*wanted, "fault")):
        columns[name] = np.concatenate([part.column(name) for part in parts]) if parts else np.empty(0, dtype=object)
    return columns, notes


def _result(names: Sequence[str], rows: Sequence[Sequence[Any]], notes: Iterable[str]) -> Table:
    """A table of these columns; a name that stands twice gets a number."""
    distinct: list[str] = []
    for name in names:
        number, unique = 0, name
        while unique in distinct:
            number += 1
            unique = f"{name}_{number}"
        distinct.append(unique)
    kind: type[Table] = type("Result", (Table,), {"__annotations__": dict.fromkeys(distinct, Column)})
    columns = list(zip(*rows, strict=True)) or [()] * len(distinct)
    return kind({name: _column(values) for name, values in zip(distinct, columns, strict=True)}, notes)


def _column(values: Sequence[Any]) -> Column:
    """Numbers and truth values as such where all of a column are; else Python objects, None where SQL has NULL."""
    kinds = {type(value) for value in values}
    if kinds in ({bool}, {float}):
        return np.array(values)
    if kinds == {int} and min(values) >= -_INT64 and max(values) < _INT64:
        return np.array(values, dtype=np.int64)
    if kinds == {int} and min(values) >= 0 and max(values) < 2 * _INT64:
        return np.array(values, dtype=np.uint64)
    column = np.empty(len(values), dtype=object)
    column[:] = [value if isinstance(value, (str, int, float, type(None))) else str(value) for value in values]
    return column
