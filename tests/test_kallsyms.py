"""Symbol tables, written as scripts/kallsyms.c writes them in each of its layouts, and read back."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi_inside.drivers.mapped import MappedMemory
from vmi_inside.memory import Run
from vmi_inside.profile import kallsyms
from vmi_inside.profile.symbols import Symbols

BASE = 0xFFFF_FFFF_A9E0_0000
LAYOUTS = ("5.10", "6.1", "6.4", "6.15", "7.0")
_ALPHABET = string.ascii_letters + string.digits + "_."
#: Byte values that no symbol uses stand for longer pieces: the first and the longest are worth testing.
_PIECES = {
    0: "sys_",
    1: "__x64_",
    2: "a_token_that_is_longer_than_sixteen_bytes",
    3: "_t",
    4: "init",
    200: "locked",  # with which the token table does not end at a multiple of 8
    255: "ed",
}


@dataclass(frozen=True)
class Line:
    """One symbol as /proc/kallsyms shows it; `value` is relative to `_text` unless the symbol is absolute."""

    name: str
    type: str
    value: int
    absolute: bool = False


def compress(text: str) -> bytes:
    """The tokens of a name, its type letter first; long pieces where they fit."""
    out, at = bytearray(), 0
    pieces = sorted(_PIECES.items(), key=lambda item: -len(item[1]))
    while at < len(text):
        code, piece = next(((c, p) for c, p in pieces if text.startswith(p, at)), (ord(text[at]), text[at]))
        out.append(code)
        at += len(piece)
    return bytes(out)


def encode(lines: list[Line], layout: str = "6.1", *, at: int = 0, base: int = BASE) -> tuple[bytes, dict[str, int]]:
    """The tables as they lie `at` bytes (a multiple of 8) behind `_text`, and where among them each begins."""
    tokens = [_PIECES.get(code, chr(code) if chr(code) in _ALPHABET else "") for code in range(256)]
    table = index = b""
    for token in tokens:
        index += len(table).to_bytes(2, "little")
        table += token.encode() + b"\0"
    names = markers = b""
    for row, line in enumerate(lines):
        if row % 256 == 0:
            markers += len(names).to_bytes(4, "little")
        data = compress(line.type + line.name)
        size = len(data)
        names += bytes((size,)) if size < 128 else bytes((size & 127 | 128, size >> 7))
        names += data

    def offsets(place: int) -> bytes:
        out = b""
        for row, line in enumerate(lines):
            value = line.value
            if layout == "7.0":
                value -= place + 4 * row
            elif layout != "6.15" and not line.absolute:
                value = -1 - value
            out += (value & 0xFFFF_FFFF).to_bytes(4, "little")
        return out

    out = b""
    places = {}

    def put(name: str, data: bytes) -> None:
        nonlocal out
        out += bytes(-(at + len(out)) % (4 if layout == "7.0" else 8))
        places[f"kallsyms_{name}"] = len(out)
        out += data

    count = len(lines).to_bytes(4, "little")
    seqs = b"".join(row.to_bytes(3, "big") for row in range(len(lines)))
    late = layout in ("6.4", "6.15", "7.0")
    if not late:
        put("offsets", offsets(0))
        put("relative_base", base.to_bytes(8, "little"))
    put("num_syms", count)
    put("names", names)
    put("markers", markers)
    if layout == "6.1":
        put("seqs_of_names", seqs)
    put("token_table", table)
    put("token_index", index)
    if late:
        put("offsets", offsets(at + len(out)))
    if layout in ("6.4", "6.15"):
        put("relative_base", base.to_bytes(8, "little"))
    if late:
        put("seqs_of_names", seqs)
    places.pop("kallsyms_seqs_of_names", None)  # nobody asks where these are
    return out, places


def some_lines(count: int, *, absolute: int = 0) -> list[Line]:
    lines = [Line(f"percpu_{row}", "A", 64 * row, True) for row in range(absolute)]
    lines.append(Line("_text", "T", 0))
    lines += [Line(f"sys_call_init{row % 97}_{row}", "tTdDbr"[row % 6], 16 * row) for row in range(1, count)]
    return lines


def decode(raw: bytes, before: int = 4096) -> kallsyms.Kallsyms | None:
    """Decode tables that stand `before` bytes behind the start of an image, with other data around them."""
    noise = np.random.default_rng(1).integers(1, 255, before, np.uint8).tobytes()
    image = noise + raw + b"\xa5" * 4096
    memory = MappedMemory([(Run(0, len(image)), np.frombuffer(image, np.uint8))])
    return next(kallsyms.find(memory, 0), None)


def lines_of(symbols: Symbols) -> list[Line]:
    return [Line(one.name, one.type, one.value, one.fixed) for one in (symbols[row] for row in range(len(symbols)))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1000, 1024, 1025, 5000])
def test_every_layout_gives_back_all_symbols(layout: str, count: int) -> None:
    lines = some_lines(count, absolute=0 if layout in ("6.15", "7.0") else 40)
    raw, places = encode(lines, layout, at=4096)
    found = decode(raw)
    assert found is not None
    assert lines_of(found.symbols) == lines
    assert found.tables == {name: 4096 + at for name, at in places.items()}
    if layout == "7.0":
        assert found.origin is None
        assert found.place == 4096 + places["kallsyms_offsets"]
    else:
        assert found.origin == BASE
        assert found.place is None


@settings(max_examples=40, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    names=st.lists(
        st.one_of(
            st.text(_ALPHABET, min_size=1, max_size=12),
            st.text(_ALPHABET, min_size=100, max_size=300),
            st.lists(st.sampled_from(sorted(_PIECES.values())), min_size=1, max_size=9).map("".join),
        ),
        min_size=8,
        max_size=40,
    ),
    step=st.integers(0, 5000),
)
def test_any_names_survive(layout: str, names: list[str], step: int) -> None:
    # Blocks need 512 bytes of names to be taken for ones, as real ones always have.
    lines = [Line("_text", "T", 0)]
    lines += [Line(f"{names[row % len(names)]}{row // 7}", "t", step * row) for row in range(1, 1100)]
    found = decode(encode(lines, layout, at=4096)[0])
    assert found is not None
    assert lines_of(found.symbols) == lines


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_symbols_at_one_address(layout: str) -> None:
    lines = some_lines(1100)
    lines[500] = Line("alias", "t", lines[499].value)
    found = decode(encode(lines, layout, at=4096)[0])
    assert found is not None
    assert lines_of(found.symbols) == lines


def test_names_of_every_length() -> None:
    lines = [Line("_text", "T", 0)]
    lines += [Line("y" * (row // 2 * 7 % 520 + 1 if row % 2 else 1), "t", row) for row in range(1, 1100)]
    found = decode(encode(lines, at=4096)[0])
    assert found is not None
    assert lines_of(found.symbols) == lines


def test_no_token_is_longer_than_eight_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are stored eight bytes at a time: here once is enough."""
    monkeypatch.delitem(_PIECES, 2)
    lines = some_lines(1100)
    found = decode(encode(lines, at=4096)[0])
    assert found is not None
    assert lines_of(found.symbols) == lines
    assert found.symbols.rows(lines[-1].name) == [1099]


@pytest.mark.parametrize("more", range(8))
def test_names_end_anywhere_before_the_markers(more: int) -> None:
    lines = [*some_lines(1100), Line("y" * (more + 1), "t", 1 << 20)]
    lines[5] = Line("ocked", "l", 80)  # type and name are one token
    found = decode(encode(lines, at=4096)[0])
    assert found is not None
    assert lines_of(found.symbols) == lines


def test_a_large_table() -> None:
    """With more than 64 KiB between markers and tokens, and than 128 KiB of names in the blocks."""
    lines = some_lines(25_000)
    found = decode(encode(lines, at=4096)[0])
    assert found is not None
    assert found.symbols.find("_text") == 0
    assert lines_of(found.symbols) == lines


@pytest.mark.parametrize("false", [1, 2])
def test_what_looks_like_a_table_does_not_hide_one(false: int) -> None:
    lines = some_lines(1100)
    # Bytes of names that read as a number of symbols that would fit, at one multiple of four in each of these names.
    lines[1:1] = [Line("__x64_initsys_sys_a" * 4, "t", 1)] * false
    assert compress(lines[1].name) == b"\x01\x04\0\0a" * 4
    raw, places = encode(lines, at=4096)
    # Numbers that could be markers, behind those.
    other = np.array([0, 600, 1200, 1800, 2400, 1 << 31] * false, "<u4").tobytes()
    raw = raw[: places["kallsyms_token_table"]] + other + raw[places["kallsyms_token_table"] :]
    found = decode(raw)
    assert found is not None
    assert lines_of(found.symbols) == lines


@settings(max_examples=60, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS), where=st.floats(0, 1), what=st.binary(min_size=1, max_size=64), cut=st.booleans()
)
def test_damaged_tables_end_in_none_or_in_names(layout: str, where: float, what: bytes, cut: bool) -> None:
    raw = bytearray(encode(some_lines(1500, absolute=0), layout, at=4096)[0])
    at = int(where * (len(raw) - 1))
    raw[at : len(raw) if cut else at + len(what)] = what
    found = decode(bytes(raw))
    if found is not None:  # what was damaged was not needed, or a name or a value
        assert len(found.symbols) == 1500
        assert all(found.symbols[row].name for row in range(0, 1500, 100))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables_that_lie_are_not_believed(layout: str) -> None:
    lines = some_lines(1500)
    lines[700] = Line(lines[700].name, "t", 3)  # not ascending
    assert decode(encode(lines, layout, at=4096)[0]) is None
    assert decode(encode([Line("text", "T", 0), *some_lines(1500)[1:]], layout, at=4096)[0]) is None  # no _text


@pytest.mark.parametrize(
    ("at", "numbers"),
    [
        (0, lambda index: [1]),
        (5, lambda index: [index[4]]),
        (5, lambda index: [index[5] - 1]),
        (60, lambda index: [index[60] - 1]),
        (100, lambda index: [*index[101:], index[255] + len(_PIECES[255]) + 1]),  # each the next one's
    ],
)
def test_an_index_of_tokens_that_lies_is_not_believed(at: int, numbers: Callable[[list[int]], list[int]]) -> None:
    raw, places = encode(some_lines(1500), at=4096)
    image = bytearray(raw)
    index = np.frombuffer(image, "<u2", 256, places["kallsyms_token_index"])
    wrong = numbers(index.tolist())
    index[at : at + len(wrong)] = wrong
    assert decode(bytes(image)) is None


def test_names_that_end_where_the_last_block_would_begin() -> None:
    raw, places = encode(some_lines(1100), at=4096)
    markers = places["kallsyms_markers"]
    last = int.from_bytes(raw[markers + 16 : markers + 20], "little")
    assert decode(raw[: places["kallsyms_names"] + (last & ~3)] + raw[markers:]) is None


def test_names_that_are_longer_than_their_block() -> None:
    raw, places = encode(some_lines(1100), at=4096)
    names, markers = places["kallsyms_names"], places["kallsyms_markers"]
    room = markers - names
    long = bytes([(room - 1) % 128]) + b"\x7f" * (room - 1)  # one of them ends where the room does
    assert decode(raw[:names] + long + raw[markers:]) is None


def test_offsets_whose_beginning_is_not_there() -> None:
    raw, places = encode(some_lines(1100), at=4096)
    assert decode(raw, before=0) is not None
    assert decode(raw[places["kallsyms_relative_base"] - 80 :], before=0) is None


def test_more_markers_than_symbols_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kallsyms, "_SYMBOL_LIMIT", 1000)
    raw, places = encode(some_lines(1536), at=4096)
    count = places["kallsyms_num_syms"]
    assert decode(raw[:count] + (900).to_bytes(4, "little") + raw[count + 4 :]) is None
    assert decode(raw) is None


@pytest.mark.parametrize("cut", [1, 10, 19])
@pytest.mark.parametrize("layout", ["6.1", "7.0"])
def test_tables_are_found_wherever_they_lie(monkeypatch: pytest.MonkeyPatch, layout: str, cut: int) -> None:
    """Also where the digits that tell of them begin in one piece that is looked through, and end in the next."""
    monkeypatch.setattr(kallsyms, "_CHUNK", 1 << 16)
    lines = some_lines(1500)
    raw, _ = encode(lines, layout, at=4096)
    digits = raw.index(kallsyms._DIGITS)
    before = 4096 + -(digits + cut) % (1 << 16) & -8
    raw, places = encode(lines, layout, at=before)
    monkeypatch.setattr(kallsyms, "_BEHIND", len(raw) - digits)
    image = bytes(before) + raw + bytes(1 << 17)
    memory = MappedMemory([(Run(1 << 20, len(image)), np.frombuffer(image, np.uint8))])
    for start in (1 << 20, (1 << 20) + 4096):
        (found,) = kallsyms.find(memory, start)
        assert lines_of(found.symbols) == lines
        assert found.tables == {name: (1 << 20) + before + at for name, at in places.items()}
    assert list(kallsyms.find(memory, 1 << 20, before)) == []


def test_digits_alone_are_no_token_table() -> None:
    digits = b"".join(b"%d\0" % digit for digit in range(10))
    for behind in (b"", b"\0" * 300, b"\0" * 5000, digits * 500, b"x" * 20000):
        image = np.frombuffer(b"\1" * 512 + digits + behind, np.uint8)
        assert kallsyms.parse(image, 512) is None


def test_other_digits_in_the_same_piece_of_ram() -> None:
    lines = some_lines(1100)
    found = decode(kallsyms._DIGITS * 2 + encode(lines)[0] + kallsyms._DIGITS)
    assert found is not None
    assert lines_of(found.symbols) == lines


def test_a_hole_in_ram_ends_the_search() -> None:
    raw, _ = encode(some_lines(1000))
    memory = MappedMemory([(Run(0x10000, 4096), np.zeros(4096, np.uint8))])
    assert next(kallsyms.find(memory, 0), None) is None
    assert next(kallsyms.find(memory, 0x10000), None) is None
    assert next(kallsyms.find(MappedMemory([]), 0), None) is None
    assert decode(raw) is not None


def symbols_of(lines: list[Line]) -> Symbols:
    text = "\0" + "".join(f"{line.type}{line.name}\0" for line in lines)
    starts = np.cumsum([1, *(len(line.name) + 2 for line in lines)]).astype(np.uint32)
    values = np.array([line.value for line in lines], np.int64)
    raw = np.frombuffer(text.encode() + bytes(8), np.uint8)
    return Symbols(raw, starts, values, sum(line.absolute for line in lines))


def test_of_one_name_the_global_one_that_moves_is_found() -> None:
    lines = [Line("x", "A", 8, True), Line("x", "t", 16), Line("x", "T", 32), Line("xy", "T", 48)]
    symbols = symbols_of(lines)
    assert symbols.find("x") == 2
    assert symbols.rows("x") == [0, 1, 2]
    assert symbols.find("") is None
    assert symbols.find("y") is None
    assert symbols_of(lines[:2]).find("x") == 1


@given(st.lists(st.text(_ALPHABET, min_size=1, max_size=30), min_size=1, max_size=200))
def test_every_name_is_found_again(names: list[str]) -> None:
    symbols = symbols_of([Line(name, "t", row) for row, name in enumerate(names)])
    again = Symbols.from_arrays(symbols.arrays())
    for name in names:
        assert again.rows(name) == [row for row, one in enumerate(names) if one == name]
        assert not symbols.rows(name + "!")


def test_addresses_lead_back_to_symbols() -> None:
    symbols = symbols_of([Line("a", "A", 0, True), Line("_text", "T", 0), Line("l", "t", 16), Line("g", "T", 16)])
    assert symbols.at(0) == (1, 0)
    assert symbols.at(15) == (1, 15)
    assert symbols.at(20) == (3, 4)  # the global one of two at one address
    assert symbols.at(20, first=True) == (2, 4)
    assert symbols.at(-1) is None


def test_names_by_prefix() -> None:
    symbols = symbols_of([Line("sys_a", "T", 0), Line("xsys_b", "t", 1), Line("sys_c", "t", 2)])
    assert [one.name for one in symbols.matching("sys_")] == ["sys_a", "sys_c"]
