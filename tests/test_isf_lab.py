"""Profiles for volatility3: held against our own reading of the types, the guest's symbols, and volatility3 itself."""

from __future__ import annotations

import base64
import csv
import importlib.util
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.guest import LabGuest
from vmi_inside.profile.isf import isf
from vmi_inside.profile.profile import LINKED_AT

STRUCTS = ("task_struct", "mm_struct", "file", "sock_common", "module", "page", "cred", "net", "super_block", "inode")


def command(guest: LabGuest, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LIBVIRT_DEFAULT_URI": guest.uri or ""}
    return subprocess.run(
        [sys.executable, "-m", "vmi_inside.cli", "profile", "export", guest.target, *arguments],
        capture_output=True, text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip


def test_it_says_what_we_say_and_what_the_guest_says(lab_guest: LabGuest) -> None:
    told = lab_guest.ask("awk '$2 ~ /[TDBR]/ && $4 == \"\" && ++n % 41 == 0' /proc/kallsyms", timeout=120)
    with lab_guest.attach() as seen:
        profile = seen.kernel.profile
        table = isf(profile, "test")
    for name in STRUCTS:
        ours, theirs = profile.struct(name), table["user_types"][name]
        assert theirs["size"] == ours.size
        flat = {field: each for field, each in theirs["fields"].items() if not each.get("anonymous")}
        assert flat
        for field, each in flat.items():
            assert each["offset"] == ours.member(field).offset, f"{name}.{field}"
    state = table["user_types"]["task_struct"]["fields"]["sched_remote_wakeup"]["type"]
    assert (state["kind"], state["bit_length"]) == ("bitfield", 1)
    assert table["symbols"]["init_task"]["type"] == {"kind": "struct", "name": "task_struct"}
    assert (
        table["symbols"]["linux_banner"]["constant_data"]
        == base64.b64encode((lab_guest.ask("cat /proc/version").rstrip("\n") + "\n\0").encode()).decode()
    )
    for line in told.splitlines():
        address, _, name = line.split()[:3]
        assert (table["symbols"][name]["address"] + profile.slide) % (1 << 64) in profile.symbols_named(name), name
        assert int(address, 16) in profile.symbols_named(name)
    assert table["symbols"]["_text"]["address"] == LINKED_AT


def test_every_reference_leads_somewhere(lab_guest: LabGuest) -> None:
    with lab_guest.attach() as seen:
        table = isf(seen.kernel.profile, "test")
    there = {
        "base": table["base_types"], "enum": table["enums"],
        "struct": table["user_types"], "union": table["user_types"],
    }  # fmt: skip

    def look(reference: dict[str, object]) -> None:
        kind = reference["kind"]
        if kind in there:
            assert reference["name"] in there[str(kind)], reference
        for inner in ("subtype", "type"):
            if isinstance(reference.get(inner), dict):
                look(reference[inner])  # type: ignore[arg-type]

    for each in table["user_types"].values():
        for field in each["fields"].values():
            look(field["type"])
    for symbol in table["symbols"].values():
        look(symbol["type"])


def test_a_file_that_is_there_is_kept(lab_guest: LabGuest, tmp_path: Path) -> None:
    path = tmp_path / "kernel.json.xz"
    path.write_text("mine")
    refused = command(lab_guest, "-o", str(path))
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert path.read_text() == "mine"
    assert command(lab_guest, "-o", str(path), "--force").returncode == 0
    assert json.loads(lzma.decompress(path.read_bytes()))["metadata"]["format"] == "6.2.0"
    assert [each.name for each in tmp_path.iterdir()] == ["kernel.json.xz"]
    missing = command(lab_guest, "-o", str(tmp_path / "no" / "folder.json"))
    assert missing.returncode != 0
    assert "Traceback" not in missing.stderr


@pytest.mark.skipif(importlib.util.find_spec("volatility3") is None, reason="volatility3 is not installed")
def test_volatility3_lists_the_guests_processes_with_it(lab_boot: Callable[..., LabGuest], tmp_path: Path) -> None:
    guest = lab_boot(cpu="la57-off")  # with five-level paging volatility3 lists nothing
    (tmp_path / "symbols" / "linux").mkdir(parents=True)
    (tmp_path / "cache").mkdir()
    done = command(guest, "-o", str(tmp_path / "symbols" / "linux" / "guest.json.xz"))
    assert done.returncode == 0, done.stderr
    dump = tmp_path / "guest.core"
    guest.domain.coreDumpWithFormat(str(dump), 0, 16)  # VIR_DUMP_MEMORY_ONLY
    volatility = [str(Path(sys.executable).parent / "vol"), "-q", "--offline", "-r", "csv"]
    said = subprocess.run(
        [*volatility, "-s", str(tmp_path / "symbols"), "--cache-path", str(tmp_path / "cache"), "-f", str(dump),
         "linux.pslist"],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    rows = list(csv.DictReader(line for line in said.stdout.splitlines() if "," in line))
    assert {int(row["PID"]) for row in rows} >= {1, 2}, said.stderr
    import vmi_inside

    with vmi_inside.attach(f"file:{dump}") as seen:
        ours = {row.pid: row.name for row in seen.processes(columns=("pid", "name"))}
    theirs = {int(row["PID"]): row["COMM"] for row in rows}
    assert set(theirs) <= set(ours)
    # It leaves out zombies and writes odd characters its own way; kernel threads have no long names there.
    plain = {pid: name for pid, name in theirs.items() if name.isidentifier()}
    assert len(plain) > 30
    assert {pid: ours[pid][:15].partition("\\x")[0] for pid in plain} == plain
