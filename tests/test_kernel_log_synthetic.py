"""The kernel's log of made-up guests, rings and the older buffer; and guests that lie about theirs."""

from __future__ import annotations

import struct

import pytest

from tests.synthetic import SyntheticGuest
from tests.synthetic.guest import HOLE, NOWHERE
from vmi_inside.linux.kernel_log import kernel_log

STRUCTS = """
prb_data_blk_lpos 16
    begin 0 u64
    next 8 u64
atomic_long 8
    counter 0 i64
prb_desc 24
    state_var 0 atomic_long
    text_blk_lpos 8 prb_data_blk_lpos
dev_printk_info 64
    subsystem 0 char[16]
    device 16 char[48]
printk_info 88
    seq 0 u64
    ts_nsec 8 u64
    text_len 16 u16
    facility 18 u8
    flags 19 u8:5+0
    level 19 u8:3+5
    caller_id 20 u32
    dev_info 24 dev_printk_info
prb_desc_ring 48
    count_bits 0 u32
    descs 8 *prb_desc
    infos 16 *printk_info
    head_id 24 atomic_long
    tail_id 32 atomic_long
prb_data_ring 32
    size_bits 0 u32
    data 8 *char
printk_ringbuffer 88
    desc_ring 0 prb_desc_ring
    text_data_ring 48 prb_data_ring
"""
OLDER = """
printk_log 24
    ts_nsec 0 u64
    len 8 u16
    text_len 10 u16
    dict_len 12 u16
    facility 14 u8
    flags 15 u8:5+0
    level 15 u8:3+5
    caller_id 16 u32
"""
BITS, SIZE = 4, 1 << 9
COMMITTED, FINALIZED, REUSABLE = 1, 2, 3


class Ring:
    """A ring of 16 records and 512 bytes of text, into which a guest has written."""

    def __init__(self) -> None:
        self.guest = SyntheticGuest()
        self.guest.profile.extend(STRUCTS)
        put = self.guest
        self.descs = put.alloc(24 << BITS, "descs")
        self.infos = put.alloc(88 << BITS, "infos")
        self.data = put.alloc(SIZE, "text")
        self.prb = put.global_("printk_rb_static", 128)
        put.word(put.global_("prb", 8), self.prb)
        self.put("printk_ringbuffer", self.prb, desc_ring__count_bits=BITS, desc_ring__descs=self.descs,
                 desc_ring__infos=self.infos, text_data_ring__size_bits=9, text_data_ring__data=self.data)  # fmt: skip
        self.id = (1 << 62) - 3  # ids go round, too
        self.tail = self.id
        self.position = (1 << 64) - 100 & ~7
        self.sequence = 100

    def put(self, *args: object, **members: int) -> None:
        self.guest.put(*args, **members)  # type: ignore[arg-type]

    def log(self, text: bytes, state: int = FINALIZED, **info: int | bytes) -> int:
        """One more record; its descriptor's place."""
        begin = self.position
        size = (8 + len(text) + 7) & ~7
        end = begin + size
        at = begin
        if text and begin // SIZE != (end - 1) // SIZE:
            at = end // SIZE * SIZE
            end = at + size
        if text:
            self.guest.write(self.data + at % SIZE, struct.pack("<Q", self.id) + text)
            self.position = end & (1 << 64) - 1
        place = self.id & (1 << BITS) - 1
        lpos = (begin & (1 << 64) - 1, self.position) if text else (3, 3)
        self.put("prb_desc", self.descs + 24 * place, state_var__counter=state << 62 | self.id,
                 text_blk_lpos__begin=lpos[0], text_blk_lpos__next=lpos[1])  # fmt: skip
        about = self.infos + 88 * place
        self.put("printk_info", about, **{"seq": self.sequence, "text_len": len(text), **info})  # type: ignore[dict-item]
        self.guest.write(about + 19, bytes([6 << 5]))
        ends = {"desc_ring__head_id__counter": self.id, "desc_ring__tail_id__counter": self.tail}
        self.put("printk_ringbuffer", self.prb, **ends)
        self.id = self.id + 1 & (1 << 62) - 1
        self.sequence += 1
        if (self.id - self.tail & (1 << 62) - 1) >= 1 << BITS:
            self.tail = self.tail + 1 & (1 << 62) - 1
        return place

    def read(self, **options: int) -> list[tuple]:
        table = kernel_log(self.guest.kernel, **options)
        return [(row.sequence, row.text, row.fault) for row in table]


def test_texts_that_go_round() -> None:
    ring = Ring()
    planted = []
    for number in range(40):
        text = b"line %d " % number + b"x" * (number % 11)
        planted.append((ring.sequence, text.decode(), ""))
        ring.log(text)
    assert ring.read() == planted[-16:]
    assert ring.read(after=planted[-3][0]) == planted[-2:]
    assert ring.read(after=1) == planted[-16:]
    assert ring.read(after=1 << 40) == []


def test_words() -> None:
    ring = Ring()
    ring.log(b"one\ntwo \xff", ts_nsec=1_500_000_000, facility=3, caller_id=77, dev_info__subsystem=b"pci")
    ring.log(b"", caller_id=1 << 31 | 5, facility=17)
    ring.log(b"open", COMMITTED, facility=99)
    ring.log(b"old", REUSABLE)
    ring.log(b"being written", 0)
    table = kernel_log(ring.guest.kernel)
    assert table.text.tolist() == ["one\ntwo \\xff", "", "open"]
    assert table.time.tolist() == [1.5, 0, 0]
    assert table.caller.tolist() == ["T77", "C5", "T0"]
    assert table.facility.tolist() == ["daemon", "local1", "99"]
    assert table.level.tolist() == ["info"] * 3
    assert table.subsystem.tolist() == ["pci", "", ""]
    assert table.finished.tolist() == [True, True, False]
    assert set(table.fault) == {""}
    assert kernel_log(ring.guest.kernel, ["text"]).columns == ("text", "fault")
    with pytest.raises(AttributeError, match="no column 'nonsense'"):
        kernel_log(ring.guest.kernel, ["nonsense"])


def test_texts_that_lie_mark_their_rows_only() -> None:
    ring = Ring()
    places = [ring.log(b"text %d" % number) for number in range(8)]
    for place, lie in zip(places, (
        {"begin": 5}, {"next": 8}, {"begin": (1 << 64) - 8}, {"begin": 0, "next": (1 << 64) - 8}, {},
    ), strict=False):  # fmt: skip
        ring.put("prb_desc", ring.descs + 24 * place, **{f"text_blk_lpos__{name}": to for name, to in lie.items()})
    ring.put("printk_info", ring.infos + 88 * places[4], text_len=65535)
    ring.guest.word(ring.data + ring.guest.space.read_u64(ring.descs + 24 * places[5] + 8) % SIZE, 1)  # another's block
    rows = kernel_log(ring.guest.kernel)
    assert len(rows) == 8
    assert rows.fault.tolist() == ["text lost"] * 6 + ["", ""]
    assert rows.text[4].startswith("text 4")
    assert rows.text.tolist()[6:] == ["text 6", "text 7"]


@pytest.mark.parametrize("wild", [NOWHERE, HOLE, 0, (1 << 64) - 8])
def test_wild_pointers(wild: int) -> None:
    ring = Ring()
    ring.log(b"text")
    ring.put("printk_ringbuffer", ring.prb, text_data_ring__data=wild)
    assert [row[1:] for row in ring.read()] == [("", "text lost")]
    ring.put("printk_ringbuffer", ring.prb, desc_ring__infos=wild)
    assert {row[2] for row in ring.read()} <= {"record unreadable", ""}
    ring.guest.word(ring.guest.profile.symbols["prb"], wild)
    table = kernel_log(ring.guest.kernel)
    assert len(table) == 0
    assert table.notes


@pytest.mark.parametrize("bits", [21, 63, 64, (1 << 32) - 1])
def test_sizes_that_make_no_sense(bits: int) -> None:
    for name in ("desc_ring__count_bits", "text_data_ring__size_bits"):
        ring = Ring()
        ring.log(b"text")
        ring.put("printk_ringbuffer", ring.prb, **{name: bits})
        table = kernel_log(ring.guest.kernel)
        assert len(table) <= 1
        assert table.notes or table.fault[0]


def test_a_ring_with_more_records_than_room() -> None:
    ring = Ring()
    for _ in range(20):
        ring.log(b"text")
    ring.put("printk_ringbuffer", ring.prb, desc_ring__tail_id__counter=1 << 61)
    table = kernel_log(ring.guest.kernel)
    assert len(table) == 16
    assert "in a ring of 16" in table.notes[0]


def older(records: list[tuple[bytes, bytes]], first: int, size: int = 256) -> tuple[SyntheticGuest, int]:
    """A buffer of records that begin at `first` and go round."""
    guest = SyntheticGuest()
    guest.profile.extend(OLDER)
    data, at, turned = bytearray(size), first, False
    for text, dictionary in records:
        length = (24 + len(text) + len(dictionary) + 7) & ~7
        if at + length + 24 > size and not turned:
            data[at + 8 : at + 10] = b"\0\0"
            at, turned = 0, True
        body = struct.pack("<QHHHBBI", 10**9, length, len(text), len(dictionary), 0, 4 << 5, 9) + bytes(4)
        data[at : at + length] = (body + text + dictionary).ljust(length, b"\0")
        at += length
    where = guest.alloc(size, "log_buf")
    guest.write(where, bytes(data))
    for name, value, width in (
        ("log_buf", where, 8), ("log_buf_len", size, 4), ("log_first_idx", first, 4), ("log_next_idx", at, 4),
        ("log_first_seq", 7, 8), ("log_next_seq", 7 + len(records), 8),
    ):  # fmt: skip
        guest.write(guest.global_(name, 8), value.to_bytes(width, "little"))
    return guest, where


def test_the_older_buffer() -> None:
    guest, where = older([(b"one", b""), (b"two\nlines", b"SUBSYSTEM=pci\0DEVICE=+pci:1"), (b"three", b"")], first=120)
    table = kernel_log(guest.kernel)
    assert table.notes == ()
    assert table.sequence.tolist() == [7, 8, 9]
    assert table.text.tolist() == ["one", "two\nlines", "three"]
    assert table.level.tolist() == ["warn"] * 3
    assert table.device.tolist() == ["", "+pci:1", ""]
    assert table.caller.tolist() == ["T9"] * 3
    assert kernel_log(guest.kernel, after=8).text.tolist() == ["three"]
    assert kernel_log(guest.kernel, after=99).text.tolist() == []
    for lie in (b"\x02\0", b"\xff\xff", b"\0\0"):
        guest.write(where + 120 + 8, lie)
        table = kernel_log(guest.kernel)
        assert len(table) <= 3
        assert table.notes
    guest.write(guest.profile.symbols["log_buf_len"], b"\xff\xff\xff\xff")
    assert "no sense" in kernel_log(guest.kernel).notes[0]


def test_a_kernel_without_a_log() -> None:
    table = kernel_log(SyntheticGuest().kernel)
    assert (len(table), len(table.notes)) == (0, 1)
