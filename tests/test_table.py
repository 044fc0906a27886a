from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from vmi_inside.errors import Unsupported
from vmi_inside.linux.network.routes import Routes
from vmi_inside.table import Faults, Table, Text, text
from vmi_inside.types import I64, U64


class Animals(Table):
    """Some animals."""

    legs: I64
    name: Text
    tame: np.ndarray[tuple[int], np.dtype[np.bool_]]
    address: U64


@pytest.fixture
def animals() -> Animals:
    return Animals(
        {
            "name": text(["cat", "ant", "hen", "dog"]),
            "legs": np.array([4, 6, 2, 4]),
            "tame": np.array([True, False, True, True]),
            "address": np.array([1, 2, 3, (1 << 64) - 1], dtype=np.uint64),
            "fault": text(["", "unseen", "", ""]),
        },
        ["cut", "cut", "torn"],
    )


def test_columns_and_schema(animals: Animals) -> None:
    assert Animals.schema == animals.columns == ("legs", "name", "tame", "address", "fault")
    assert animals.legs.tolist() == [4, 6, 2, 4]
    assert animals.column("name") is animals.name
    assert animals.notes == ("cut", "torn")
    assert len(animals) == 4
    assert repr(animals) == "<Animals: 4 rows of legs, name, tame, address, fault>"
    assert animals.legs[animals.tame].tolist() == [4, 2, 4]


def test_rows_are_plain_python(animals: Animals) -> None:
    rows = list(animals)
    assert [type(value) for value in rows[0]] == [int, str, bool, int, str]
    assert rows[3].name == "dog"
    assert rows[3].address == (1 << 64) - 1
    assert animals[1] == rows[1] == animals[-3]
    assert [type(value) for value in animals.to_dicts()[1].values()] == [int, str, bool, int, str]
    assert animals.to_dicts()[1] == {"legs": 6, "name": "ant", "tame": False, "address": 2, "fault": "unseen"}
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"row {index} of 4"):
            animals[index]


def test_where(animals: Animals) -> None:
    tame = animals.where(animals.tame)
    assert isinstance(tame, Animals)
    assert tame.name.tolist() == ["cat", "hen", "dog"]
    assert tame.notes == animals.notes
    assert animals.where(np.array([3, 0, 3])).name.tolist() == ["dog", "cat", "dog"]


def test_sorted(animals: Animals) -> None:
    assert animals.sorted("name").name.tolist() == ["ant", "cat", "dog", "hen"]
    assert animals.sorted("-legs", "name").name.tolist() == ["ant", "cat", "dog", "hen"]
    assert animals.sorted("legs", "-name").name.tolist() == ["hen", "dog", "cat", "ant"]
    assert animals.sorted("-address").address.tolist() == [(1 << 64) - 1, 3, 2, 1]
    assert animals.sorted("tame").name.tolist() == ["ant", "cat", "hen", "dog"], "stable"
    assert animals.sorted().name.tolist() == animals.name.tolist()


def test_select(animals: Animals) -> None:
    some = animals.select("name", "legs")
    assert some.columns == ("legs", "name"), "in the table's order"
    with pytest.raises(AttributeError, match="column 'tame' was not asked for; there are legs, name"):
        _ = some.tame
    with pytest.raises(AttributeError, match="column 'tame' was not asked for"):
        some.select("tame")
    assert next(iter(some))._fields == ("legs", "name")


def test_names_that_are_wrong(animals: Animals) -> None:
    for wrong in (
        lambda: animals.wings,
        lambda: animals.column("wings"),
        lambda: animals.select("wings"),
        lambda: animals.sorted("wings"),
    ):
        with pytest.raises(
            AttributeError, match="Animals has no column 'wings'; it has legs, name, tame, address, fault"
        ):
            wrong()
    with pytest.raises(AttributeError, match="has no column '__len'"):
        getattr(animals, "__len")


def test_columns_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="unknown \\['wings'\\]"):
        Animals({"wings": np.arange(3)})
    with pytest.raises(ValueError, match="lengths"):
        Animals({"legs": np.arange(3), "name": text(["x"])})


def test_empty() -> None:
    for table in (Animals({}), Animals({"legs": np.empty(0, np.int64), "name": text([])})):
        assert len(table) == 0
        assert list(table) == []
        assert table.to_dicts() == []
        assert len(table.sorted(*table.columns)) == 0
    assert len(Animals({"legs": np.arange(0)}).where(np.zeros(0, dtype=bool))) == 0


def test_describe() -> None:
    assert Animals.describe() == {
        "legs": "integer", "name": "text", "tame": "boolean", "address": "unsigned", "fault": "text",
    }  # fmt: skip


def test_a_table_of_a_table_adds_columns() -> None:
    class Birds(Animals):
        wings: I64

    assert Birds.schema == ("legs", "name", "tame", "address", "wings", "fault")


def test_arrow(animals: Animals) -> None:
    pyarrow: Any = pytest.importorskip("pyarrow")
    table = animals.to_arrow()
    assert table.schema.names == list(animals.columns)
    assert table.schema.field("address").type == pyarrow.uint64()
    assert table.schema.field("name").type == pyarrow.string()
    assert table.to_pylist() == animals.to_dicts()
    assert Animals({"name": text([])}).to_arrow().schema.field("name").type == pyarrow.string()


def test_polars(animals: Animals) -> None:
    pytest.importorskip("polars")
    assert animals.to_polars().to_dicts() == animals.to_dicts()


@pytest.mark.parametrize(("method", "module"), [("to_arrow", "pyarrow"), ("to_polars", "polars")])
def test_without_the_other_library(animals: Animals, monkeypatch: pytest.MonkeyPatch, method: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Unsupported, match=rf"{method}\(\) needs {module}: pip install"):
        getattr(animals, method)()


def test_text_keeps_strings_of_any_kind() -> None:
    assert text(["ab", "cd"]).shape == (2,)
    assert text(iter(["x"])).tolist() == ["x"]
    assert text([]).dtype == object


def test_faults_are_words_once_each_in_order() -> None:
    faults = Faults(3)
    which = np.array([True, False, True])
    faults.mark(which, "one")
    which[:] = False  # the mask was copied
    faults.mark(np.array([True, True, False]), "two")
    faults.mark(np.array([True, False, False]), "one")
    faults.mark(np.zeros(3, dtype=bool), "never")
    assert faults.column().tolist() == ["one; two", "two", "one"]
    assert Faults(0).column().tolist() == []


def test_a_table_without_rows_has_its_columns() -> None:
    table = Routes.empty(["family", "netmask", "pointer"], ["why"])
    assert (table.columns, len(table), table.notes) == (("family", "netmask", "pointer", "fault"), 0, ("why",))
    assert (table.netmask.dtype, table.pointer.dtype, table.family.dtype) == (np.int64, np.uint64, object)
    assert table.to_dicts() == []
