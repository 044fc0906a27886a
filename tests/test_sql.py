"""Questions in SQL, about guests made of real tables: what is read for them, what comes out, what is refused."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest

from tests.synthetic import LinuxGuest
from vmi_inside import sql
from vmi_inside.errors import BadQuery
from vmi_inside.table import Table
from vmi_inside.tables import TABLES, Reading, Tables


class Source(Tables):
    """A synthetic guest that remembers which tables and columns were asked for."""

    def __init__(self, name: str, guest: LinuxGuest) -> None:
        self.name = name
        self.kernel = guest.kernel
        self.asked: dict[str, set[str]] = {}

    def reading(self) -> AbstractContextManager[None]:
        return self.kernel.operation()

    def read(self, reading: Reading[Any], columns: Iterable[str] | None = None, **options: Any) -> Any:
        wanted = list(reading.table.schema if columns is None else columns)
        self.asked[reading.name] = set(wanted)
        return reading.function(self.kernel, wanted, **options)


def source(name: str = "web01", more: int = 0) -> Source:
    guest = LinuxGuest()
    guest.task(1, "init")
    for pid in range(100, 110 + more):
        task = guest.task(pid, "nginx" if pid % 2 else 'it\'s "x"', 1)
        guest.put("cred", task.cred, uid__val=33)
    guest.finish()
    return Source(name, guest)


@pytest.fixture
def web01() -> Source:
    return source()


def rows(table: Table) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in table]


def test_a_question_and_its_answer(web01: Source) -> None:
    found = sql.query(web01, "select name, count(*) n from processes where uid = 33 group by name order by name")
    assert found.columns == ("name", "n")
    assert rows(found) == [('it\'s "x"', 5), ("nginx", 5)]
    assert found.column("n").dtype == np.int64
    assert web01.asked == {"processes": {"name", "uid", "fault"}}


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("select p.pid from processes as p where p.name like 'n%'", {"pid", "name"}),
        ("select pid from processes order by start_time desc limit 3", {"pid", "start_time"}),
        ("with x as (select pid as y from processes) select sum(y) from x", {"pid"}),
        ("select a.pid from processes a join processes b on a.parent = b.pid", {"pid", "parent"}),
        ("select count(*) from processes", set()),
        ("select PROCESSES.Pid from Processes", {"pid"}),
        ("select pid from processes qualify row_number() over (order by gid) = 1", {"pid", "gid"}),
    ],
)
def test_only_what_a_query_names_is_read(web01: Source, text: str, columns: set[str]) -> None:
    sql.query(web01, text)
    assert web01.asked == {"processes": columns | {"fault"}}


@pytest.mark.parametrize(
    "text",
    [
        "select * from processes",
        "select p from processes p",
        "select p.* from processes p",
        "select columns('p.*') from processes",
        "from processes",
        "select x from processes as t(g, x)",
        "select count(*) from processes natural join threads",
    ],
)
def test_all_columns_where_a_query_may_mean_all(web01: Source, text: str) -> None:
    found = sql.query(web01, text)
    assert len(found)
    assert web01.asked["processes"] == set(TABLES["processes"].table.schema)


def test_several_guests() -> None:
    found = sql.query(
        [source("web01"), source("db01", 5)], "select guest, count(*) n from processes group by guest order by n"
    )
    assert rows(found) == [("web01", 11), ("db01", 16)]
    joined = sql.query(
        [source("web01"), source("db01", 5)],
        "select b.pid from processes a right join processes b on a.pid = b.pid and a.guest = 'web01' "
        "where b.guest = 'db01' and a.pid is null order by 1",
    )
    assert joined.column("pid").tolist() == [110, 111, 112, 113, 114]


def test_a_join_of_two_tables(web01: Source) -> None:
    found = sql.query(web01, "select p.name, t.tid from processes p join threads t using (pid) where p.pid = 1")
    assert rows(found) == [("init", 1)]
    assert web01.asked == {
        "processes": {"pid", "name", "fault"},
        "threads": {"pid", "tid", "name", "fault"},
    }


def test_values_as_they_are(web01: Source) -> None:
    found = sql.query(
        web01,
        "select null as n, true as b, 1.5::double as d, sum(address) as h, count(*), count(*), 'x' as columns, "
        "18446744073709551615::ubigint as u, [1, 2] as l, date '2026-01-02' as t, 1.5 as decimal from processes",
    )
    assert found.columns == (
        "n", "b", "d", "h", "count_star()", "count_star()_1", "columns", "u", "l", "t", "decimal",
    )  # fmt: skip
    (row,) = found.to_dicts()
    assert row["n"] is None
    assert (row["b"], row["d"], row["columns"], row["u"]) == (True, 1.5, "x", (1 << 64) - 1)
    assert isinstance(row["h"], int)
    assert row["h"] > 1 << 64
    assert (row["l"], row["t"], row["decimal"]) == ("[1, 2]", "2026-01-02", "1.5")
    assert len(next(iter(found))) == 11
    assert found.column("u").dtype == np.uint64


def test_an_empty_answer(web01: Source) -> None:
    found = sql.query(web01, "select pid, name from processes where pid < 0")
    assert (len(found), found.columns) == (0, ("pid", "name"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("selekt 1", "syntax error"),
        ("", "one query at a time"),
        ("select 1; select 2", "one query at a time"),
        ("select pid from proceses", "did you mean processes"),
        ("select pidd from processes", "pidd"),
        ("drop table processes", "SELECT"),
        ("copy (select 1) to '/tmp/x'", "SELECT"),
        ("attach '/tmp/x.db'", "SELECT"),
        ("select * from '/etc/passwd'", "/etc/passwd"),
        ("select * from read_csv('/etc/passwd')", "disabled"),
        ("select * from read_text('/etc/passwd')", "disabled"),
        ("select a.pid from processes a, processes b, processes c, processes d, processes e, processes f, "
         "processes g", "LIMIT"),
    ],
)  # fmt: skip
def test_what_is_refused(web01: Source, text: str, words: str) -> None:
    with pytest.raises(BadQuery) as caught:
        sql.query(web01, text)
    assert words.lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)


def test_no_variable_of_the_program_is_a_table(web01: Source) -> None:
    secret = {"a": np.arange(3)}
    with pytest.raises(BadQuery, match="secret"):
        sql.query(web01, "select * from secret")
    assert len(secret) == 1


def test_nothing_is_read_for_a_query_that_makes_no_sense(web01: Source) -> None:
    with pytest.raises(BadQuery):
        sql.query(web01, "select pid, nix from processes")
    assert web01.asked == {}


def test_what_can_be_asked() -> None:
    known = sql.tables()
    assert known.column("table_name").tolist() == list(TABLES)
    assert all(known.column("description"))
    columns = sql.schema("processes")
    told = dict(zip(columns.column("column_name"), columns.column("column_type"), strict=True))
    assert list(told)[:2] == ["guest", "pid"]
    assert (told["pid"], told["name"], told["address"], told["kernel_thread"]) == (
        "BIGINT", "VARCHAR", "UBIGINT", "BOOLEAN",
    )  # fmt: skip
    assert len(sql.schema()) == sum(known.column("column_count").tolist())
    with pytest.raises(BadQuery, match="processes"):
        sql.schema("nix")


def test_every_table_says_its_columns_types() -> None:
    for name, reading in TABLES.items():
        assert set(reading.table.describe().values()) <= {"text", "integer", "unsigned", "boolean", "real"}, name
