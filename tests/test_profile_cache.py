"""Profiles on disk: kept, mapped again, and not believed when somebody else or a fault had a hand in them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vmi_inside.profile import cache as cache_module
from vmi_inside.profile.cache import Cache

BANNER = b"Linux version 6.1.0 (a@b) (gcc) #1 SMP\n"
META = {"release": "6.1.0"}
ARRAYS = {
    "bytes": np.random.default_rng(3).integers(0, 256, 200_001, np.uint8),
    "words": np.arange(70_000, dtype=np.uint32),
    "numbers": np.array([-1, 2], np.int64),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cache = Cache(tmp_path / "c")
    cache.save(BANNER, "ab12", META, ARRAYS)
    assert cache.warnings == []
    return cache.folder


def the_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_what_was_kept_comes_back(folder: Path) -> None:
    (entry,) = Cache(folder).entries(BANNER)
    assert entry.meta == META
    assert {name: array.dtype for name, array in entry.arrays.items()} == {n: a.dtype for n, a in ARRAYS.items()}
    assert all((entry.arrays[name] == array).all() for name, array in ARRAYS.items())
    assert all(not array.flags.writeable for array in entry.arrays.values())
    assert all(array.ctypes.data % 8 == 0 for array in entry.arrays.values())
    assert list(Cache(folder).entries(BANNER + b"x")) == []


def test_only_the_user_can_read_it(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert the_file(folder).stat().st_mode & 0o777 == 0o600
    assert the_file(folder).name.endswith("-ab12.profile")


def test_every_changed_byte_is_noticed(folder: Path) -> None:
    path = the_file(folder)
    whole = path.read_bytes()
    random = np.random.default_rng(7)
    for at in [0, 8, 12, 16, 24, 28, 40, *random.integers(32, len(whole), 40).tolist(), len(whole) - 1]:
        raw = bytearray(whole)
        raw[at] ^= 1 << int(random.integers(8))
        path.write_bytes(raw)
        assert list(Cache(folder).entries(BANNER)) == [], f"byte {at}"
    for cut in (0, 1, 31, 32, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert list(Cache(folder).entries(BANNER)) == []
    path.write_bytes(whole)
    assert len(list(Cache(folder).entries(BANNER))) == 1


def test_swapped_blocks_are_noticed(folder: Path) -> None:
    path = the_file(folder)
    raw = path.read_bytes()
    start = len(raw) % 64 + 4096
    block = 1 << 16
    path.write_bytes(
        raw[:start] + raw[start + block : start + 2 * block] + raw[start : start + block] + raw[start + 2 * block :]
    )
    assert list(Cache(folder).entries(BANNER)) == []


def test_another_format_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "FORMAT", cache_module.FORMAT + 1)
    assert list(Cache(folder).entries(BANNER)) == []


def test_a_damaged_file_is_replaced(folder: Path) -> None:
    the_file(folder).write_bytes(b"nonsense")
    Cache(folder).save(BANNER, "ab12", META, ARRAYS)
    assert len(list(Cache(folder).entries(BANNER))) == 1
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_others_may_write_is_not_used(folder: Path, what: str) -> None:
    path = folder if what == "folder" else the_file(folder)
    path.chmod(0o770)
    cache = Cache(folder)
    assert list(cache.entries(BANNER)) == []
    assert "others may write" in cache.warnings[0]
    assert str(path) in cache.warnings[0]


def test_what_another_user_owns_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    cache = Cache(folder)
    assert list(cache.entries(BANNER)) == []
    cache.save(BANNER, "cd34", META, ARRAYS)
    assert len(list(folder.iterdir())) == 1
    assert "another user" in cache.warnings[0]


def test_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    path = the_file(folder)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert list(Cache(folder).entries(BANNER)) == []


def test_an_unwritable_folder_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "c")
    cache.save(BANNER, "ab12", META, ARRAYS)
    assert "could not be kept" in cache.warnings[0]
    assert list(cache.entries(BANNER)) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cache = Cache(tmp_path / "c")
    cache.save(BANNER, "ab12", META, ARRAYS)
    assert "No space left" in cache.warnings[0]
    assert list((tmp_path / "c").iterdir()) == []


@pytest.mark.parametrize("build_id", ["", "../../x", "a/b"])
def test_a_hostile_build_id_names_no_file(tmp_path: Path, build_id: str) -> None:
    Cache(tmp_path / "c").save(BANNER, build_id, META, ARRAYS)
    assert not (tmp_path / "c").exists()


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMI_INSIDE_CACHE", str(tmp_path / "here"))
    assert Cache().folder == tmp_path / "here"
    monkeypatch.delenv("VMI_INSIDE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache().folder == tmp_path / "vmi-inside"
