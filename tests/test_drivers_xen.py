"""What is known of Xen's structs, mappings and errors, without Xen: the real thing is in `tests.xen`."""

from __future__ import annotations

import ctypes
import errno
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vmi_inside
from vmi_inside.drivers import xen, xenframes, xenlib, xenpv, xenram
from vmi_inside.drivers.xenframes import Frames
from vmi_inside.errors import AttachError, GuestGone, NoMemory, NoSuchDomain, NotRunning, PermissionDenied, Unsupported

PAGE = 4096


class Ram:
    """Frames of a domain in an anonymous file of our own, mapped as the hypervisor's library does: side by side."""

    def __init__(self, frames: int, holes: frozenset[int] = frozenset(), info: xenlib.Info | None = None) -> None:
        self.file = mmap.mmap(-1, frames * PAGE)
        self.frames, self.holes, self.info = frames, holes, info
        self.base = ctypes.addressof(ctypes.c_ubyte.from_buffer(self.file))
        self.maps: dict[int, Any] = {}
        self.calls = 0

    def map(self, number: int, frames: int, errors: int, count: int, protection: int) -> int | None:
        self.calls += 1
        wanted = (ctypes.c_uint64 * count).from_address(frames)
        code = (ctypes.c_int32 * count).from_address(errors)
        room = mmap.mmap(-1, count * PAGE)
        at = ctypes.addressof(ctypes.c_ubyte.from_buffer(room))
        for index, frame in enumerate(wanted):
            if frame >= self.frames or frame in self.holes:
                code[index] = -errno.EINVAL
            else:
                ctypes.memmove(at + index * PAGE, self.base + frame * PAGE, PAGE)
        self.maps[at] = room
        return at

    def unmap(self, at: int, count: int) -> None:
        del self.maps[at]

    def domain(self, number: int) -> xenlib.Info | None:
        return self.info

    def last_frame(self, number: int) -> int:
        return self.frames - 1

    def frame_types(self, number: int, frames: Any) -> None:
        for index, frame in enumerate(frames.tolist()):
            frames[index] = 0xF000_0000 if frame in self.holes else 0

    def close(self) -> None:
        assert not self.maps


def info(**changed: Any) -> xenlib.Info:
    values = {
        "id": 7,
        "uuid": "u",
        "kind": "pvh",
        "flags": 0,
        "pages": 8,
        "most_pages": 8,
        "shared_info": 0,
        "vcpus": 1,
    }
    return xenlib.Info(**{**values, **changed})


def memory(ram: Ram) -> xen.XenMemory:
    ram.info = info()
    return xen.XenMemory(ram, xen.Domain("web", ram.info))  # type: ignore[arg-type]


def u64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


@pytest.mark.parametrize(("kind", "size"), xenlib.SIZES.items())
def test_sizes_of_structs(kind: type[ctypes.Structure], size: int) -> None:
    assert ctypes.sizeof(kind) == size


@pytest.mark.parametrize(
    ("kind", "field", "offset"),
    [
        (xenlib.DomainInfo, "tot_pages", 8), (xenlib.DomainInfo, "shared_info_frame", 48),
        (xenlib.DomainInfo, "handle", 76), (xenlib.DomainInfo, "emulation_flags", 104),
        (xenlib.UserRegisters, "rip", 128), (xenlib.UserRegisters, "rsp", 152), (xenlib.UserRegisters, "gs", 192),
        (xenlib.VcpuContext, "user_regs", 520), (xenlib.VcpuContext, "ctrlreg", 4984),
        (xenlib.VcpuContext, "gs_base_user", 5160),
    ],
)  # fmt: skip
def test_offsets_of_members(kind: Any, field: str, offset: int) -> None:
    assert getattr(kind, field).offset == offset


@pytest.mark.parametrize(
    ("flags", "emulated", "kind", "state"),
    [(0, 0, "pv", "running"), (2, 1, "pvh", "running"), (2, 0x1FF, "hvm", "running"), (8, 0, "pv", "paused"),
     (1, 0, "pv", "in shutdown"), (4, 0, "pv", "shut off"), (4 | 2 << 16, 0, "pv", "suspended"),
     (4 | 3 << 16, 0, "pv", "crashed")],
)  # fmt: skip
def test_what_the_hypervisor_says_of_a_domain(flags: int, emulated: int, kind: str, state: str) -> None:
    one = xenlib.DomainInfo(domain=3, flags=flags, emulation_flags=emulated, tot_pages=9)
    found = xenlib._info(one)
    assert (found.id, found.kind, found.state, found.pages) == (3, kind, state, 9)


@pytest.mark.parametrize(
    ("code", "error"), [(errno.ESRCH, GuestGone), (errno.EPERM, PermissionDenied), (errno.ENOMEM, AttachError)]
)
def test_errors_of_calls(code: int, error: type[Exception]) -> None:
    assert type(xenlib.failed(7, code, "xc_domain_pause")) is error


def test_this_is_no_xen_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xenlib, "PRIVCMD", str(tmp_path / "privcmd"))
    with pytest.raises(Unsupported, match="dom0"):
        vmi_inside.attach("xen:web")


def test_a_guest_without_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("PRIVCMD", ""), ("_CAPABILITIES", "")):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(xenlib, name, str(tmp_path / name))
    with pytest.raises(Unsupported, match="without control over others"):
        xenlib.Xen()


def test_libraries_that_are_missing_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xenlib, "VERSIONS", ("0.1",))
    monkeypatch.setattr(xenlib, "_FOLDERS", (str(tmp_path),))
    with pytest.raises(Unsupported, match="no libxenctrl: install"):
        xenlib._control()
    (tmp_path / "libxenctrl.so.9.9").touch()
    with pytest.raises(Unsupported, match=r"libxenctrl 9\.9 is not known"):
        xenlib._control()
    with pytest.raises(Unsupported, match=r"Debian: libnothing1"):
        xenlib._library("libnothing.so.1", "libnothing1")


def test_frames_are_mapped_once_and_given_back() -> None:
    ram = Ram(64, frozenset({5}))
    for frame in range(64):
        ram.file[frame * PAGE + 8] = frame + 1
    frames = Frames(ram, 7)
    out = np.full((4, 2), 9, np.uint8)
    assert frames.gather(u64(3, 5, 3, 63), u64(8, 8, 7, 8), out).tolist() == [True, False, True, True]
    assert out.tolist() == [[4, 0], [0, 0], [0, 4], [64, 0]]
    assert ram.calls == 1
    assert frames.failed
    assert frames.gather(u64(63), u64(8), out[:1]).all()
    assert ram.calls == 1
    frames.release()
    assert not ram.maps


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_no_more_are_mapped_than_may_be(most: int) -> None:
    ram = Ram(32)
    for frame in range(32):
        ram.file[frame * PAGE] = frame
    frames = Frames(ram, 7, most)
    wanted = np.random.default_rng(1).integers(0, 32, 200).astype(np.uint64)
    out = np.empty((200, 1), np.uint8)
    assert frames.gather(wanted, np.zeros(200, np.uint64), out).all()
    assert out[:, 0].tolist() == wanted.tolist()
    assert sum(len(room) for room in ram.maps.values()) <= most * PAGE
    frames.release()


def test_memory_with_holes() -> None:
    ram = Ram(2048, frozenset(range(700, 1030)))
    ram.file[10 * PAGE + 4090 : 11 * PAGE + 6] = bytes(range(12))
    seen = memory(ram)
    assert [(run.start // PAGE, run.size // PAGE) for run in seen.runs] == [(0, 700), (1030, 1018)]
    assert seen.read(10 * PAGE + 4090, 12) == bytes(range(12))
    assert seen.read(699 * PAGE, 2 * PAGE) is None
    assert seen.read(3 << 40, 8) is None
    assert not ram.maps
    with seen.hold():
        seen.read(0, 8)
        assert ram.maps
    assert not ram.maps
    assert not hasattr(seen, "write")
    seen.close()


def test_a_guest_that_is_gone_is_said_to_be() -> None:
    ram = Ram(16)
    seen = memory(ram)
    ram.holes, ram.info = frozenset(range(16)), None
    with pytest.raises(GuestGone, match="domain 7"):
        seen.gather(u64(0), np.empty((1, 8), np.uint8))
    ram.info = info(uuid="another")
    with pytest.raises(GuestGone):
        seen.check_alive()


def test_frames_of_a_guest_that_balloons_are_marked() -> None:
    ram = Ram(16)
    seen = memory(ram)
    ram.holes = frozenset({3})
    out = np.empty((2, 8), np.uint8)
    assert seen.gather(u64(2 * PAGE, 3 * PAGE), out).tolist() == [True, False]


def test_writing_where_there_is_nothing() -> None:
    ram = Ram(16, frozenset({3}), info())
    seen = xen.WritableXenMemory(ram, xen.Domain("web", info()))  # type: ignore[arg-type]
    with pytest.raises(NoMemory):
        seen.write(3 * PAGE - 4, b"12345678")


def pv_ram(table: list[int], cr3: int = 2) -> Ram:
    """A PV guest's frames: 1 is shared with Xen, 2 to 5 are page tables, 6 is the guest's table of frames."""
    ram = Ram(16, info=info(kind="pv", shared_info=1))
    at = 0x80_0000_0000
    for level, frame in zip((39, 30, 21, 12), (2, 3, 4, 5), strict=True):
        struct.pack_into("<Q", ram.file, frame * PAGE + (at >> level & 511) * 8, (frame + 1) * PAGE | 1)
    struct.pack_into("<6Q", ram.file, PAGE + 3088, len(table), 0, 0, cr3 * PAGE, at, 4)
    struct.pack_into(f"<{len(table)}Q", ram.file, 6 * PAGE, *table)
    return ram


GONE = (1 << 64) - 1


def test_pv_memory_by_the_guests_own_frames() -> None:
    ram = pv_ram([9, 8, GONE, 1 << 62 | 3, 10])
    ram.file[8 * PAGE] = 88
    seen = xenpv.PvMemory(ram, xen.Domain("pv", ram.info))  # type: ignore[arg-type]
    assert [(run.start // PAGE, run.size // PAGE) for run in seen.runs] == [(0, 2), (4, 1)]
    assert seen.read(PAGE, 1) == b"\x58"
    out = np.empty((4, 1), np.uint8)
    assert seen.gather(u64(PAGE, 2 * PAGE, 3 * PAGE, 77 * PAGE), out).tolist() == [True, False, False, False]
    entry = u64(8 * PAGE | 0x67, 10 * PAGE | 1 | 1 << 63, 12 * PAGE | 1, 8 * PAGE | 2, 0)
    assert seen.entries(entry).tolist() == [PAGE | 0x67, 4 * PAGE | 1 | 1 << 63, 0, 8 * PAGE | 2, 0]
    seen.close()


@pytest.mark.parametrize(("count", "cr3", "words"), [(1 << 50, 2, "booting"), (5, 0, "booting"), (5, 9, "try again")])
def test_a_pv_guest_that_tells_nonsense(count: int, cr3: int, words: str) -> None:
    ram = pv_ram([9], cr3)
    struct.pack_into("<Q", ram.file, PAGE + 3088, count)
    with pytest.raises(NotRunning, match=words):
        xenpv.PvMemory(ram, xen.Domain("pv", ram.info))  # type: ignore[arg-type]


class Host:
    """A hypervisor with two domains, as far as finding them goes."""

    def domains(self) -> list[xenlib.Info]:
        return [info(id=0, kind="pv"), info(id=4, flags=xenlib.DYING), info(id=7, uuid="a-b")]

    def name(self, number: int) -> str:
        return {0: "Domain-0", 4: "old", 7: "web"}[number]


@pytest.mark.parametrize("target", ["web", "7", "A-B"])
def test_finding_a_domain(target: str) -> None:
    assert xen.find(Host(), target).id == 7  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [("wep", NoSuchDomain, "'web'"), ("9", NoSuchDomain, "xl list"), ("7" * 5000, NoSuchDomain, "xl list"),
     ("0", Unsupported, "domain 0"),
     ("old", NotRunning, "in shutdown")],
)  # fmt: skip
def test_what_cannot_be_found(target: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        xen.find(Host(), target)  # type: ignore[arg-type]


def test_ranges_of_frames() -> None:
    assert xenram.stretches(u64(1, 2, 3, 7, 9, 10)) == [(1, 4), (7, 8), (9, 11)]
    assert [(run.start, run.size) for run in xenram.joined([(0, 2), (2, 3), (5, 6)])] == [
        (0, 3 * PAGE),
        (5 * PAGE, PAGE),
    ]
    assert xenframes.pages(4095, 2).tolist() == [0, 1]
