"""Guests through LibVMI, as dumps, and under gdb: each against what our own driver, the guest, and other tools say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drgn
import pytest

import vmi_inside
from tests.lab.guest import LabGuest
from vmi_inside.errors import GuestGone, Unsupported

pytestmark = pytest.mark.lab

COMMAND = [sys.executable, "-W", "error", "-m", "vmi_inside.cli"]
TABLES = ("processes", "threads", "process_open_sockets", "kernel_modules", "mounts")


@pytest.fixture(autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal, and gdb's files, for this test alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture
def shared(lab_boot: Callable[..., LabGuest]) -> LabGuest:
    """A guest whose RAM is shared, and which this module may pause."""
    return lab_boot(kernel="6.12-cloud", cpu="la57-off", backing="memfd", vcpus=1, workload="none")


def run(guest: LabGuest, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "VIRSH_DEFAULT_CONNECT_URI": guest.uri or ""}
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False, env=environment, **options)


def ram_file(guest: LabGuest) -> str:
    """QEMU's file of the guest's RAM."""
    folder = Path(f"/proc/{guest.pid}/fd")
    return next(str(path) for path in folder.iterdir() if "memory-backend-memfd" in os.readlink(path))


def rows(seen: vmi_inside.Guest) -> dict[str, list[dict[str, Any]]]:
    return {name: getattr(seen, name)().to_dicts() for name in TABLES}


# -- LibVMI -----------------------------------------------------------------------------------------------------------


def test_a_running_guest_through_libvmi(shared: LabGuest, capfd: pytest.CaptureFixture[str]) -> None:
    path = ram_file(shared)
    with shared.attach(pausing=True) as own, vmi_inside.attach(f"libvmi:{path}") as other:
        assert other.how == "LibVMI, file"
        with own.paused():
            assert rows(own) == rows(other)
            assert len(own.processes()) > 20
    assert capfd.readouterr() == ("", "")


def test_what_happens_in_the_guest_is_seen_at_once(shared: LabGuest) -> None:
    with vmi_inside.attach(f"libvmi:{ram_file(shared)}") as seen:
        for number in range(3):
            pid = int(shared.ask(f"sleep {100 + number} & echo $!"))
            names = {row.pid: row.name for row in seen.processes()}
            assert names[pid] == "sleep"
            shared.ask(f"kill {pid}; wait; true")
            time.sleep(0.2)
            assert names.keys() - {row.pid for row in seen.processes()} >= {pid}


def test_libvmi_needs_no_more_than_a_file(shared: LabGuest) -> None:
    done = run(shared, "ps", f"libvmi:{ram_file(shared)}", "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    inside = {int(name) for name in shared.ask("ls /proc").split() if name.isdigit()}
    assert len(inside & {row["pid"] for row in json.loads(done.stdout)}) > 20
    refused = run(shared, "pause", f"libvmi:{ram_file(shared)}")
    assert refused.returncode == 9
    assert "only read" in refused.stderr


def test_five_levels_of_paging_through_libvmi(lab_guest: LabGuest, tmp_path: Path) -> None:
    """LibVMI alone cannot translate these: our walker does. The image is raw, made of a guest whose RAM is private."""
    path = tmp_path / "ram.raw"
    with lab_guest.attach() as own:
        assert own.kernel.space.paging.levels == 5
        made = own.dump(path, format="raw")
        assert made.missing == 0
    with vmi_inside.attach(f"file:{path}") as image, vmi_inside.attach(f"libvmi:{path}") as other:
        assert rows(image) == rows(other)
        assert len(other.processes()) > 100
        assert other.kernel.space.paging.levels == 5


# -- dumps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["elf", "raw", "lime"])
def test_a_dump_has_the_tables_of_its_moment(shared: LabGuest, form: str, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    with shared.attach(pausing=True) as own, own.paused():
        before = rows(own)
        made = own.dump(path, format=form, pause=True)
        with vmi_inside.attach(f"file:{path}") as image:
            assert rows(image) == before
    assert made.missing == 0
    assert made.vcpus == (form == "elf")
    assert made.stored < made.memory
    assert shared.ask("echo runs").strip() == "runs"


@pytest.mark.parametrize("kernel", ["6.1-cloud", "5.10-cloud", "new-cloud"])
def test_drgn_opens_a_core(lab_boot: Callable[..., LabGuest], kernel: str, tmp_path: Path) -> None:
    """It takes it for a Linux kernel by its VMCOREINFO, and reads at physical, the image's, and modules' addresses."""
    guest = lab_boot() if kernel == "6.1-cloud" else lab_boot(kernel=kernel)
    path = tmp_path / "core"
    with guest.attach() as seen:
        made = seen.dump(path)
        assert made.vmcoreinfo
        banner = seen.kernel.symbol("linux_banner")
        physical = seen.kernel.space.translate_one(banner)
        modules = seen.kernel_modules()
        address, name = int(modules.address[0]), modules.name[0]
        offset = seen.kernel.struct("module").member("name").offset
    program = drgn.Program()
    program.set_core_dump(path)
    assert program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
    text = guest.ask("cat /proc/version").strip().encode()
    assert program.read(physical, len(text), physical=True) == text
    assert program.read(banner, len(text)) == text
    assert program.read(address + offset, len(name)) == name.encode()  # modules are mapped by page tables alone


@pytest.mark.skipif(
    shutil.which("makedumpfile") is None and not os.environ.get("CI"), reason="makedumpfile is not installed"
)
@pytest.mark.filterwarnings("ignore:.*pages were left out:vmi_inside.guest.Notice")
@pytest.mark.parametrize("shape", [{}, {"cpu": "la57-off"}], ids=["la57", "la57-off"])
def test_makedumpfile_opens_a_core(lab_boot: Callable[..., LabGuest], shape: dict[str, str], tmp_path: Path) -> None:
    """It finds the kernel's log, and leaves out what is not the kernel's; what it makes can be read as before."""
    guest = lab_boot(**shape)
    core, log, small = tmp_path / "core", tmp_path / "log", tmp_path / "small"
    with guest.attach() as seen:
        made = seen.dump(core)
    with vmi_inside.attach(f"file:{core}") as image:
        told = image.kernel_log().text.tolist()
        names = {row.pid: row.name for row in image.processes(columns=("pid", "name"))}
    for words in (["--dump-dmesg", str(core), str(log)], ["-l", "-d", "31", str(core), str(small)]):
        done = subprocess.run(["makedumpfile", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    lines = log.read_text("utf-8", "replace").splitlines()
    assert len(lines) >= len(told) > 100
    assert lines[0].endswith(told[0].splitlines()[0])
    assert lines[-1].endswith(told[-1].splitlines()[-1])
    assert small.stat().st_size < made.stored // 2
    with vmi_inside.attach(f"file:{small}") as image:
        assert {row.pid: row.name for row in image.processes(columns=("pid", "name"))} == names
        assert len(image.kernel_modules()) > 5


def test_the_command(shared: LabGuest, tmp_path: Path) -> None:
    path = tmp_path / "core"
    done = run(shared, "dump", shared.name, str(path), "--pause")
    assert done.returncode == 0, done.stderr
    assert "registers of 1 vCPUs" in done.stderr
    assert re.search(r"the guest stood for \d+\.\d\d s", done.stderr)
    checked = subprocess.run(["sha256sum", "-c"], input=done.stdout, capture_output=True, text=True, check=False)
    assert checked.stdout == f"{path}: OK\n"
    with vmi_inside.attach(f"file:{path}") as image:
        (state,) = image.memory.notes.registers  # type: ignore[attr-defined]
        assert image.kernel.profile.symbol_at(state["rip"]) is not None or state["rip"] < 1 << 47
    again = run(shared, "dump", shared.name, str(path))
    assert again.returncode == 2
    assert "--force" in again.stderr
    written = run(shared, "dump", shared.name, str(path), "--force", "--json", "--as", "lime", "-q")
    assert (written.returncode, written.stderr) == (0, "")
    assert json.loads(written.stdout)["format"] == "lime"
    assert run(shared, "dump", f"file:{path}", str(tmp_path / "b"), "--pause").returncode == 9
    assert run(shared, "dump", f"file:{path}", str(tmp_path / "b")).returncode == 0
    assert shared.ask("echo runs").strip() == "runs"


def test_a_full_disk_lets_the_guest_go(shared: LabGuest, tmp_path: Path) -> None:
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20)); "
    code = limit + "sys.argv[0] = 'vmi-inside'; runpy.run_module('vmi_inside.cli', run_name='__main__')"
    environment = {**os.environ, "VIRSH_DEFAULT_CONNECT_URI": shared.uri or ""}
    words = [sys.executable, "-c", code, "dump", shared.name, str(tmp_path / "core"), "--pause"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "File too large; nothing of the dump is left" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []
    assert shared.ask("echo runs", timeout=20).strip() == "runs"


def test_a_guest_that_ends_meanwhile(lab_fresh: Callable[..., LabGuest], tmp_path: Path) -> None:
    guest = lab_fresh(workload="none", backing="memfd")

    def end(done: int, total: int) -> None:
        if done > total // 2:
            guest.destroy()

    with guest.attach() as seen, pytest.raises(GuestGone):
        seen.dump(tmp_path / "core", progress=end)
    assert os.listdir(tmp_path) == []


def test_pausing_needs_consent(shared: LabGuest, tmp_path: Path) -> None:
    with shared.attach() as seen:
        with pytest.raises(Unsupported, match="pausing=True"):
            seen.dump(tmp_path / "core", pause=True)
        with pytest.raises(Unsupported, match="elf, raw, lime"):
            seen.dump(tmp_path / "core", format="vmss")
    assert os.listdir(tmp_path) == []


# -- gdb --------------------------------------------------------------------------------------------------------------

needs_gdb = pytest.mark.skipif(shutil.which("gdb") is None and not os.environ.get("CI"), reason="gdb is not installed")


def gdb(*words: str) -> str:
    done = subprocess.run(["gdb", "-nx", "-q", "-batch", *words], capture_output=True, text=True, check=True)
    return done.stdout


@needs_gdb
@pytest.mark.parametrize("kernel", ["6.1-cloud", "new-cloud"])
def test_gdb_has_the_guests_own_names(lab_boot: Callable[..., LabGuest], kernel: str, tmp_path: Path) -> None:
    guest = lab_boot() if kernel == "6.1-cloud" else lab_boot(kernel=kernel)
    path = tmp_path / "kernel.elf"
    done = run(guest, "gdb", guest.name, "-O", str(path))
    assert done.returncode == 0, done.stderr
    assert f"target remote ADDRESS' {path}" in done.stdout
    some = r"NR % 199 == 0 || (/\[/ && NR % 5 == 0) || / (vfs_read|init_task|linux_banner)$/"  # a serial port is slow
    lines = [line.split() for line in guest.ask(f"awk '{some}' /proc/kallsyms", timeout=120).splitlines()]
    # What is no address is left out, and code that was made later by eBPF and ftrace.
    lines = [words for words in lines if words[1] not in "aA" and words[3:] not in (["[bpf]"], ["[__builtin__ftrace]"])]
    inside = {(int(words[0], 16), words[2]) for words in lines if int(words[0], 16) >= 1 << 47}
    with open(path, "rb") as file:
        from elftools.elf.elffile import ELFFile

        symbols = ELFFile(file).get_section_by_name(".symtab")
        written = {(each["st_value"], each.name) for each in symbols.iter_symbols()}
    assert len(inside) > 700
    assert any(len(words) == 4 for words in lines)
    assert sorted(inside - written) == []
    address = next(value for value, name in inside if name == "vfs_read")
    assert gdb(str(path), "-ex", f"info symbol {address + 5:#x}").startswith("vfs_read + 5 in section .text")


@needs_gdb
def test_gdb_stops_a_guest_and_walks_its_stack(lab_fresh: Callable[..., LabGuest], tmp_path: Path) -> None:
    shared = lab_fresh(kernel="6.12-cloud", cpu="la57-off", backing="memfd", vcpus=1, workload="none")
    words = ["-nx", "-batch", "-ex", "break vfs_read", "-ex", "continue", "-ex", "backtrace", "-ex", "delete"]
    reader = int(shared.ask("(while :; do read line </proc/uptime; sleep 0.1; done) >/dev/null 2>&1 & echo $!"))
    # What control asks QEMU's stub for must not outlive it: gdb was seen to find zeros for code and stacks afterwards.
    with shared.attach(writable=True) as seen:
        seen.deny("network", pid=reader)
        seen.allow("network", pid=reader)
    done = run(shared, "gdb", shared.name, "-O", str(tmp_path / "k.elf"), "--start", "--run", "--", *words, timeout=120)
    shared.ask(f"kill {reader}", timeout=20)
    assert done.returncode == 0, done.stdout + done.stderr
    frames = re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?(\w+) \(", done.stdout, re.M)
    assert frames[0] == "vfs_read"
    assert "do_syscall_64" in frames
    assert frames[-1].startswith("entry_SYSCALL_64")
    assert shared.ask("echo runs", timeout=20).strip() == "runs"


@needs_gdb
def test_a_core_in_gdb(shared: LabGuest, tmp_path: Path) -> None:
    core, symbols = tmp_path / "core", tmp_path / "k.elf"
    with shared.attach(pausing=True) as seen:
        seen.dump(core, pause=True)
    words = ["-nx", "-batch", "-ex", "x/s &linux_banner"]
    done = run(shared, "gdb", f"file:{core}", "-O", str(symbols), "--run", "--", *words)
    assert done.returncode == 0, done.stderr
    assert "Linux version" in done.stdout


def test_a_stub_is_started_with_consent_alone(shared: LabGuest, tmp_path: Path) -> None:
    done = run(shared, "gdb", shared.name, "-O", str(tmp_path / "k.elf"), "--run")
    assert done.returncode == 9
    assert "--start" in done.stderr
    assert run(shared, "gdb", shared.name, "-O", str(tmp_path / "k.elf")).returncode == 2  # it is there already
    core = run(shared, "gdb", f"file:{tmp_path}/none", "--start")
    assert core.returncode == 9
    assert "read-only" in core.stderr
    with shared.attach() as seen, pytest.raises(Unsupported, match="pausing=True"), seen.debugging():
        pytest.fail("it was not refused")
