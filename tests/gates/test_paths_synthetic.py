"""Paths of made-up guests, followed through the kernel's cache of names, and directories that lie."""

from __future__ import annotations

import pytest

from tests.gates.gated import GatedGuest
from tests.synthetic.guest import NOWHERE
from vmi_inside.control.gates import layout
from vmi_inside.control.gates.folders import folders
from vmi_inside.errors import ControlError, NoFile, Unsupported
from vmi_inside.linux.files.lookup import Place, lookup


class Tree:
    """Directories of a made-up guest."""

    def __init__(self, guest: GatedGuest) -> None:
        self.guest = guest
        self.system("ext4", 0x800001)
        self.children: dict[int, list[int]] = {}
        self.inode(guest.root_dentry, 2)
        self.mounts: list[int] = []

    def system(self, name: str, device: int) -> None:
        kind = self.guest.new("file_system_type", name=self.guest.string(name))
        self.block = self.guest.new("super_block", s_dev=device, s_type=kind)

    def inode(self, dentry: int, number: int, mode: int = 0o40755, **more: int) -> None:
        made = self.guest.new("inode", i_ino=number, i_mode=mode, i_sb=self.block, i_generation=number + 100, **more)
        self.guest.put("dentry", dentry, d_inode=made)

    def add(self, parent: int, name: str, number: int, mode: int = 0o40755, **more: int) -> int:
        dentry = self.guest.dentry(parent, name)
        self.inode(dentry, number, mode, **more)
        self.children.setdefault(parent, []).append(dentry)
        self.link(parent)
        return dentry

    def link(self, parent: int) -> None:
        head, link = (self.guest.offset("dentry", name) for name in ("d_subdirs", "d_child"))
        nodes = [one + link for one in self.children.get(parent, [])]
        self.guest.chain(parent + head, nodes, end=parent + head)
        for dentry in self.children.get(parent, []):
            self.guest.chain(dentry + head, [one + link for one in self.children.get(dentry, [])], end=dentry + head)

    def mount(self, parent: int, point: int, root: int) -> int:
        made = self.guest.new("mount", mnt_parent=parent, mnt_mountpoint=point, mnt__mnt_root=root)
        self.mounts.append(made)
        head, link = (self.guest.offset("mount", name) for name in ("mnt_mounts", "mnt_child"))
        mine = [one + link for one in self.mounts]
        self.guest.chain(parent + head, mine, end=parent + head)
        self.guest.chain(made + head, [], end=made + head)
        return made


@pytest.fixture
def tree(guest: GatedGuest) -> Tree:
    """/srv/data, /srv/link to it, /mnt with another file system's root, which has /mnt/in."""
    made = Tree(guest)
    root = guest.root_dentry
    srv, mnt = made.add(root, "srv", 3), made.add(root, "mnt", 4)
    made.add(srv, "data", 5)
    made.add(srv, "link", 6, 0o120777, i_link=guest.string("../srv/./data"))
    made.add(srv, "loop", 7, 0o120777, i_link=guest.string("loop"))
    made.add(srv, "slow", 8, 0o120777)
    negative = guest.dentry(srv, "gone")
    made.children[srv].append(negative)
    made.link(srv)
    made.link(root)
    made.system("overlay", 9)
    over = guest.dentry(0, "/")
    guest.put("dentry", over, d_parent=over)
    made.inode(over, 1)
    made.mount(guest.root_mount, mnt, over)
    made.add(over, "in", 2)
    return made


def test_paths_are_followed(guest: GatedGuest, tree: Tree) -> None:
    root = Place(guest.root_dentry, guest.root_mount)
    inner = tree.guest.offset("dentry", "d_inode")

    def number(path: str) -> tuple[int, int]:
        place = lookup(guest.kernel, root, path)
        inode = guest.space.read_u64(place.dentry + inner)
        return guest.space.read_u64(inode + 64), place.mount

    (over,) = tree.mounts
    assert number("/") == (2, guest.root_mount)
    assert number("/srv//data/") == (5, guest.root_mount)
    assert number("/srv/link") == (5, guest.root_mount)
    assert number("/srv/../../srv/data") == (5, guest.root_mount)
    assert number("/mnt") == (1, over)
    assert number("/mnt/in/../in") == (2, over)
    for path, words in (
        ("srv", "no path from the root"), ("/srv/gone", "is not there"), ("/srv/none/x", "'none' of"),
        ("/srv/loop", "symbolic link"), ("/srv/slow", "symbolic link"), ("/" + "a" * 5000, "no path from the root"),
    ):  # fmt: skip
        with pytest.raises(NoFile, match=words):
            lookup(guest.kernel, root, path)


def test_lists_of_names_that_never_end(guest: GatedGuest, tree: Tree) -> None:
    root = Place(guest.root_dentry, guest.root_mount)
    srv = lookup(guest.kernel, root, "/srv").dentry
    head, link = guest.offset("dentry", "d_subdirs"), guest.offset("dentry", "d_child")
    last = tree.children[srv][-1]
    guest.word(last + link, tree.children[srv][0] + link)  # in a circle
    assert lookup(guest.kernel, root, "/srv/data").dentry == tree.children[srv][0]
    guest.word(srv + head, NOWHERE)
    with pytest.raises(NoFile):
        lookup(guest.kernel, root, "/srv/data")
    (over,) = tree.mounts
    guest.put("mount", over, mnt_parent=over, mnt_mountpoint=srv, mnt__mnt_root=srv)  # over itself
    head, link = guest.offset("mount", "mnt_mounts"), guest.offset("mount", "mnt_child")
    guest.chain(over + head, [over + link], end=over + head)
    guest.word(srv + guest.offset("dentry", "d_subdirs"), 0)
    with pytest.raises(NoFile, match="too much"):
        lookup(guest.kernel, Place(guest.root_dentry, over), "/srv")


def test_directories_that_can_be_told_apart(guest: GatedGuest, tree: Tree) -> None:
    fs = guest.new("fs_struct", root__dentry=guest.root_dentry, root__mnt=guest.root_mount + 32)
    guest.put("task_struct", guest.tasks[4242].task, fs=fs)
    assert folders(guest.kernel, 4242, ["/srv/data", "/mnt", "/srv/data"]) == (
        layout.Folder(5, 0x800001, 105, "/srv/data"), layout.Folder(1, 9, 101, "/mnt"),
    )  # fmt: skip
    with pytest.raises(Unsupported, match="on overlay, which may number its files anew"):
        folders(guest.kernel, 4242, ["/mnt/in"])
    with pytest.raises(ControlError, match="is not there"):
        folders(guest.kernel, 4242, ["/srv/gone"])
    assert folders(guest.kernel, 4242, []) == ()
    guest.put("task_struct", guest.tasks[4242].task, fs=0)
    with pytest.raises(ControlError, match="no root directory"):
        folders(guest.kernel, 4242, ["/srv"])
