"""Keys of made-up guests, and of guests that lie about theirs."""

from __future__ import annotations

import time

import pytest

from tests.synthetic import LinuxGuest
from tests.synthetic.guest import HOLE, NOWHERE
from vmi_inside.errors import Unsupported
from vmi_inside.linux.kernel_keys import kernel_keys

STRUCTS = """
rb_root 8
    rb_node 0 *rb_node
rb_node 24
    __rb_parent_color 0 u64
    rb_right 8 *rb_node
    rb_left 16 *rb_node
key_type 168
    name 0 *char
assoc_array 16
    nr_leaves_on_tree 8 u64
key 208
    usage 0 refcount
    serial 4 i32
    serial_node 8 rb_node
    expiry 80 i64
    uid 96 kuid
    gid 100 kuid
    perm 104 u32
    datalen 110 u16
    state 112 i16
    flags 120 u64
    type 144 *key_type
    description 160 *char
    keys 184 assoc_array
timekeeper 280
    xtime_sec 0x60 u64
    offs_real 0x68 i64
    offs_boot 0x70 i64
tk_data 320
    timekeeper 8 timekeeper
"""
NOW = int(time.time())


class KeysGuest(LinuxGuest):
    """Keys in a tree that is a chain to the right: serial numbers go up."""

    def __init__(self) -> None:
        super().__init__()
        self.profile.extend(STRUCTS)
        self.put("timekeeper", self.profile.symbols["timekeeper_data"] + 8, xtime_sec=NOW)
        self.link = self.global_("key_serial_tree", 8)
        self.above = 0
        self.keys: list[int] = []
        self.kinds: dict[str, int] = {}

    def plant(self, kind: str, description: str, **members: int) -> int:
        if kind not in self.kinds:
            self.kinds[kind] = self.new("key_type", name=self.string(kind))
        values = {"serial": 0x10000 + len(self.keys), "state": 1, "usage__refs__counter": 1, **members}
        at = self.new("key", type=self.kinds[kind], description=self.string(description), **values)
        node = at + self.offset("key", "serial_node")
        self.word(node, self.above)
        self.word(self.link, node)
        self.link, self.above = node + self.offset("rb_node", "rb_right"), node
        self.keys.append(at)
        return at


def populate() -> KeysGuest:
    guest = KeysGuest()
    guest.plant("keyring", "_uid.0", gid__val=0xFFFFFFFF, perm=0x1F3F0000, flags=1 << 2, keys__nr_leaves_on_tree=2)
    guest.plant("keyring", "none", expiry=(1 << 63) - 1)
    guest.plant("user", "secret", datalen=9, expiry=NOW + 3 * 3600 + 5, uid__val=33)
    guest.plant("user", "late", datalen=9, expiry=NOW - 1, flags=0b101011, state=-126)
    guest.plant("asymmetric", "Build time key", state=0)
    return guest.finish()  # type: ignore[return-value]


def test_every_column() -> None:
    table = kernel_keys(populate().kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert [row[:10] for row in table] == [
        ("00010000", "I--Q---", 1, "perm", "1f3f0000", 0, -1, "keyring", "_uid.0", "2"),
        ("00010001", "I------", 1, "perm", "00000000", 0, 0, "keyring", "none", "empty"),
        ("00010002", "I------", 1, "3h", "00000000", 33, 0, "user", "secret", "9"),
        ("00010003", "IRD-UNi", 1, "expd", "00000000", 0, 0, "user", "late", ""),
        ("00010004", "-------", 1, "perm", "00000000", 0, 0, "asymmetric", "Build time key", ""),
    ]
    assert table.expiry.tolist()[:2] == [0, 0]


@pytest.mark.parametrize(
    ("left", "word"), [(1, "1s"), (59, "59s"), (60, "1m"), (86400, "1d"), (7 * 86400, "1w"), (0, "expd")]
)  # fmt: skip
def test_how_long_a_key_lives(left: int, word: str) -> None:
    guest = KeysGuest()
    guest.plant("user", "x", expiry=NOW + left)
    assert kernel_keys(guest.finish().kernel, ["timeout"]).timeout.tolist() == [word]


@pytest.mark.parametrize("wild", [NOWHERE, HOLE, (1 << 64) - 8])
def test_wild_pointers_mark_their_rows_only(wild: int) -> None:
    guest = populate()
    guest.put("key", guest.keys[0], description=wild)
    guest.put("key", guest.keys[1], type=wild)
    guest.put("key", guest.keys[2], serial_node__rb_left=wild)
    table = kernel_keys(guest.kernel)
    assert table.fault.tolist() == ["description unreadable", "type unreadable", "", "", ""]
    assert table.notes == ("keys: a node could not be read",)


def test_a_circle_and_a_key_of_another_tree() -> None:
    guest = populate()
    guest.word(guest.link, guest.keys[0] + 8)
    assert len(kernel_keys(guest.kernel)) == 5
    assert "twice" in kernel_keys(guest.kernel).notes[0]
    guest.poke("key", guest.keys[4], "serial_node.__rb_parent_color", 8)
    assert kernel_keys(guest.kernel).fault.tolist() == ["", "", "", "", "not where the tree has it"]


def test_a_kernel_without_keys() -> None:
    guest = populate()
    del guest.profile.symbols["key_serial_tree"]
    with pytest.raises(Unsupported, match="no keys"):
        kernel_keys(guest.kernel)
