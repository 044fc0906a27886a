"""Strings and YARA rules over bytes in pieces: what lies across borders is found, once, and whole."""

from __future__ import annotations

import builtins
import random
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi_inside.errors import Unsupported
from vmi_inside.linux.contents.streams import Stream
from vmi_inside.linux.contents.yara_matches import YaraMatches, excerpt, yara_matches
from vmi_inside.scan import strings as scan_strings
from vmi_inside.scan import yara
from vmi_inside.scan.strings import strings
from vmi_inside.scan.yara import BadRules, Scanner, TimeOut, sources

Piece = tuple[int, bytes]


def cut(data: bytes, at: list[int], base: int = 0x1000) -> Iterator[Piece]:
    edges = sorted({0, len(data), *(each % (len(data) + 1) for each in at)})
    for start, end in pairwise(edges):
        yield base + start, data[start:end]


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=12), st.text("ab ~\t", max_size=12).map(str.encode),
                       st.text("xyz", max_size=9).map(lambda text: text.encode("utf-16-le"))), max_size=12),
    st.lists(st.integers(0, 200), max_size=8),
    st.integers(1, 6),
)  # fmt: skip
def test_pieces_make_no_difference(parts: list[bytes], borders: list[int], minimum: int) -> None:
    data = b"".join(parts)
    found = [(each.address - 0x1000, each.text) for each in strings(cut(data, borders), minimum, ("ascii",))]
    assert found == [(m.start(), m[0].decode()) for m in re.finditer(rb"[\x20-\x7e\t]{%d,}" % minimum, data)]
    wide = [(each.address - 0x1000, each.text) for each in strings(cut(data, borders), minimum, ("utf16",))]
    pattern = rb"(?:[\x20-\x7e\t]\x00){%d,}" % minimum
    assert wide == [(m.start(), m[0].decode("utf-16-le")) for m in re.finditer(pattern, data)]


def test_strings_of_both_encodings() -> None:
    data = b"\0\1plain text\0\0" + "wide text".encode("utf-16-le") + b"\0\0\xffend"
    found = [(each.encoding, each.text) for each in strings([(0, data)], 4)]
    assert ("ascii", "plain text") in found
    assert ("utf16", "wide text") in found
    with pytest.raises(ValueError, match="ebcdic"):
        list(strings([(0, data)], 4, ("ebcdic",)))


def test_strings_end_where_pieces_do_not_adjoin() -> None:
    assert [each.text for each in strings([(0, b"left"), (4, b"half"), (100, b"right")], 4)] == ["lefthalf", "right"]
    assert [each.address for each in strings([(10, b"abc"), (13, b"def\0")], 4)] == [10]


def test_endless_strings_are_given_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_strings, "LENGTH_LIMIT", 100)
    pieces = [(at, b"a" * 64) for at in range(0, 64 * 100, 64)]
    found = list(strings(pieces, 4, ("ascii",)))
    assert sum(len(each.text) for each in found) > 6300
    assert max(len(each.text) for each in found) <= 164
    wide = [(at, b"b\0" * 32) for at in range(0, 64 * 100, 64)]
    assert sum(len(each.text) for each in strings(wide, 4, ("utf16",))) > 3150


RULES = """
rule word : tag1 tag2 { strings: $w = "needle" $x = { 01 02 [2-4] 03 } condition: any of them }
rule both { strings: $a = "first" $b = "second" condition: all of them }
rule large { condition: filesize > 10 }
"""


def scanner(text: str = RULES, timeout: float = 0) -> Scanner:
    return Scanner([("test.yar", text)], timeout)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 400), st.lists(st.integers(0, 500), max_size=6))
def test_a_match_across_borders_is_found_once(where: int, borders: list[int]) -> None:
    noise = random.Random(where).randbytes(500).replace(b"n", b"m")
    data = noise[:where] + b"needle" + noise[where:]
    found = [each for each in scanner().scan(cut(data, borders)) if each.string == "$w"]
    assert [(each.address - 0x1000, each.length, each.data) for each in found] == [(where, 6, b"needle")]
    assert found[0].tags == ("tag1", "tag2")
    assert found[0].namespace == "test.yar"


def test_no_match_across_what_does_not_adjoin() -> None:
    assert [each.rule for each in scanner().scan([(0, b"nee"), (4, b"dle")])] == []
    assert [each.rule for each in scanner().scan([(0, b"nee"), (3, b"dle")])] == ["word"]


def test_matches_longer_than_the_overlap_and_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yara, "OVERLAP", 8)
    data = b"needle." * 1000
    found = [each.address for each in scanner().scan(cut(data, list(range(0, 7000, 97)), 0)) if each.string == "$w"]
    assert found == list(range(0, 7000, 7))


def test_rules_without_strings_are_told_once() -> None:
    found = [each for each in scanner().scan(cut(bytes(100), [30, 60])) if each.rule == "large"]
    assert [(each.string, each.address, each.length) for each in found] == [("", 0x1000, 0)]


def test_bad_rules_are_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yar"
    bad.write_text("rule a {\n  condition: nosuch\n}")
    with pytest.raises(BadRules) as error:
        Scanner(sources([bad]))
    assert str(error.value).startswith(f"{bad}:2:14: ")
    assert "nosuch" in str(error.value)
    assert "\n" not in str(error.value)
    bad.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadRules, match="no rules"):
        Scanner(sources([bad]))
    with pytest.raises(BadRules, match="No such file"):
        Scanner(sources([tmp_path / "none.yar"]))


def test_rules_of_several_files_may_have_the_same_name() -> None:
    rule = 'rule same { strings: $a = "%s" condition: $a }'
    both = Scanner([("one.yar", rule % "first"), ("two.yar", rule % "second")])
    found = list(both.scan([(0, b"second first")]))
    assert sorted((each.namespace, each.address) for each in found) == [("one.yar", 7), ("two.yar", 0)]


def test_time_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    late = scanner(timeout=0.001)
    with pytest.raises(TimeOut):
        list(late.scan((at, bytes(1 << 20)) for at in range(0, 1 << 40, 1 << 20)))
    assert late.timed_out


def test_without_yara(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def importing(name: str, *args: object, **kwargs: object) -> object:
        if name == "yara_x":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(Unsupported, match=r"vmi-inside\[yara\]"):
        scanner()


def stream(kind: str, pid: int, path: str, data: bytes) -> Stream:
    return Stream(kind, pid, f"name{pid}", path, iter([(0x1000, data)]))


def test_the_table_of_matches() -> None:
    streams = [
        stream("process", 1, "[heap]", b"a needle\x01\x02ab\x03"), stream("process", 2, "", b"nothing"),
        stream("file", 0, "/etc/x", b"needle needle"),
    ]  # fmt: skip
    told: list[int] = []
    table = yara_matches(streams, scanner(), progress=lambda one, size: told.append(size))
    assert table.schema == YaraMatches.schema
    rows = [(row.rule, row.kind, row.pid, row.name, row.path, row.address, row.string, row.data) for row in table]
    assert rows[:2] == [
        ("word", "process", 1, "name1", "[heap]", 0x1002, "$w", "needle"),
        ("word", "process", 1, "name1", "[heap]", 0x1008, "$x", "\\x01\\x02ab\\x03"),
    ]
    assert [row[5] for row in rows if row[0] == "word" and row[1] == "file"] == [0x1000, 0x1007]
    assert len(told) == 3
    few = yara_matches([stream("file", 0, "/etc/x", b"needle" * 100)], scanner(), limit=10)
    assert (len(few), few.notes) == (10, ("cut after 10 matches",))
    assert len(yara_matches([], scanner())) == 0
    assert yara_matches([stream("file", 0, "", b"needle")], scanner(timeout=1e-9)).notes == ("cut after 1e-09 seconds",)


def test_excerpts_are_harmless() -> None:
    assert excerpt(b"a\\b\x1b\n\xff") == "a\\x5cb\\x1b\\x0a\\xff"
    assert excerpt(b"x" * 100) == "x" * 64 + "..."
