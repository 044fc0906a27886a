"""Paths that come from a guest, made harmless; and hexdumps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi_inside.cli import hexdump, unpack


def test_the_last_name_of_a_very_deep_path_is_one_name() -> None:
    names = unpack.parts("/".join("ab" for _ in range(1000)))
    assert not [name for name in names if "/" in name]
    assert names[-1] != unpack.parts("/".join("ab" for _ in range(1001)))[-1]


@given(st.text(max_size=60))
def test_no_path_leads_out(path: str) -> None:
    names = unpack.parts(path)
    assert names
    for name in names:
        assert name not in ("", ".", "..")
        assert "/" not in name
        assert "\0" not in name
        assert len(os.fsencode(name.encode("utf-8", "replace").decode())) <= 255


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/etc/passwd", ["etc", "passwd"]), ("/../../etc/x", ["__", "__", "etc", "x"]), ("/", ["_"]), ("", ["_"]),
        ("/a//./b", ["a", "b"]), ("/tmp/gone (deleted)", ["tmp", "gone (deleted)"]), ("/a\0b", ["a_b"]),
    ],
)  # fmt: skip
def test_parts(path: str, names: list[str]) -> None:
    assert unpack.parts(path) == names


def test_long_and_deep_paths() -> None:
    one, two = unpack.parts("x" * 1000 + "a")[0], unpack.parts("x" * 1000 + "b")[0]
    assert one != two
    assert len(one) <= 255
    assert len(unpack.parts("a/" * 10_000)) == 256


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    inside = tmp_path / "inside"
    folder = unpack.Folder(inside)
    (inside / "etc").symlink_to(outside)
    (inside / "link").symlink_to(outside / "victim")
    with pytest.raises(OSError), folder.create("/etc/passwd"):  # noqa: PT011  # ELOOP or ENOTDIR, by the kernel
        pass
    with pytest.raises(FileExistsError), folder.create("/link"):
        pass
    with folder.create("/link", force=True) as file:
        file.write(b"mine")
    assert (inside / "link").read_bytes() == b"mine"
    assert not (inside / "link").is_symlink()
    assert list(outside.iterdir()) == []


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    folder = unpack.Folder(tmp_path / "new" / "folder")
    with pytest.raises(TypeError), folder.create("/a/b") as file:
        file.writelines([b"half", None])  # type: ignore[list-item]  # a failure on the way
    assert not (folder.path / "a" / "b").exists()
    with folder.create("/a/b") as file:
        file.write(b"whole")
    with pytest.raises(FileExistsError), folder.create("/a/b"):
        pass
    with pytest.raises(OSError), folder.create("/a/b/c"):  # noqa: PT011  # a file stands where a folder should
        pass
    assert (folder.path / "a" / "b").read_bytes() == b"whole"


def test_a_hexdump() -> None:
    pieces = [
        (0x1000, b"Linux\x1b[0m" + bytes(39), ""), (0x1030, bytes(16), ""), (0x1040, bytes(32), "in swap"),
        (0x1060, b"end", ""),
    ]  # fmt: skip
    assert "".join(hexdump.lines(pieces)).splitlines() == [
        "0000000000001000  4c 69 6e 75 78 1b 5b 30  6d 00 00 00 00 00 00 00  |Linux.[0m.......|",
        "0000000000001010  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|",
        "*",
        "0000000000001040  -- 32 bytes: in swap --",
        "0000000000001060  65 6e 64                                          |end|",
        "0000000000001063",
    ]


def test_pieces_make_no_difference_to_a_hexdump() -> None:
    data = bytes(range(256)) * 3 + b"odd"
    whole = "".join(hexdump.lines([(7, data, "")]))
    for step in (1, 5, 16, 100):
        pieces = [(7 + at, data[at : at + step], "") for at in range(0, len(data), step)]
        assert "".join(hexdump.lines(pieces)) == whole
    assert "".join(hexdump.lines([])) == ""
