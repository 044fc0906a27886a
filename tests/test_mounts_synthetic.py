"""Mounts of made-up guests, in lists and in trees; and guests that lie about theirs."""

from __future__ import annotations

import pytest

from tests.synthetic.files import FilesGuest
from tests.synthetic.guest import HOLE, NOWHERE
from vmi_inside.linux.files.mounts import mounts

STRUCTS = """
rb_root 8
    rb_node 0 *rb_node
rb_node 24
    __rb_parent_color 0 u64
    rb_right 8 *rb_node
    rb_left 16 *rb_node
vfsmount 32
    mnt_root 0 *dentry
    mnt_sb 8 *super_block
    mnt_flags 16 i32
mount 320
    mnt_parent 16 *mount
    mnt_mountpoint 24 *dentry
    mnt 32 vfsmount
    mnt_node 64 rb_node
    mnt_instance 96 list_head
    mnt_devname 112 *char
    mnt_list 120 list_head
    mnt_master 136 *mount
    mnt_ns 144 *mnt_namespace
    mnt_id 152 i32
    mnt_group_id 156 i32
nsproxy 72
    mnt_ns 0x18 *mnt_namespace
    net_ns 0x28 *net
super_block 1000
    s_list 0 list_head
    s_dev 16 u32
    s_blocksize 24 u64
    s_type 40 *file_system_type
    s_flags 48 u64
    s_root 56 *dentry
    s_mounts 64 list_head
    s_subtype 80 *char
    s_op 88 *void
    s_fs_info 96 *void
"""
SPACES = {
    "list": "mnt_namespace 120\n    ns 0 ns_common\n    root 24 *mount\n    list 32 list_head\n    mounts 112 u32\n",
    "tree": "mnt_namespace 120\n    ns 0 ns_common\n    root 24 *mount\n    mounts 32 rb_root\n",
}


class MountsGuest(FilesGuest):
    """One process in one namespace of some mounts: the root's, and others at its directories."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.profile.extend(STRUCTS + SPACES[kind])
        self.blocks = self.global_("super_blocks", 16)
        self.word(self.blocks, self.blocks)
        self.namespace = self.new("mnt_namespace", ns__inum=4026531841)
        init = self.task(1, "init")
        self.give(init, nsproxy=self.new("nsproxy", mnt_ns=self.namespace))
        self.planted: list[int] = []
        self.block_of: dict[int, int] = {}
        self._last_block = self.blocks
        root = self.plant("ext4", "/dev/vda1", "")
        self.put("mount", root, mnt_parent=root)

    def plant(self, kind: str, device: str, point: str, **members: int) -> int:
        """A file system of that kind, mounted at a directory of the first mount's."""
        top = self.dentry(0, "/")
        block = self.new(
            "super_block", s_dev=8 << 20 | len(self.planted), s_blocksize=4096, s_root=top,
            s_flags=members.pop("s_flags", 0), s_type=self.new("file_system_type", name=self.string(kind)),
        )  # fmt: skip
        self.word(self._last_block, block)
        self.word(block, self.blocks)
        self._last_block = block
        at = self.new(
            "mount", mnt__mnt_root=top, mnt__mnt_sb=block, mnt_devname=self.string(device), mnt_ns=self.namespace,
            mnt_id=20 + len(self.planted), **members,
        )  # fmt: skip
        head = block + self.offset("super_block", "s_mounts")
        link = at + self.offset("mount", "mnt_instance")
        self.chain(head, [link], head)
        if self.planted:
            first = self.planted[0]
            dentry = self.dentry(self.space.read_u64(first + self.offset("mount", "mnt.mnt_root")), point)
            self.put("mount", at, mnt_parent=first, mnt_mountpoint=dentry)
        self.planted.append(at)
        self.block_of[at] = block
        return at

    def link(self, listed: list[int] | None = None) -> None:
        """Put mounts into the namespace: as its list, or as a tree that leans to the right by halves."""
        listed = self.planted if listed is None else listed
        if self.kind == "list":
            head = self.namespace + self.offset("mnt_namespace", "list")
            self.chain(head, [at + self.offset("mount", "mnt_list") for at in listed], head)
            return
        self.poke("mnt_namespace", self.namespace, "mounts.rb_node", self._tree(listed, 0))

    def _tree(self, listed: list[int], parent: int) -> int:
        if not listed:
            return 0
        middle = len(listed) // 2
        node = listed[middle] + self.offset("mount", "mnt_node")
        for word, value in (
            (0, parent),
            (8, self._tree(listed[middle + 1 :], node)),
            (16, self._tree(listed[:middle], node)),
        ):
            self.word(node + word, value)
        return node


def populate(kind: str) -> MountsGuest:
    guest = MountsGuest(kind)
    master = guest.plant("tmpfs", "a b", "run", mnt__mnt_flags=0x20 | 0x1000 | 0x3, mnt_group_id=5)
    guest.plant("fuse", "host:/x", "mnt", mnt__mnt_flags=0x2040, mnt_master=master, s_flags=1 | 16)
    guest.put("super_block", guest.block_of[guest.planted[2]], s_subtype=guest.string("sshfs"))
    guest.plant("proc", "proc", "proc")
    guest.link()
    return guest.finish()  # type: ignore[return-value]


@pytest.mark.parametrize("kind", SPACES)
def test_every_column(kind: str) -> None:
    table = mounts(populate(kind).kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    rows = [(*row[:4], *row[9:17]) for row in table]
    assert {row[4:9] for row in table} == {(-1,) * 5}
    space = 4026531841
    assert rows == [
        ("/dev/vda1", "/", "ext4", 4096, "rw", "rw", "/", "", 20, 20, space, "8:0"),
        ("a b", "/run", "tmpfs", 4096, "rw,nosuid,nodev,relatime", "rw", "/", "shared:5", 21, 20, space, "8:1"),
        ("host:/x", "/mnt", "fuse.sshfs", 4096, "ro", "ro,sync", "/", "master:5 unbindable", 22, 20, space, "8:2"),
        ("proc", "/proc", "proc", 4096, "rw", "rw", "/", "", 23, 20, space, "8:3"),
    ]


@pytest.mark.parametrize("kind", SPACES)
def test_a_mount_taken_out_of_its_namespace_is_still_seen(kind: str) -> None:
    guest = populate(kind)
    guest.link([guest.planted[0], guest.planted[1], guest.planted[3]])
    table = mounts(guest.kernel)
    assert {row.path: row.fault for row in table} == {
        "/": "", "/run": "", "/proc": "", "/mnt": "not in its namespace's list",
    }  # fmt: skip


def test_where_a_reader_has_come_to_is_no_mount() -> None:
    guest = populate("list")
    cursor = guest.new("mount", mnt__mnt_flags=0x10000000)
    guest.link([guest.planted[0], cursor, *guest.planted[1:]])
    assert len(mounts(guest.kernel)) == 4


@pytest.mark.parametrize("wild", [NOWHERE, HOLE, (1 << 64) - 8, 0x1234_5678_9ABC_DEF0])
@pytest.mark.parametrize("kind", SPACES)
def test_wild_pointers_mark_their_rows_only(kind: str, wild: int) -> None:
    guest = populate(kind)
    guest.put("mount", guest.planted[1], mnt_devname=wild, mnt__mnt_root=wild)
    guest.put("mount", guest.planted[2], mnt__mnt_sb=wild, mnt_master=wild)
    guest.put("mount", guest.planted[3], mnt_parent=wild)
    table = mounts(guest.kernel)
    faults = dict(zip(table.id.tolist(), table.fault.tolist(), strict=True))
    assert faults[20] == ""
    assert "device unreadable" in faults[21]
    assert "path not whole" in faults[21]
    assert "file system unreadable" in faults[22]
    assert "master unreadable" in faults[22]
    assert "parent unreadable" in faults[23]


@pytest.mark.parametrize("kind", SPACES)
def test_circles_end(kind: str) -> None:
    guest = populate(kind)
    if kind == "list":
        second = guest.planted[2] + guest.offset("mount", "mnt_list")
        guest.word(second, guest.planted[1] + guest.offset("mount", "mnt_list"))
    else:
        leaf = guest.planted[0] + guest.offset("mount", "mnt_node")
        guest.word(leaf + 8, guest.planted[2] + guest.offset("mount", "mnt_node"))
    block = guest.block_of[guest.planted[1]]
    guest.word(block, block)  # file systems: cut behind the second
    table = mounts(guest.kernel)
    assert len(table) <= 4
    assert len(table.notes) == 2


@pytest.mark.parametrize("kind", SPACES)
def test_a_namespace_that_cannot_be_read(kind: str) -> None:
    guest = populate(kind)
    guest.put("mount", guest.planted[3], mnt_ns=NOWHERE)
    guest.link(guest.planted[:3])
    table = mounts(guest.kernel)
    assert [row.mnt_namespace for row in table if row.id == 23] == [0]
    assert len(table) == 4


def test_nothing() -> None:
    guest = MountsGuest("tree")
    guest.finish()
    guest.word(guest.blocks, 0)
    table = mounts(guest.kernel, ["path"])
    assert (len(table), table.columns) == (0, ("path", "fault"))
    assert "super_blocks: ends in NULL" in table.notes
