"""What goes wrong with real guests: one clear line, a documented exit code, a typed exception, an unchanged guest."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import vmi_inside
from tests.lab.guest import LabGuest
from tests.lab.libvirt import Daemon
from vmi_inside import errors

pytestmark = pytest.mark.lab

COMMAND = [sys.executable, "-m", "vmi_inside.cli"]


def run(*arguments: str, uri: str | None = None, **options: object) -> tuple[int, str]:
    """Exit code and the one line on stderr."""
    environment = {**os.environ, **({"LIBVIRT_DEFAULT_URI": uri} if uri else {})}
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, env=environment, check=False, **options
    )  # fmt: skip
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines
    return done.returncode, lines[0]


def test_no_such_domain(lab: Daemon) -> None:
    code, line = run("ps", "nobody", uri=lab.uri)
    assert code == 3
    assert "nobody" in line
    with pytest.raises(errors.NoSuchDomain):
        vmi_inside.attach("nobody", connect=lab.uri)


def test_a_domain_that_does_not_run(lab: Daemon) -> None:
    xml = (
        "<domain type='qemu'><name>asleep</name><memory>65536</memory><os><type arch='x86_64'>hvm</type></os></domain>"
    )
    with lab.connection() as connection:
        domain = connection.defineXML(xml)
        try:
            code, line = run("ps", "asleep", uri=lab.uri)
        finally:
            domain.undefine()
    assert code == 4
    assert "asleep" in line
    assert "start asleep" in line


@pytest.fixture
def firmware_only(tmp_path: Path):
    """A QEMU that has nothing to boot: its guest stays in the firmware."""
    socket = tmp_path / "qmp"
    process = subprocess.Popen([
        "qemu-system-x86_64", "-accel", "tcg", "-m", "128", "-display", "none", "-nodefaults",
        "-qmp", f"unix:{socket},server=on,wait=off",
    ], stdin=subprocess.DEVNULL)  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while not socket.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        yield socket
    finally:
        process.kill()
        process.wait()


def test_a_guest_in_its_boot_loader(firmware_only: Path) -> None:
    code, line = run("ps", f"qmp:{firmware_only}")
    assert code == 6
    assert "kernel" in line


def test_a_guest_that_is_destroyed_while_attached(lab_fresh: Callable[..., LabGuest]) -> None:
    guest = lab_fresh(workload="none")
    with guest.attach() as seen:
        assert len(seen.processes()) > 10
        guest.destroy()
        time.sleep(0.5)
        with pytest.raises(errors.GuestGone, match="attach again"):
            seen.processes()


def test_a_guest_that_reboots_while_attached(lab_fresh: Callable[..., LabGuest]) -> None:
    guest = lab_fresh(workload="none", backing="memfd")
    with guest.attach() as seen:
        before = seen.kernel.profile.slide
        seen.processes()
        guest.domain.reset()
        deadline = time.monotonic() + 150
        gone = None
        while gone is None and time.monotonic() < deadline:
            try:
                seen.processes(columns=("pid", "name"))
            except errors.GuestGone as error:
                gone = error
            time.sleep(0.5)
        assert gone is not None
        assert "attach again" in str(gone)
    while True:  # the new kernel needs a moment until it has processes
        try:
            with warnings.catch_warnings():
                # What is left of the kernel before may still look whole; then a notice says which one was taken.
                warnings.filterwarnings("ignore", "lab-.*several kernels lie in this memory", vmi_inside.Notice)
                again = guest.attach()
            with again:
                if "workload" in again.processes().name:
                    assert again.kernel.profile.slide != before
                    break
        except errors.VmiError:
            pass
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "rubbish"])
def test_a_damaged_cache_is_made_anew(
    lab_guest: LabGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setenv("VMI_INSIDE_CACHE", str(tmp_path / "cache"))
    with lab_guest.attach() as seen:
        expected = {row.pid for row in seen.processes() if not row.kernel_thread}
    (file,) = (tmp_path / "cache").rglob("*.profile")
    raw = bytearray(file.read_bytes())
    if damage == "cut":
        raw = raw[: len(raw) // 2]
    elif damage == "flipped":
        for at in range(0, len(raw), 4096):
            raw[at] ^= 0x5A
    else:
        raw = bytearray() if damage == "empty" else bytearray(os.urandom(8192))
    file.write_bytes(raw)
    with lab_guest.attach() as seen:
        assert {row.pid for row in seen.processes() if not row.kernel_thread} >= expected - {0}
    (again,) = (tmp_path / "cache").rglob("*.profile")
    assert again.stat().st_size > 1 << 20
