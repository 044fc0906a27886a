"""The commands on processes' details, as people start them, on a real guest."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.lab.guest import LabGuest

COMMAND = [sys.executable, "-W", "error", "-m", "vmi_inside.cli"]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(lab_guest: LabGuest, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("VIRSH_DEFAULT_CONNECT_URI", lab_guest.uri or "")

    def command(name: str, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMMAND, name, lab_guest.name, *args], capture_output=True, text=True, check=False)

    return command


def pid_of(guest: LabGuest, name: str) -> str:
    """The process of that name, by the guest's own /proc."""
    return guest.ask(f"grep -lx {name} /proc/[0-9]*/comm 2>/dev/null; true").split("/")[2]


def test_what_people_see(run: Run, lab_guest: LabGuest) -> None:
    done = run("envs", "-p", "1", "--key", "HO*")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["PID", "NAME", "KEY", "VALUE"], ["1", "workload", "HOME", "/root"],
    ]  # fmt: skip
    done = run("limits", "--resource", "*OPEN files", "-p", pid_of(lab_guest, "limited"))
    assert done.stdout.splitlines()[1].split()[-6:] == ["Max", "open", "files", "77", "88", "files"]
    done = run("limits", "--resource", "max core*", "-p", pid_of(lab_guest, "limited"))
    assert done.stdout.splitlines()[1].split()[-3:] == ["unlimited", "unlimited", "bytes"]
    done = run("creds", "--seccomp", "filter")
    assert {line.split()[1] for line in done.stdout.splitlines()[1:]} == {"two-filters"}
    done = run("creds", "-p", "1")
    assert done.stdout.split()[-1] == "all"
    done = run("creds", "--cap", "chown", "--cap", "CAP_NET_RAW", "-p", pid_of(lab_guest, "some-caps"))
    assert (done.returncode, done.stdout.count("\n")) == (1, 1)
    done = run("signals", "--traced", "-o", "name,stop_signal,ptrace")
    assert {tuple(line.split()) for line in done.stdout.splitlines()[1:]} == {
        ("tracee", "STOP"), ("seized", "tracesysgood,tracefork,seized,exitkill"),
    }  # fmt: skip
    done = run("signals", "-p", "2")
    assert " all " in done.stdout
    done = run("stack", "-p", "2", "--waits", "-o", "tid,frame,symbol")
    assert done.stdout.splitlines()[1].split()[:2] == ["2", "0"]
    assert done.stdout.splitlines()[1].split()[2].startswith("kthreadd+0x")
    done = run("containers", "--runtime", "lxc", "-o", "name,runtime,init")
    assert [line.split() for line in done.stdout.splitlines()[1:]] == [
        ["web", "1", "lxc", "c-lxc-1"], ["db", "lxc", "c-lxc-2"],
    ]  # fmt: skip
    done = run("namespaces", "-p", pid_of(lab_guest, "box-init"), "-o", "name,pid_in_namespace")
    assert done.stdout.splitlines()[1].split() == ["box-init", "1"]


@pytest.mark.parametrize("name", ["envs", "namespaces", "creds", "limits", "signals", "stack", "containers"])
def test_data_and_exit_codes(run: Run, name: str) -> None:
    done = run(name, "--format", "json")
    assert done.returncode == 0
    assert done.stderr == "" or name == "stack"  # of threads that run meanwhile it says so
    rows = json.loads(done.stdout)
    assert len(rows) > 5
    assert "fault" in rows[0]
    if name == "containers":
        nothing, wrong = run(name, "--name", "no-such"), run(name, "-o", "image")
    else:
        nothing, wrong = run(name, "-p", "4194303"), run(name, "-o", "colour")
    assert (nothing.returncode, wrong.returncode) == (1, 2)
    assert "matches" in nothing.stderr
    assert "no column" in wrong.stderr


def test_a_capability_that_is_none(run: Run) -> None:
    done = run("creds", "--cap", "fly")
    assert done.returncode == 2
    assert "no capability 'fly'" in done.stderr
