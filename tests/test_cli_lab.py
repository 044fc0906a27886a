"""The command on a real guest, as people start it: what it says is what the guest says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.lab.guest import LabGuest

pytestmark = pytest.mark.lab

COMMAND = [sys.executable, "-W", "error", "-m", "vmi_inside.cli"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(lab_guest: LabGuest, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("VIRSH_DEFAULT_CONNECT_URI", lab_guest.uri or "")
    return lambda *args: subprocess.run([*COMMAND, *args], capture_output=True, text=True, check=False)


def data(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def pids(guest: LabGuest) -> set[int]:
    """The processes, by the guest's own /proc."""
    return {int(name) for name in guest.ask("ls /proc").split() if name.isdigit()}


def test_guests(run: Run, lab_guest: LabGuest) -> None:
    mine = [row for row in data(run("guests", "--format", "json")) if row["name"] == lab_guest.name]
    assert [(row["state"], row["attachable"], row["reason"]) for row in mine] == [("running", True, "")]


def test_info(run: Run, lab_guest: LabGuest) -> None:
    (row,) = data(run("info", lab_guest.name, "--format", "json"))
    assert row["release"] == lab_guest.ask("uname -r").strip()
    assert f"release       {row['release']}\n" in run("info", lab_guest.name).stdout


def test_ps_has_every_process(run: Run, lab_guest: LabGuest) -> None:
    before = pids(lab_guest)
    seen = {row["pid"] for row in data(run("ps", lab_guest.name, "--format", "json"))}
    assert len(before) > 50
    assert before & pids(lab_guest) <= seen


def test_ps_tree_stands_on_the_parents(run: Run, lab_guest: LabGuest) -> None:
    rows = data(run("ps", lab_guest.name, "--tree", "-o", "pid,parent", "--format", "json"))
    place = {row["pid"]: at for at, row in enumerate(rows)}
    assert all(place[row["parent"]] < at for at, row in enumerate(rows) if row["parent"])
    shown = run("ps", lab_guest.name, "--tree", "--kernel", "-o", "name", "--no-headers").stdout
    assert shown.startswith("kthreadd\n├─ ")


def test_hostile_names_stay_text(run: Run, lab_guest: LabGuest) -> None:
    for command in ("ps", "ss"):
        shown = run(command, lab_guest.name, "-o", "all")
        assert shown.returncode == 0
        assert shown.stdout.replace("\n", "").isprintable()
    assert r"\x1b[31mred\x1b[0m" in run("ps", lab_guest.name).stdout


def test_ss_listens_where_the_guest_says(run: Run, lab_guest: LabGuest) -> None:
    lines = lab_guest.ask("cat /proc/net/tcp").splitlines()[1:]
    ports = {int(line.split()[1].rpartition(":")[2], 16) for line in lines if line.split()[3] == "0A"}
    namespace = int(lab_guest.ask("readlink /proc/self/ns/net").strip(" []\nnet:"))
    rows = data(run("ss", lab_guest.name, "-tl4", "--format", "json"))
    assert ports
    assert {
        row["local_port"] for row in rows if row["net_namespace"] == namespace and row["state"] == "LISTEN"
    } == ports


def test_exit_codes(run: Run, lab_guest: LabGuest) -> None:
    for args, code in (
        (("ps", lab_guest.name, "--pid", "999999"), 1),
        (("ps", lab_guest.name, "-o", "pit"), 2),
        (("ps", "nobody-of-that-name"), 3),
        (("ss", "file:/nowhere/at/all"), 3),
        (("ps", "file:/dev/null"), 7),
    ):
        done = run(*args)
        assert done.returncode == code, (args, done.stderr)
        assert "Traceback" not in done.stderr
        if code != 2:
            assert done.stderr.startswith("vmi-inside: ")
            assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_is_no_error(run: Run, lab_guest: LabGuest) -> None:
    shell = f"{' '.join(COMMAND)} ss {lab_guest.name} -o all --format csv | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    header, code = done.stdout.splitlines()
    assert header.startswith("family,protocol,")
    assert code in ("141", "0")  # 0: all of it was written before the reader left
    assert "vmi-inside: this is a bug" not in done.stderr
