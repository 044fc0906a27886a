"""Control groups of made-up guests, and of guests that lie about theirs."""

from __future__ import annotations

import pytest

from tests.synthetic import LinuxGuest, SyntheticGuest
from tests.synthetic.guest import HOLE, NOWHERE
from vmi_inside.errors import Unsupported
from vmi_inside.linux.processes.control_groups import cgroups

STRUCTS = """
cgroup_subsys_state 64
    sibling 8 list_head
    children 24 list_head
    flags 40 u32
cgroup_freezer_state 16
    freeze 0 u8
cgroup 300
    self 0 cgroup_subsys_state
    flags 64 u64
    nr_descendants 72 i32
    kn 80 *kernfs_node
    subtree_control 88 u16
    root 96 *cgroup_root
    freezer 104 cgroup_freezer_state
cgroup_root 500
    subsys_mask 8 u32
    hierarchy_id 12 i32
    root_list 16 list_head
    cgrp 64 cgroup
    name 400 char[64]
kernfs_node 128
    __parent 8 *kernfs_node
    name 16 *char
    id 24 u64
css_set 500
    dfl_cgrp 0x88 *cgroup
    cgrp_links 0x90 list_head
cgrp_cset_link 48
    cgrp 0 *cgroup
    cset 8 *css_set
    cgrp_link 32 list_head
cgroup_subsys 64
    name 0 *char
    legacy_name 8 *char
signal_struct 1100
    live 4 atomic
    nr_threads 8 i32
"""
ONLINE, FROZEN = 2, 3


class GroupsGuest(LinuxGuest):
    """The unified hierarchy, and one of v1."""

    def __init__(self) -> None:
        super().__init__()
        self.profile.extend(STRUCTS)
        self.profile.enumerators |= {"CGRP_FROZEN": FROZEN, "CGROUP_SUBSYS_COUNT": 3}
        systems = [("cpu", "cpu"), ("io", "blkio"), ("hidden", "hidden")]
        self.global_("cgroup_subsys", 24)
        for number, (name, old) in enumerate(systems):
            made = self.new("cgroup_subsys", name=self.string(name), legacy_name=self.string(old))
            self.word(self.profile.symbols["cgroup_subsys"] + 8 * number, made)
        self.write(self.global_("cgrp_dfl_inhibit_ss_mask", 2), b"\x04\x00")
        self.roots = self.global_("cgroup_roots", 16)
        self.root = self.global_("cgrp_dfl_root", 500)
        self.old = self.new("cgroup_root", hierarchy_id=4, subsys_mask=2, name=b"mine")
        self.put("cgroup_root", self.root, subsys_mask=7)
        self.chain(self.roots, [each + 16 for each in (self.old, self.root)], self.roots)
        self.children: dict[int, list[int]] = {}
        self.top, self.old_top = (self.group(0, "", each) for each in (self.root, self.old))

    def group(self, parent: int, name: str, root: int = 0, **members: int) -> int:
        root = root or self.root
        at = self.new("cgroup") if parent else root + 64
        node = self.new("kernfs_node", name=self.string(name), id=1 + len(self.children))
        values = {"self__flags": ONLINE, **members}
        self.put("cgroup", at, kn=node, root=root, **values)
        self.word(at + 24, at + 24)
        self.children[at] = []
        if parent:
            self.children[parent].append(at)
            self.chain(parent + 24, [each + 8 for each in self.children[parent]], parent + 24)
        return at

    def member(self, *groups: int) -> int:
        """A set of tasks in these groups."""
        made = self.new("css_set", dfl_cgrp=groups[0])
        links = [self.new("cgrp_cset_link", cgrp=each, cset=made) + 32 for each in groups]
        self.chain(made + 0x90, links, made + 0x90)
        return made


def populate() -> tuple[GroupsGuest, dict[str, int]]:
    guest = GroupsGuest()
    made = {"slice": guest.group(guest.top, "a.slice", nr_descendants=2, subtree_control=1)}
    guest.put("cgroup", guest.top, subtree_control=3, nr_descendants=3)
    made["frozen"] = guest.group(made["slice"], "frozen", flags=1 << FROZEN, freezer__freeze=1)
    made["soon"] = guest.group(made["slice"], "s\noon", freezer__freeze=1)
    made["dying"] = guest.group(guest.top, "gone", self__flags=0)
    made["one"] = guest.group(guest.old_top, "one", guest.old)
    both, other = guest.member(made["frozen"], made["one"]), guest.member(guest.top, guest.old_top)
    guest.give(guest.task(1, "init"), cgroups=other)
    leader = guest.task(10, "worker", exit_state=0x20)
    guest.put("signal_struct", leader.signal, live__counter=1)
    for each in (leader, guest.task(11, "worker", leader=10), guest.task(20, "dead", exit_state=0x20)):
        guest.give(each, cgroups=both)
    guest.finish()
    return guest, made


def test_every_column() -> None:
    guest, _ = populate()
    table = cgroups(guest.kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    old = "blkio,name=mine"
    assert [row[:9] for row in table] == [
        ("unified", "/", 1, 1, 1, 3, "cpu io", "no", False),
        ("unified", "/a.slice", 3, 0, 0, 2, "cpu io", "no", False),
        ("unified", "/a.slice/frozen", 4, 1, 1, 0, "cpu", "yes", False),
        ("unified", "/a.slice/s\noon", 5, 0, 0, 0, "cpu", "wanted", False),
        ("unified", "/gone", 6, 0, 0, 0, "cpu io", "no", True),
        (old, "/", 2, 1, 1, 0, "blkio", "", False),
        (old, "/one", 7, 1, 1, 0, "blkio", "", False),
    ]
    few = cgroups(guest.kernel, ["path"])
    assert (few.columns, few.path.tolist()) == (("path", "fault"), table.path.tolist())


@pytest.mark.parametrize("wild", [NOWHERE, HOLE, (1 << 64) - 8])
def test_wild_pointers_mark_their_rows_only(wild: int) -> None:
    guest, made = populate()
    guest.put("cgroup", made["slice"], kn=wild)
    guest.put("cgroup", made["one"], root=wild)
    guest.put("kernfs_node", guest.space.read_u64(made["dying"] + 80), name=wild)
    guest.word(made["soon"] + 24, wild)
    table = cgroups(guest.kernel)
    assert len(table) == 7
    faults = {row.address: row.fault for row in table if row.fault}
    assert faults == {
        made["slice"]: "directory unreadable", made["dying"]: "name unreadable", made["one"]: "of no known hierarchy",
    }  # fmt: skip
    assert "control groups: a node could not be read" in table.notes


def test_circles_end() -> None:
    guest, made = populate()
    guest.word(made["frozen"] + 24, made["slice"] + 8)
    guest.word(made["one"] + 8, made["one"] + 8)
    table = cgroups(guest.kernel)
    # The list that runs into another meets that one's head, and takes it for a group.
    assert [row.fault for row in table if row.fault] == ["of no known hierarchy"]
    assert len(table) == 8
    assert [note for note in table.notes if "circle" in note]


def test_a_kernel_without_groups() -> None:
    with pytest.raises(Unsupported, match="no control groups"):
        cgroups(SyntheticGuest().kernel)
