"""volatility3's plugins on live guests, held against what the guests say: with four levels of page tables, and five."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.guest import LabGuest

pytest.importorskip("volatility3")
Boot = Callable[..., LabGuest]


def vol(guest: LabGuest, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`vmi-inside vol GUEST ...`, with a home of its own, in which it must leave nothing."""
    environment = {**os.environ, "LIBVIRT_DEFAULT_URI": guest.uri or ""}
    return subprocess.run(
        [sys.executable, "-m", "vmi_inside.cli", "vol", guest.target, *arguments],
        capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(line for line in done.stdout.splitlines() if line.strip()))


def pids(guest: LabGuest) -> set[int]:
    """Those that it lists: it leaves out the dead that nobody has waited for."""
    told = guest.ask("grep -H ^State: /proc/[0-9]*/status 2>/dev/null", check=False)
    return {int(line.split("/")[2]) for line in told.splitlines() if line.split()[1] not in "ZX"}


def processes(guest: LabGuest) -> set[int]:
    """What `linux.pslist` says, once all that lived before and after it is in it."""
    before = pids(guest)
    listed = {int(row["PID"]) for row in rows(vol(guest, "-r", "csv", "linux.pslist"))}
    after = pids(guest)
    assert len(before & after) > 30
    assert before & after <= listed
    return listed


@pytest.mark.parametrize("kernel", ["6.1-cloud", "6.12-cloud", "new-cloud"])
def test_processes_with_five_levels_of_page_tables(lab_boot: Boot, kernel: str) -> None:
    guest = lab_boot(kernel=kernel)
    with guest.attach() as seen:
        assert seen.kernel.space.paging.levels == 5
    processes(guest)


def test_two_runs_see_two_states(lab_guest: LabGuest) -> None:
    born = int(lab_guest.ask("sleep 1000 >/dev/null 2>&1 & echo $!"))
    assert born in processes(lab_guest)
    lab_guest.ask(f"kill -9 {born}; while [ -d /proc/{born} ]; do sleep 0.1; done")
    assert born not in processes(lab_guest)


def test_command_lines_and_maps_are_read_through_the_processes_own_tables(lab_guest: LabGuest) -> None:
    found = rows(vol(lab_guest, "-r", "csv", "linux.psaux", "--pid", "1"))
    told = lab_guest.ask("tr '\\0' ' ' </proc/1/cmdline").strip()
    assert [row["ARGS"].strip() for row in found] == [told]
    found = rows(vol(lab_guest, "-r", "csv", "linux.proc.Maps", "--pid", "1"))
    starts = {int(line.partition("-")[0], 16) for line in lab_guest.ask("cat /proc/1/maps").splitlines()}
    ours = {int(row["Start"], 16) for row in found}
    assert starts - ours <= {max(starts)}  # vsyscall's page is no mapping of the process
    assert ours <= starts


def test_modules_and_json(lab_guest: LabGuest) -> None:
    done = vol(lab_guest, "-r", "json", "linux.lsmod")
    assert done.returncode == 0, done.stderr
    ours = {row["Module Name"] for row in json.loads(done.stdout)}
    assert ours == {line.split()[0] for line in lab_guest.ask("cat /proc/modules").splitlines()}


def test_capabilities_of_a_typedef_without_a_struct(lab_boot: Boot) -> None:
    guest = lab_boot(kernel="new-cloud")  # kernel_cap_t since 6.3
    found = rows(vol(guest, "-r", "csv", "linux.capabilities", "--pids", "1"))
    assert [row["cap_effective"] for row in found] == ["all"]


def test_addresses_are_told_by_their_symbols(lab_guest: LabGuest) -> None:
    found = rows(vol(lab_guest, "-r", "csv", "linux.malware.check_syscall"))
    names = {row["Handler Symbol"] for row in found}
    assert {"__x64_sys_read", "__x64_sys_write"} <= names
    assert not rows(vol(lab_guest, "-r", "csv", "linux.malware.check_afinfo"))  # it lists what it has no symbol for


def test_its_own_vol_opens_guests(lab_boot: Boot, tmp_path: Path) -> None:
    from vmi_inside.bridges.volatility3 import PLUGINS

    guest = lab_boot(cpu="la57-off")
    environment = {**os.environ, "LIBVIRT_DEFAULT_URI": guest.uri or "", "XDG_CACHE_HOME": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [str(Path(sys.executable).parent / "vol"), "-q", "--offline", "-r", "csv", "-p", str(PLUGINS),
         "-f", f"vmi-inside://{guest.target}", "linux.pslist"],
        capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip
    assert pids(guest) & {1, 2} <= {int(row["PID"]) for row in rows(done)}
    assert len(rows(done)) > 30


def test_what_goes_wrong_is_said(lab_guest: LabGuest) -> None:
    unknown = vol(lab_guest, "linux.nosuch")
    assert unknown.returncode == 2
    assert "linux.nosuch" in unknown.stderr
    other = vol(lab_guest, "windows.pslist")
    assert other.returncode == 18
    assert other.stderr.splitlines()[-1].startswith("vmi-inside:")
    assert "Traceback" not in other.stderr
    assert vol(lab_guest).returncode == 2


def test_without_volatility3_the_extra_is_named(lab_guest: LabGuest, tmp_path: Path) -> None:
    (tmp_path / "volatility3.py").write_text("raise ImportError('hidden')\n")
    environment = {**os.environ, "LIBVIRT_DEFAULT_URI": lab_guest.uri or "", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "vmi_inside.cli", "vol", lab_guest.target, "linux.pslist"],
        capture_output=True, text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 9
    assert "vmi-inside[volatility3]" in done.stderr
