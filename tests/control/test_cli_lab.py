"""Commands that control a guest, run as people run them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.control import ROOT
from tests.lab import commands
from tests.lab.commands import Run
from tests.lab.guest import LabGuest


@pytest.fixture
def lab(lab_boot: Callable[..., LabGuest]) -> LabGuest:
    return lab_boot(workload="none")


@pytest.fixture
def run(lab: LabGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return partial(commands.run, lab)


@pytest.fixture
def sleeper(lab: LabGuest) -> int:
    return int(lab.ask("sleep 1000 </dev/null >/dev/null 2>&1 & echo $!"))


def test_pause_and_resume(lab: LabGuest, run: Run) -> None:
    assert "paused" in run("pause").stderr
    try:
        assert lab.domain.state()[0] == 3
        assert "was paused already" in run("pause").stderr
        assert run("ps", "--no-headers").stdout  # a paused guest is looked into like any other
    finally:
        assert "runs" in run("resume").stderr
    assert "was running already" in run("resume").stderr
    assert run("pause", "-q").stderr == ""
    run("resume")


def test_regs(lab: LabGuest, run: Run) -> None:
    table = run("regs", "--vcpu", 1)
    assert re.search(r"^ +1 +cr3 +0x[0-9a-f]+000", table.stdout, re.M)
    assert "tainted" in table.stderr
    rows = json.loads(run("regs", "--format", "json").stdout)
    assert {row["vcpu"] for row in rows} == {0, 1}
    assert next(row for row in rows if row["register"] == "efer")["value"] & 0x400
    assert "no vCPU 7" in run("regs", "--vcpu", 7, code=12).stderr


def test_write_journal_undo(lab: LabGuest, run: Run) -> None:
    place = "init_uts_ns.name.nodename"
    dry = run("write", place, "--text", "other", "--dry-run")
    assert "6c 61 62 00 00 00 -> 6f 74 68 65 72 00" in dry.stdout
    assert lab.ask("hostname").strip() == "lab"
    assert "nothing was changed" in run("journal", code=1).stderr
    run("write", place, "--text", "other", "--reason", "to see")
    assert lab.ask("hostname").strip() == "other"
    assert "holds" in run("write", place, "--hex", "00", "--expect", "ff", code=13).stderr
    [entry] = [one for one in json.loads(run("journal", "--format", "json").stdout) if one["state"] == "done"]
    assert (entry["reason"], entry["undoable"], entry["bytes"]) == ("to see", True, 6)
    assert "would put back" in run("undo", entry["id"], "--dry-run").stdout
    run("undo")
    assert lab.ask("hostname").strip() == "lab"
    assert "nothing to undo" in run("undo", code=1).stderr
    run("undo", entry["id"], code=14)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("jiffies_64",), 2, "--hex"),
        (("jiffies_64", "--int", "1"), 2, "--size"),
        (("jiffies_64", "--hex", "xx"), 2, "no row of bytes"),
        (("jiffies_64", "--int", "300", "--size", "1"), 2, "does not fit"),
        (("no_such_symbol", "--hex", "00"), 6, "no symbol"),
        (("task_struct.comm", "--text", "x"), 12, "--pid"),
        (("task_struct.comm", "--text", "x", "--pid", "99999"), 12, "no process"),
        (("task_struct.comm", "--text", "x" * 16, "--pid", "1"), 2, "room for 16"),
        (("init_uts_ns.name.nothing", "--text", "x"), 6, "no member"),
        (("0x1000", "--hex", "00"), 8, "not mapped"),
    ],
)
def test_writes_that_make_no_sense(run: Run, words: tuple[str, ...], code: int, said: str) -> None:
    assert said in run("write", *words, code=code).stderr


def test_a_member_of_a_task(lab: LabGuest, run: Run, sleeper: int) -> None:
    run("write", "task_struct.comm", "--pid", sleeper, "--text", "renamed")
    run("write", "task_struct.signal->oom_score_adj", "--pid", sleeper, "--int", "-500")
    assert lab.ask(f"cat /proc/{sleeper}/comm /proc/{sleeper}/oom_score_adj").split() == ["renamed", "-500"]
    run("undo", "--all")
    assert lab.ask(f"cat /proc/{sleeper}/comm /proc/{sleeper}/oom_score_adj").split() == ["sleep", "0"]
    run("kill", sleeper, "--signal", "KILL")


def test_kill_stop_cont_nice(lab: LabGuest, run: Run, sleeper: int) -> None:
    assert run("kill", sleeper, "--dry-run").stdout == f"would give SIGTERM to {sleeper} (sleep)\n"
    run("stop", sleeper)
    assert lab.ask(f"sleep .1; grep State /proc/{sleeper}/status").split()[1] == "T"
    run("nice", sleeper, "--to", 5)
    run("cont", sleeper)
    assert lab.ask(f"sleep .1; grep State /proc/{sleeper}/status").split()[1] == "S"
    assert lab.ask(f"cut -d' ' -f19 /proc/{sleeper}/stat").strip() == "5"
    assert f"SIGTERM to {sleeper} (sleep)" in run("kill", sleeper).stderr
    assert lab.ask(f"sleep .2; test -e /proc/{sleeper} || echo gone").strip() == "gone"
    assert "no process" in run("kill", sleeper, code=12).stderr
    assert "--force" in run("kill", 1, "-s", "9", code=16).stderr
    assert "kernel" in run("kill", 2, code=16).stderr
    assert "no signal" in run("kill", 5, "-s", "NONE", code=2).stderr
    assert "Which processes" in run("kill", code=2).stderr
    run("kill", "--group", 99999, code=1)


def test_limits_ids_and_settings(lab: LabGuest, run: Run, sleeper: int) -> None:
    told = f"grep -E '^(Uid|Gid|Cap)' /proc/{sleeper}/status; cat /proc/{sleeper}/limits /proc/sys/vm/swappiness"
    before = lab.ask(told)
    run("limit", sleeper, "nofile=64:128", "nproc=70:77")
    run("dropcaps", sleeper, "net_admin", "CAP_SYS_PTRACE")
    caps = re.search(r"CapEff:\s+(\w+)", lab.ask(told))
    assert caps is not None
    assert int(caps[1], 16) & (1 << 12 | 1 << 19 | 1 << 21) == 1 << 21
    run("setuid", sleeper, "--uid", 1000, "--gid", 1001)
    run("sysctl", "vm.swappiness=7")
    after = lab.ask(told)
    assert re.search(r"Max open files +64 +128 ", after)
    assert re.search(r"Max processes +70 +77 ", after)
    assert re.search(r"Uid:\s+1000\s+1000\s+1000\s+1000\s+Gid:\s+1001\s+1001\s+1001\s+1001", after)
    assert re.search(r"CapEff:\s+0000000000000000", after)
    assert after.split()[-1] == "7"
    assert run("sysctl", "vm.swappiness", "kernel.panic").stdout.startswith("vm.swappiness = 7\nkernel.panic = ")
    run("undo", "--all")
    assert lab.ask(told) == before
    assert "between" in run("sysctl", "vm.swappiness=1000", code=12).stderr
    assert "more than" in run("sysctl", "kernel.hostname=x", code=9).stderr
    assert "timer" in run("limit", sleeper, "nofile=5", "cpu=3", code=9).stderr
    assert lab.ask(told) == before  # of several limits all are set, or none
    assert "no limit" in run("limit", sleeper, "files=3", code=2).stderr
    run("setuid", 1, "--uid", 5, code=16)
    run("kill", sleeper)


def test_what_cannot_be_controlled(run: Run, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.write_bytes(bytes(1 << 20))
    for name, *words in (("pause",), ("write", "x", "--hex", "00"), ("kill", 5), ("undo",), ("regs",)):
        assert "dumps are read-only" in run(name, *words, code=9, target=f"file:{dump}").stderr
    run("pause", code=3, target="no-such-guest")


def test_a_command_that_is_ended(lab: LabGuest, run: Run) -> None:
    code = (
        "import sys, time\n"
        "from vmi_inside.control.transaction import Change\n"
        "Change._apply = lambda self, *_, **__: (print('in it', flush=True), time.sleep(60))\n"
        "from vmi_inside.cli import main\n"
        "main()\n"
    )
    words = ["write", lab.name, "-c", lab.uri or "", "init_uts_ns.name.nodename", "--text", "other"]
    for number in (signal.SIGTERM, signal.SIGINT):
        with subprocess.Popen(
            [sys.executable, "-c", code, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"in it\n"
            child.send_signal(number)
            assert child.wait(20) == 128 + number
        assert lab.ask("hostname").strip() == "lab"
    assert [one["state"] for one in json.loads(run("journal", "--format", "json").stdout)] == ["put back"] * 2
