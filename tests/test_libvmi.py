"""LibVMI's FILE driver under our own layers, on files made here; the real library does the reading."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from vmi_inside import attach
from vmi_inside.available import drivers
from vmi_inside.drivers import libvmi, libvmimachine
from vmi_inside.drivers.dump import open_dump
from vmi_inside.errors import (
    BadDump,
    ControlError,
    GuestGone,
    NoSuchDomain,
    PermissionDenied,
    UnknownKernel,
    Unsupported,
)
from vmi_inside.memory import PhysicalMemory, Run, WritableMemory

MIB = 1 << 20

if sys.version_info >= (3, 12) and find_spec("_libvmi") is None:
    pytest.skip("LibVMI's package has no wheels for this Python", allow_module_level=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "ram.raw"
    np.random.default_rng(5).integers(0, 256, 4 * MIB, np.uint8).tofile(path)
    return path


@pytest.mark.parametrize("width", [1, 8, 64, 4096])
def test_it_reads_what_our_own_driver_reads(image: Path, width: int) -> None:
    own, other = open_dump(image, file_format="raw"), libvmi.open_file(str(image))
    assert isinstance(other, PhysicalMemory)
    assert not isinstance(other, WritableMemory)
    assert other.runs == own.runs == (Run(0, 4 * MIB),)
    random = np.random.default_rng(width)
    page = random.integers(0, 5 * MIB >> 12, 3000, np.uint64)  # a fifth lies behind the end
    page[:4] = 0, (4 * MIB >> 12) - 1, 4 * MIB >> 12, (1 << 52) - 1
    pa = (page << np.uint64(12)) + random.integers(0, 4097 - width, 3000, np.uint64)
    mine, theirs = np.full((3000, width), 1, np.uint8), np.full((3000, width), 2, np.uint8)
    good = own.gather(pa, mine)
    assert 2000 < good.sum() < 3000
    assert (other.gather(pa, theirs) == good).all()
    assert (mine == theirs).all()
    for at, size in ((0, 4 * MIB), (4 * MIB - 5, 5), (5000, 9000), (3, 0)):
        assert bytes(other.read(at, size) or b"") == bytes(own.read(at, size) or b"")
    assert other.read(4 * MIB - 5, 6) is None
    assert other.gather(pa[:0], theirs[:0]).tolist() == []
    other.close()


def test_more_pages_than_one_round_holds(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvmi, "_PAGES", 7)
    other = libvmi.open_file(str(image))
    pa = np.random.default_rng(1).permutation(np.arange(0, 4 * MIB, 2048, dtype=np.uint64))
    out = np.empty((len(pa), 16), np.uint8)
    assert other.gather(pa, out).all()
    assert (out == np.fromfile(image, np.uint8).reshape(-1, 2048)[pa >> np.uint64(11), :16]).all()
    other.close()


def test_nothing_stale_is_shown(image: Path) -> None:
    other = libvmi.open_file(str(image))
    out = np.empty((1, 8), np.uint8)
    for text in (b"one.....", b"two....."):
        with image.open("r+b") as file:
            file.seek(8192)
            file.write(text)
        assert other.gather(np.array([8192], np.uint64), out).all()
        assert out.tobytes() == text
        assert other.read(8192, 8) == text
    other.close()


def test_a_file_that_became_shorter(image: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = libvmi.open_file(str(image))
    os.truncate(image, MIB)
    out = np.full((4, 8), 9, np.uint8)
    ok = other.gather(np.array([2 * MIB, 4096, MIB - 8, MIB], np.uint64), out)
    assert ok.tolist() == [False, True, True, False]
    assert not out[[0, 3]].any()
    assert other.read(MIB - 4, 8) is None
    other.close()
    assert capfd.readouterr() == ("", "")


def test_the_hole_below_4_gib(tmp_path: Path) -> None:
    path = tmp_path / "joined"
    with path.open("wb") as file:
        file.truncate(4 << 30)
        for at in (0x1000, 2 << 30, (4 << 30) - 4096):
            file.seek(at)
            file.write(at.to_bytes(8, "little"))
    other = libvmi.open_file(str(path), split=2 << 30)
    assert other.runs == (Run(0, 2 << 30), Run(4 << 30, 2 << 30))
    assert other.read(4 << 30, 8) == (2 << 30).to_bytes(8, "little")
    assert other.read((6 << 30) - 4096, 8) == ((4 << 30) - 4096).to_bytes(8, "little")
    assert other.read(2 << 30, 8) is None
    other.close()


def test_threads_take_turns(image: Path) -> None:
    other = libvmi.open_file(str(image))
    truth = np.fromfile(image, np.uint8).reshape(-1, 4096)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for page in np.random.default_rng(seed).integers(0, len(truth), 300).tolist():
            if other.read(page << 12, 4096) != truth[page].tobytes():
                wrong.append(page)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    other.close()


def test_bad_targets(image: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "core").write_bytes(b"\x7fELF".ljust(MIB, b"\0"))
    (tmp_path / "qcow").write_bytes(b"QFI\xfb".ljust(MIB, b"\0"))
    (tmp_path / "empty").touch()
    for name, kind, words in (
        (f"{tmp_path}/none", NoSuchDomain, "no such file"),
        (f"{tmp_path}", BadDump, "directory"),
        (f"{tmp_path}/empty", BadDump, "empty"),
        (f"{tmp_path}/core", BadDump, "attach to file:"),
        (f"{tmp_path}/qcow", BadDump, "disk image"),
        (str(image), UnknownKernel, "kernel"),
        ("no-such-domain", NoSuchDomain, "LibVMI finds no such domain"),
        ("4294967299", NoSuchDomain, "LibVMI finds no such domain"),
        ("\N{SNOWMAN}" * 300, NoSuchDomain, "LibVMI finds no such domain"),
    ):
        with pytest.raises(kind, match=words):
            attach(f"libvmi:{name}")
    for consent in ({"writable": True}, {"pausing": True}):
        with pytest.raises(Unsupported, match="a file is only read"):
            attach(f"libvmi:{image}", **consent)
        with pytest.raises(NoSuchDomain, match="LibVMI finds no such domain"):
            attach("libvmi:no-such-domain", **consent)
    assert capfd.readouterr() == ("", "")


def test_a_file_beside_us_is_not_held_either(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(image.parent)
    for consent in ({"writable": True}, {"pausing": True}):
        with pytest.raises(Unsupported, match="a file is only read"):
            attach(f"libvmi:{image.name}", **consent)


def test_only_guests_of_xen_are_held(image: Path) -> None:
    memory = libvmi.open_file(str(image))
    with pytest.raises(Unsupported, match="web01: through LibVMI a KVM guest is only read"):
        libvmimachine.open_machine("web01", memory)
    memory.close()
    with pytest.raises(ControlError, match="let go"), memory.instance():
        pass


def test_numbers_of_registers_are_those_of_the_package() -> None:
    _, lib = libvmi.package()
    named = {name.upper(): number for name, number in (libvmimachine.GENERAL | libvmimachine.OTHERS).items()}
    named["RFLAGS"] = named.pop("EFLAGS")
    known = {name: number for name, number in named.items() if hasattr(lib, name)}
    assert known == {name: getattr(lib, name) for name in known}
    assert len(known) == 22


def test_a_file_that_may_not_be_read(image: Path) -> None:
    libvmi.package()
    image.chmod(0)
    root = not os.geteuid()
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionDenied):
            libvmi.open_file(str(image))
    finally:
        if root:
            os.seteuid(0)


def test_the_process_whose_memory_it_is_ends(tmp_path: Path) -> None:
    code = "import os; fd = os.memfd_create('ram'); os.ftruncate(fd, 1 << 21); print(fd, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        fd = int(process.stdout.readline())
        other = libvmi.open_file(f"/proc/{process.pid}/fd/{fd}")
        assert other.read(4096, 8) == bytes(8)
        process.kill()
        process.wait()
    with pytest.raises(GuestGone, match="ended"):
        other.read(4096, 8)
    with pytest.raises(GuestGone, match="ended"):
        other.gather(np.zeros(1, np.uint64), np.empty((1, 8), np.uint8))
    other.close()


def test_without_the_package(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "_libvmi", None)
    for name in (str(image), "web01"):
        with pytest.raises(Unsupported, match=r"vmi-inside\[libvmi\]"):
            attach(f"libvmi:{name}")
    rows = {row.driver: row for row in drivers()}
    for kind in ("file", "xen", "kvm"):
        assert not rows[f"libvmi-{kind}"].available
        assert "vmi-inside[libvmi]" in rows[f"libvmi-{kind}"].reason


def test_which_drivers_there_are(capfd: pytest.CaptureFixture[str]) -> None:
    rows = {row.driver: row for row in drivers("test:///default")}
    assert list(rows) == ["libvirt", "qmp", "xen", "file", "libvmi-file", "libvmi-xen", "libvmi-kvm"]
    assert all(rows[name].available for name in ("libvirt", "qmp", "file", "libvmi-file"))
    for row in rows.values():
        assert row.available or row.reason
    assert capfd.readouterr() == ("", "")
    refused = {row.driver: row for row in drivers("qemu+unix:///system?socket=/nowhere")}
    assert not refused["libvirt"].available
    assert "/nowhere" in refused["libvirt"].reason


def test_where_the_ram_of_a_domain_is() -> None:
    gib = 1 << 30
    assert libvmi.live_runs("xen", gib, 5 * gib) == (Run(0, 5 * gib),)
    low = (Run(0, 0xA0000), Run(0xC0000, 2 * gib - 0xC0000))
    assert libvmi.live_runs("kvm", 2 * gib, 2 * gib) == low
    assert libvmi.live_runs("kvm", 4 * gib, 6 * gib) == (*low, Run(4 * gib, 2 * gib))
    with pytest.raises(Unsupported, match="fit together"):
        libvmi.live_runs("kvm", gib, 6 * gib)
