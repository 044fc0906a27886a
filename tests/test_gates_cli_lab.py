"""`deny`, `allow` and `gates`, run as people run them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.lab import commands
from tests.lab.commands import Run
from tests.lab.guest import LabGuest


@pytest.fixture
def lab(lab_boot: Callable[..., LabGuest]) -> LabGuest:
    return lab_boot(workload="none")


@pytest.fixture
def run(lab: LabGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    command = partial(commands.run, lab)
    yield command
    command("allow", "--all", "-q", code=None)


@pytest.fixture
def pinger(lab: LabGuest) -> Iterator[int]:
    """A shell that asks a web server for a page, over and over, and writes down what comes of it."""
    lab.ask("mkdir -p /run/www; echo hello >/run/www/index.html; httpd -p 127.0.0.1:8088 -h /run/www")
    lab.ask("(sh -c 'echo $$ >/run/pinger; while :; do wget -q -O - http://127.0.0.1:8088/ 2>&1; sleep 0.1; done' "
            ">/run/said 2>&1 &); sleep 1")  # fmt: skip
    yield int(lab.ask("cat /run/pinger"))
    lab.ask("kill $(cat /run/pinger); killall httpd; rm -rf /run/said /run/pinger /run/www", check=False)


def said(lab: LabGuest) -> str:
    lab.ask(": >/run/said")
    time.sleep(1.5)
    return lab.ask("cat /run/said")


def test_deny_and_allow(lab: LabGuest, run: Run, pinger: int) -> None:
    assert "hello" in said(lab)
    told = run("deny", "network", "--pid", pinger, "--children", "--errno", "eperm", "--reason", "ticket 7").stderr
    what = f"entry 1: deny network to pid {pinger} and its children: ticket 7; the guest stood still for"
    assert re.search(rf"{what} \d+ ms", told)
    heard = said(lab)
    assert "hello" not in heard
    assert "Operation not permitted" in heard
    shown = run("gates").stdout.splitlines()
    assert shown[0].split()[:4] == ["OPERATION", "WHOM", "NAME", "ALIVE"]
    assert re.match(rf"network +pid {pinger} and children +sh +yes +[1-9]\d* +EPERM", shown[1])
    (row,) = json.loads(run("gates", "--format", "json").stdout)
    assert (row["operation"], row["scope"], row["pid"], row["entry"]) == ("network", "children", pinger, "1")
    assert "gate" in run("journal").stdout
    assert "denied to" in run("deny", "network", "--pid", pinger, code=13).stderr
    assert "allow network" in run("allow", "network", "--pid", pinger).stderr
    assert "hello" in said(lab)
    assert len(run("gates").stdout.splitlines()) == 1
    assert "is not denied" in run("allow", "network", "--pid", pinger, code=12).stderr


def test_open_connections_and_files(lab: LabGuest, run: Run) -> None:
    lab.ask("(workload echo 7105 >/dev/null 2>&1 & echo $! >/run/echo.pid); sleep 0.3; "
            "(workload receiver /run/receiver 127.0.0.1 7105 >/dev/null 2>&1 & "
            "echo $! >/run/receiver.pid); sleep 0.3")  # fmt: skip
    pid = lab.ask("cat /run/receiver.pid").strip()
    try:
        told = run("deny", "network", "--pid", pid, "--abort").stderr
        assert "1 connection ended" in told
        run("deny", "open", "--pid", pid, "--path", "/run", "--path", "/bin/busybox")
        shown = json.loads(run("gates", "--format", "json").stdout)
        assert [row["paths"] for row in shown] == ["", "/run,/bin/busybox"]
        assert "deferred" in {row["kind"] for row in json.loads(run("journal", "--format", "json").stdout)}
    finally:
        lab.ask("kill $(cat /run/receiver.pid /run/echo.pid); rm /run/*.pid /run/receiver", check=False)


def test_a_dry_run_shows_every_byte(run: Run, pinger: int) -> None:
    lines = run("deny", "network", "--pid", pinger, "--allow-loopback", "--abort", "-n").stdout.splitlines()
    assert any(
        re.fullmatch(r"would write 0xf\w{15} \(security_socket_connect\): 0f 1f 44 00 00 -> e9( \w\w){4}", line)
        for line in lines
    )
    assert any("then open connections would be ended: sock_diag_destroy called for each" in line for line in lines)
    assert any(re.search(r"\(code of gates\): cc \(\d+ times\) -> 9c fa ", line) for line in lines)
    assert len(run("gates").stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "code", "wanted"),
    [
        (("network",), 2, "says to whom"),
        (("network", "--pid", "5", "--uid", "7"), 2, "says to whom"),
        (("network", "--uid", "7", "--children"), 2, "goes with --pid"),
        (("everything", "--pid", "5"), 2, "everything"),
        (("network", "--pid", "99999"), 12, "no process 99999"),
        (("network", "--pid", "1"), 16, "--force"),
        (("network", "--pid", "2"), 16, "kernel thread"),
        (("network", "--uid", "7", "--allow", "10.0.0.0/40"), 12, "no network"),
        (("exec", "--uid", "7", "--abort"), 12, "nothing to do with exec"),
        (("network", "--uid", "7", "--path", "/etc"), 12, "paths have nothing to do with network"),
        (("open", "--uid", "7", "--path", "/no/such"), 12, "'no' of '/no/such' is not there"),
        (("open", "--uid", "7", "--path", "/proc"), 9, "on proc, which may number its files anew"),
        (("exec", "--uid", "7", "--allow", "10.0.0.0/8"), 12, "nothing to do with exec"),
    ],
)
def test_one_line_says_what_is_wrong(run: Run, words: tuple[str, ...], code: int, wanted: str) -> None:
    done = run("deny", *words, code=code)
    assert wanted in done.stderr
    if code != 2:
        assert len(done.stderr.strip().splitlines()) == 1
    assert len(run("gates").stdout.splitlines()) == 1


def test_a_dump_is_looked_at_only(lab: LabGuest, run: Run, pinger: int, tmp_path: Path) -> None:
    run("deny", "network", "--pid", pinger)
    dump = tmp_path / "dump"
    lab.domain.coreDumpWithFormat(str(dump), 0, 16)  # VIR_DUMP_MEMORY_ONLY
    run("allow", "network", "--pid", pinger)
    (row,) = json.loads(run("gates", "--format", "json", target=f"file:{dump}").stdout)
    assert row["pid"] == pinger
    assert "read-only" in run("deny", "network", "--pid", pinger, target=f"file:{dump}", code=9).stderr
