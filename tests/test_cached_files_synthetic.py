"""Cached files of made-up guests: names, sizes, targets, contents, and guests that lie about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.synthetic.cache import PAGE, VMEMMAP, CacheGuest
from tests.synthetic.guest import NOWHERE
from vmi_inside.cli.contents import write_content
from vmi_inside.cli.gaps import Gaps
from vmi_inside.errors import NoFile
from vmi_inside.linux.files.cached_files import cached_files
from vmi_inside.linux.files.file_content import contents
from vmi_inside.linux.files.find_file import file_content, listed, resolved

P = 4096


@pytest.fixture(params=[{}, {"levels": 5, "scattered": True}, {"older": True}], ids=["plain", "scattered", "older"])
def guest(request: pytest.FixtureRequest) -> CacheGuest:
    return CacheGuest(**request.param)


def test_files_with_all_their_names(guest: CacheGuest) -> None:
    hosts = guest.on_disk("ext4", 11, 5000, 0o104755, ("hosts", "same"), i_uid__val=7, i_gid__val=8, i_mtime__tv_sec=99)
    guest.cache(hosts, {0: b"a" * P, 1: b"b" * 904})
    link = guest.on_disk("ext4", 12, 5, 0o120777, ("link",), i_link=guest.string("hosts"))
    long = guest.on_disk("ext4", 13, 8, 0o120777, ("long",))
    guest.cache(long, {0: b"far/away and garbage"})
    guest.on_disk("tmpfs", 14, 0, 0o100600)
    guest.link()
    guest.finish()
    table = cached_files(guest.kernel)
    assert table.notes == ()
    assert set(table.fault.tolist()) == {""}
    rows = {(row.inode, row.path): row for row in table}
    assert set(rows) == {(11, "/hosts"), (11, "/same"), (12, "/link"), (13, "/long"), (14, "")}
    one = rows[11, "/hosts"]
    assert (one.type, one.size, one.mode, one.uid, one.gid, one.mtime, one.pages, one.cached) == (
        "reg", 5000, "4755", 7, 8, 99, 2, 1.0,
    )  # fmt: skip
    assert (rows[12, "/link"].target, rows[13, "/long"].target) == ("hosts", "far/away")
    assert (one.filesystem, one.mount, one.device, one.mount_namespace) == ("ext4", "/", "8:1", 0xF0000000)
    assert rows[14, ""].filesystem == "tmpfs"
    assert link in table.address
    assert file_content(guest.kernel, "/link").read() == b"a" * P + b"b" * 904
    few = cached_files(guest.kernel, ["path", "size"])
    assert few.columns == ("path", "size", "fault")
    with pytest.raises(AttributeError):
        cached_files(guest.kernel, ["nonsense"])


def test_file_systems_that_are_mounted_nowhere(guest: CacheGuest) -> None:
    inode = guest.on_disk("tracefs", 11, 0)
    dentry = guest.dentry(guest.space.read_u64(guest.system("tracefs")[1]), "set_event")
    guest.put("dentry", dentry, d_inode=inode, d_sb=guest.system("tracefs")[0])
    guest.chain(inode + guest.offset("inode", "i_dentry"), [dentry + guest.offset("dentry", "d_u.d_alias")])
    guest.link()
    guest.put("mount", guest.system("tracefs")[1] - guest.offset("mount", "mnt"), mnt_ns=(1 << 64) - 22)
    guest.finish()
    (row,) = cached_files(guest.kernel)
    assert (row.path, row.mount, row.mount_namespace) == ("tracefs:/set_event", "", 0)
    assert len(listed(cached_files(guest.kernel), "/")) == 0


def test_folders(guest: CacheGuest) -> None:
    for number, name in enumerate(("a", "b", "link")):
        guest.on_disk("ext4", number, 1, 0o120777 if name == "link" else 0o100644, (name,), i_link=guest.string("a"))
    guest.link()
    guest.finish()
    table = cached_files(guest.kernel)
    assert sorted(listed(table, "/").path.tolist()) == ["/a", "/b", "/link"]
    assert listed(table, "/link").path.tolist() == ["/a"]
    assert len(listed(table, "/a/b")) == 0


def test_dirty_pages_are_those_with_the_mark(guest: CacheGuest) -> None:
    inode = guest.on_disk("ext4", 11, 10 * P, names=("file",))
    guest.cache(inode, dict.fromkeys(range(10), b"x"))
    node = guest.space.read_u64(inode + guest.offset("inode", "i_data.i_pages.xa_head")) - 2
    guest.word(node + 552, 0b1000000110)
    guest.link()
    guest.finish()
    assert cached_files(guest.kernel, ["dirty"]).dirty.tolist() == [3]


def test_contents(guest: CacheGuest) -> None:
    disk = guest.on_disk("ext4", 11, 6 * P - 10, names=("disk",))
    guest.cache(disk, {1: b"one", 2: b"two", 4: 0x77 << 1 | 1, 5: b"last" + bytes(P - 14) + b"beyond"})
    shmem = guest.on_disk("tmpfs", 12, 3 * P, names=("shmem",))
    guest.cache(shmem, {0: b"zero", 2: 0x77 << 1 | 1, 9: b"behind the end"})
    guest.link()
    guest.finish()
    first, second = contents(guest.kernel, [disk, shmem])
    assert first.missing() == [(0, P), (3 * P, 5 * P)]
    whole = first.read()
    assert len(whole) == 6 * P - 10
    assert [whole[at : at + 4].rstrip(b"\0") for at in range(0, 6 * P, P)] == [b"", b"one", b"two", b"", b"", b"last"]
    assert b"beyond" not in whole
    assert [(chunk.offset // P, len(chunk.data)) for chunk in first.chunks(P)] == [(1, P), (2, P), (5, P - 10)]
    assert second.missing() == [(2 * P, 3 * P)]
    assert second.read() == b"zero".ljust(3 * P, b"\0")
    assert contents(guest.kernel, []) == []


@pytest.mark.parametrize("sparse", [True, False])
def test_contents_are_written_with_their_holes(tmp_path: Path, sparse: bool) -> None:
    guest = CacheGuest()
    disk = guest.on_disk("ext4", 11, 9 * P + 1, names=("disk",))
    guest.cache(disk, {2: b"two", 4: b"four"})
    guest.link()
    guest.finish()
    (content,) = contents(guest.kernel, [disk])
    gaps = Gaps("disk")
    path = tmp_path / "out"
    with path.open("wb" if sparse else "ab") as file:
        write_content(content, file, gaps, sparse=sparse)
    assert path.read_bytes() == content.read()
    assert gaps.size == 7 * P + 1


def test_large_pages_in_either_form(guest: CacheGuest) -> None:
    frames = guest.ram.frames(8)
    guest.ram.write(frames, b"".join(bytes([65 + n]) * P for n in range(8)))
    new, old = (guest.on_disk("ext4", number, 8 * P, names=(str(number),)) for number in (11, 12))
    head = guest.page(frames, new + guest.offset("inode", "i_data"))
    guest.cache(new, {0: head, **dict.fromkeys(range(1, 8), 0 << 2 | 2)})
    guest.link()
    guest.finish()
    (content,) = contents(guest.kernel, [new])
    assert content.read() == b"".join(bytes([65 + n]) * P for n in range(8))
    # Before 5.17 the same pointer stands at each index.
    guest.page(frames, old + guest.offset("inode", "i_data"))
    guest.cache(old, dict.fromkeys(range(8), head))
    (content,) = contents(guest.kernel, [old])
    assert content.read() == b"".join(bytes([65 + n]) * P for n in range(8))
    assert content.missing() == []


def test_pages_that_are_others_by_now(guest: CacheGuest) -> None:
    inode = guest.on_disk("tmpfs", 11, 4 * P, names=("file",))
    frames = guest.cache(inode, {0: b"mine", 1: b"another's", 2: NOWHERE & ~3, 3: VMEMMAP + 5 * PAGE + 8})
    guest.page(frames[1], 0xFFFF_8880_0123_4560)
    guest.link()
    guest.finish()
    (content,) = contents(guest.kernel, [inode])
    assert content.pages.tolist() == [0]
    assert content.missing() == [(P, 4 * P)]
    assert content.read() == b"mine".ljust(4 * P, b"\0")


def test_inodes_that_lie(guest: CacheGuest) -> None:
    huge = guest.on_disk("ext4", 11, -5, names=("negative",))
    vast = guest.on_disk("ext4", 12, (1 << 63) - 1, names=("vast",))
    guest.cache(vast, {0: b"begin", (1 << 34) + 1: b"far"})
    guest.on_disk("ext4", 13, 1, 0o120777, names=("wild",), i_link=NOWHERE)
    guest.on_disk("ext4", 14, 1, names=("elsewhere",), i_sb=guest.system("tmpfs")[0])
    circle = guest.on_disk("ext4", 15, 1, names=("circle",))
    guest.word(circle + guest.offset("inode", "i_data.i_pages.xa_head"), NOWHERE | 2)
    guest.put("address_space", circle + guest.offset("inode", "i_data"), nrpages=(1 << 64) - 1)
    last = guest.on_disk("ext4", 16, 1, names=("last",))
    guest.link()
    guest.word(last + guest.offset("inode", "i_sb_list"), last + guest.offset("inode", "i_sb_list"))
    block, _ = guest.system("tmpfs")
    guest.word(block + guest.offset("super_block", "s_inodes"), NOWHERE)
    guest.finish()
    table = cached_files(guest.kernel)
    faults = {row.path: row.fault for row in table}
    assert set(faults) == {"/negative", "/vast", "/wild", "/elsewhere", "/circle", "/last"}
    assert faults["/wild"] == "target unreadable"
    assert faults["/elsewhere"] == "another file system's"
    assert faults["/vast"] == faults["/last"] == ""
    assert any("circle" in note for note in table.notes)
    assert any("could not be read" in note for note in table.notes)
    assert ((table.cached >= 0) & (table.cached <= 1)).all()
    first, second, third = contents(guest.kernel, [huge, vast, circle])
    assert (first.size, first.read(), first.missing()) == (0, b"", [])
    assert "its size is said to be" in first.fault
    assert "its size is said to be" in second.fault
    assert second.size == 1 << 46
    assert next(second.chunks()).data[:5].tobytes() == b"begin"
    with pytest.raises(NoFile):
        second.read()
    assert "could not be read to its end" in third.fault
    assert third.missing() == [(0, 1)]


def test_names_that_run_in_circles(guest: CacheGuest) -> None:
    one, two = (guest.on_disk("ext4", number, 1, names=(str(number),)) for number in (11, 12))
    alias = guest.space.read_u64(two + guest.offset("inode", "i_dentry"))
    guest.word(alias, guest.space.read_u64(one + guest.offset("inode", "i_dentry")))
    guest.link()
    guest.finish()
    table = cached_files(guest.kernel)
    assert sorted(set(table.path.tolist())) == ["/11", "/12"]
    assert any("circle" in note for note in table.notes)


def test_paths_through_links() -> None:
    links = {"/bin": "usr/bin", "/usr/bin/sh": "/usr/bin/dash", "/a": "b", "/b": "a", "/up": "../../x/./y"}
    for path, found in {
        "/bin/sh": "/usr/bin/dash", "bin/ls": "/usr/bin/ls", "//x/../bin//": "/usr/bin", "/up/z": "/x/y/z", "/": "/",
        "/../..": "/", "/plain/file": "/plain/file",
    }.items():  # fmt: skip
        assert resolved(path, links) == found
    assert resolved("/a", links) in ("/a", "/b")


def test_very_many_inodes_cost_few_rounds() -> None:
    guest = CacheGuest()
    for number in range(300):
        guest.on_disk("ext4", number, 1, names=(f"f{number}",))
    guest.link()
    guest.finish()
    assert len(cached_files(guest.kernel)) == 300
    guest.memory.reset()
    cached_files(guest.kernel)
    assert guest.memory.gathers < 60
    assert guest.memory.reads < 300, "inodes that lie in one page are one reading"
    assert np.unique(cached_files(guest.kernel).path).size == 300
