"""`read`, `strings`, `files`, `cat`, `extract` and `yara` on a real guest, as people start them."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.guest import LabGuest
from vmi_inside.cli import exits

COMMAND = [sys.executable, "-W", "error", "-m", "vmi_inside.cli"]
FOLDER = "/tmp/contents cli"
SECRET = "correct horse battery staple"

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def run(lab_guest: LabGuest, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("VIRSH_DEFAULT_CONNECT_URI", lab_guest.uri or "")
    return lambda name, *args: subprocess.run(
        [*COMMAND, name, lab_guest.name, *map(str, args)], capture_output=True, check=False
    )


@pytest.fixture
def holder(lab_guest: LabGuest) -> Iterator[int]:
    """A process that holds a secret, beside files that hold others."""
    told = lab_guest.ask(
        f"""mkdir -p '{FOLDER}/sub'; cd '{FOLDER}'; cat >holder <<'END'
a=correct; b=horse; held="$a $b battery staple"; echo $$ >pid; exec 0<>fifo; read forever
END
        mkfifo fifo; setsid sh holder >/dev/null 2>&1 & cd '{FOLDER}'
        printf 'one needle here' >sub/needle; ln -s random link
        dd if=/dev/urandom of=random bs=1000 count=33 2>/dev/null
        n=0; while [ ! -s pid ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n+1)); done; cat pid"""
    )
    pid = int(told.split()[-1])
    yield pid
    lab_guest.ask(f"kill -9 {pid}; rm -rf '{FOLDER}'")


def rows(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_read(run: Run, lab_guest: LabGuest, tmp_path: Path, holder: int) -> None:
    banner = lab_guest.ask("cat /proc/version").strip().encode()
    assert run("read", "linux_banner", len(banner), "--format", "raw").stdout == banner
    assert run("read", "linux_banner+0x6", 7, "--format", "raw").stdout == banner[6:13]
    first = run("read", "linux_banner", 16).stdout.splitlines()[0].decode()
    assert first[18:].startswith(banner[:8].hex(" "))
    assert first.endswith(f"  |{banner[:16].decode()}|")
    start = lab_guest.ask(f"awk '{{print $1; exit}}' /proc/{holder}/maps").split("-")[0]
    path = tmp_path / "out"
    done = run("read", f"0x{start}", "8K", "--pid", holder, "-O", path)
    assert done.returncode == 0, done.stderr
    told = lab_guest.ask(
        f"dd if=/proc/{holder}/mem bs=4096 skip={int(start, 16) >> 12} count=2 2>/dev/null | sha256sum"
    )
    assert hashlib.sha256(path.read_bytes()).hexdigest() == told.split()[0]
    again = run("read", f"0x{start}", 16, "--pid", holder, "-O", path)
    assert again.returncode == 2
    assert b"--force" in again.stderr
    part = run("read", int(start, 16) - 4096, "8K", "--pid", holder, "--format", "raw")
    assert part.returncode == exits.PARTIAL
    assert part.stdout == bytes(4096) + path.read_bytes()[:4096]
    assert b"not mapped" in part.stderr
    assert run("read", "0", 10, "--pid", holder).returncode == 8
    assert run("read", "0", 10, "--pid", 2).returncode == 1
    assert run("read", "no_such_symbol", 10).returncode == 6
    assert run("read", "0xzz", 10).returncode == 2
    assert run("read", "0x1000", "4K", "--physical").returncode == 0


def test_bytes_never_reach_a_terminal(run: Run, lab_guest: LabGuest) -> None:
    for args in (["read", lab_guest.name, "linux_banner", "8", "--format", "raw"], ["cat", lab_guest.name, "/init"]):
        ours, theirs = pty.openpty()
        done = subprocess.run([*COMMAND, *args], stdout=theirs, stderr=subprocess.PIPE, check=False)
        os.close(theirs)
        os.close(ours)
        assert done.returncode == 2
        assert b"terminal" in done.stderr


def test_strings(run: Run, holder: int) -> None:
    found = rows(run("strings", "--pid", holder, "--format", "jsonl", "--encoding", "ascii"))
    assert any(SECRET in row["text"] for row in found)
    assert {row["pid"] for row in found} == {holder}
    text = run("strings", "-p", holder, "--min", 20).stdout.decode()
    line = next(line for line in text.splitlines() if SECRET in line)
    pid, address, _ = line.split(" ", 2)
    assert int(pid) == holder
    shown = run("read", f"0x{address}", 80, "--pid", holder, "--format", "raw").stdout
    assert SECRET.encode() in shown
    few = run("strings", "--kernel", "--limit", 7, "--min", 6)
    assert len(few.stdout.splitlines()) == 7
    assert any(b"one needle here" in line for line in run("strings", "--files", "--min", 8).stdout.splitlines())
    assert run("strings", "-p", 2).returncode == 1
    assert run("strings", "-p", holder, "--all").returncode == 2
    assert run("strings", "-p", holder, "--encoding", "ebcdic").returncode == 2


def test_yara(run: Run, holder: int, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yar"
    rules.write_text(
        'rule secret { strings: $s = "horse battery" condition: $s }\n'
        'rule needle { strings: $n = "one needle here" condition: $n }'
    )
    other = tmp_path / "other.yar"
    other.write_text('rule secret { strings: $again = "battery staple" wide ascii condition: $again }')
    found = rows(run("yara", rules, other, "--pid", holder, "--format", "jsonl"))
    assert {(row["rule"], row["string"], row["pid"]) for row in found} == {
        ("secret", "$s", holder), ("secret", "$again", holder),
    }  # fmt: skip
    for row in found:
        raw = run("read", row["address"], row["length"], "--pid", holder, "--format", "raw").stdout
        assert raw.decode() == row["data"]
    everywhere = rows(run("yara", rules, "--format", "jsonl"))
    assert holder in {row["pid"] for row in everywhere}
    files = rows(run("yara", rules, "--files", "--format", "jsonl"))
    assert (f"{FOLDER}/sub/needle", 0) in {(row["path"], row["address"]) for row in files}
    physical = rows(run("yara", rules, "--all", "--format", "jsonl"))
    assert {"needle", "secret"} <= {row["rule"] for row in physical}
    nothing = tmp_path / "nothing.yar"
    nothing.write_text(f'rule none {{ strings: $a = "{os.urandom(20).hex()}" condition: $a }}')
    assert run("yara", nothing, "-p", holder).returncode == 1
    nothing.write_text("rule bad { condition: nosuch }")
    bad = run("yara", nothing)
    assert (bad.returncode, bad.stdout, bad.stderr.count(b"\n")) == (1, b"", 1)
    assert b"nothing.yar:1:23: unknown identifier" in bad.stderr
    late = run("yara", rules, "--all", "--timeout", "0.001")
    assert late.returncode == exits.PARTIAL


def test_files_cat_and_extract(run: Run, lab_guest: LabGuest, tmp_path: Path, holder: int) -> None:
    found = rows(run("files", "--path", f"{FOLDER}/*", "--format", "jsonl"))
    assert {row["path"] for row in found} == {
        f"{FOLDER}/{name}" for name in ("sub", "holder", "pid", "fifo", "sub/needle", "random", "link")
    }
    assert b"link -> random" in run("files", "--path", f"{FOLDER}/*").stdout
    assert run("files", "--path", "/no/such/file").returncode == 1
    for folder in ("/", FOLDER, "/tmp", "/bin"):
        listed = rows(run("ls", folder, "--format", "jsonl", "-o", "path,deleted,type"))
        names = {row["path"].rpartition("/")[2] for row in listed if not row["deleted"]}
        inside = set(filter(None, lab_guest.ask(f"ls -A '{folder}'").split("\n")))
        assert names == inside, "in memory alone, all of it"
        assert len(listed) == len({row["path"] for row in listed})
    assert [row["path"] for row in rows(run("ls", "/bin/sh", "--format", "jsonl", "-o", "path"))] == ["/bin/busybox"]
    assert run("ls", "/no/such").returncode == 1
    told = lab_guest.ask(f"sha256sum '{FOLDER}/random'").split()[0]
    assert hashlib.sha256(run("cat", f"{FOLDER}/link").stdout).hexdigest() == told
    path = tmp_path / "random"
    assert run("cat", f"{FOLDER}/random", "-O", path).returncode == 0
    assert hashlib.sha256(path.read_bytes()).hexdigest() == told
    missing = run("cat", f"{FOLDER}/none", "-O", tmp_path / "none")
    assert missing.returncode == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == ["random"]

    into = tmp_path / "into"
    done = run("extract", FOLDER, "/init", "--into", into)
    assert done.returncode == 0, done.stderr
    assert b"5 files written" in done.stderr
    assert b"2 that are no regular files" in done.stderr
    inside = into / "tmp" / "contents cli"
    assert (inside / "sub" / "needle").read_text() == "one needle here"
    assert hashlib.sha256((inside / "random").read_bytes()).hexdigest() == told
    assert (into / "init").read_text() == lab_guest.ask("cat /init")
    again = run("extract", FOLDER, "--into", into)
    assert again.returncode == 1
    assert b"File exists" in again.stderr
    assert run("extract", FOLDER, "--into", into, "--force").returncode == 0
    assert run("extract", "/no/such", "--into", tmp_path / "other").returncode == 1
    assert not (tmp_path / "other").exists()
