"""The commands, against guests made of real tables: columns, formats, filters, messages, exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

import vmi_inside.guest
from vmi_inside import __version__, errors
from vmi_inside.cli import options
from vmi_inside.cli.app import COMMANDS, cli
from vmi_inside.guest import Guests
from vmi_inside.linux.processes.processes import Processes
from vmi_inside.linux.processes.threads import Threads
from vmi_inside.linux.sockets.table import OpenSockets
from vmi_inside.linux.system import SystemInfo
from vmi_inside.table import Table, text

EVIL = "\x1b]0;owned\x07\u202e[bold]x[/bold]\n"

T = TypeVar("T", bound=Table)
Rows = Sequence[Mapping[str, Any]]


PROCESSES: Rows = (
    {"pid": 1, "name": "init", "cmdline": "/sbin/init -", "state": "S", "resident_size": 12288, "start_time": 86400},
    {"pid": 2, "name": "kthreadd", "state": "S", "kernel_thread": True},
    {"pid": 12, "parent": 2, "name": "ksoftirqd/0", "state": "S", "kernel_thread": True},
    {"pid": 40, "parent": 1, "name": "nginx", "cmdline": "nginx: master", "state": "S", "resident_size": 1 << 20},
    {"pid": 41, "parent": 40, "name": "nginx", "cmdline": "nginx: worker", "uid": 33, "state": "R"},
    {"pid": 50, "parent": 1, "name": EVIL, "cmdline": EVIL, "uid": 1000, "state": "Z", "address": 0xFFFF888012345678},
)
THREADS: Rows = (
    {"pid": 1, "tid": 1, "name": "init", "state": "S", "user_time": 61_230},
    {"pid": 40, "tid": 40, "name": "nginx", "state": "S"},
    {"pid": 40, "tid": 45, "name": "nginx-io", "state": "D", "nice": -5},
)
V4 = {"family": "inet", "local_address": "0.0.0.0", "remote_address": "0.0.0.0"}
SOCKETS: Rows = (
    {"family": "unix", "protocol": "unix", "state": "LISTEN", "path": "/run/x.sock", "pid": 1, "fd": 9, "name": "init"},
    {"family": "netlink", "protocol": "netlink", "state": "UNCONN", "local_address": "route", "pid": 1, "fd": 4},
    {**V4, "protocol": "udp", "state": "UNCONN", "local_port": 68, "pid": 50, "fd": 5, "name": EVIL},
    {**V4, "protocol": "tcp", "state": "LISTEN", "local_port": 80, "pid": 40, "fd": 6, "name": "nginx", "tx_queue": 9},
    {"family": "inet6", "protocol": "tcp", "state": "LISTEN", "local_address": "::", "local_port": 80,
     "remote_address": "::", "pid": 40, "fd": 7, "name": "nginx"},
    {"family": "inet", "protocol": "tcp", "state": "TIME_WAIT", "local_address": "10.0.2.15", "local_port": 80,
     "remote_address": "10.0.2.2", "remote_port": 40123, "pid": -1, "fd": -1},
)  # fmt: skip
DOMAINS: Rows = (
    {"id": "1", "name": "web01", "kind": "qemu", "state": "running", "vcpus": 2, "memory": 1 << 30, "attachable": True},
    {
        "id": "",
        "name": "db01",
        "kind": "qemu",
        "state": "shut off",
        "vcpus": 1,
        "memory": 512 << 20,
        "reason": "not running",
    },
)


def table(kind: type[T], rows: Rows, columns: Iterable[str] | None = None, notes: Iterable[str] = ()) -> T:
    """A table of these rows; what a row does not say is 0 or empty."""
    words = kind.describe()
    blank: dict[str, Any] = {"text": "", "boolean": False}
    dtypes: dict[str, Any] = {"integer": np.int64, "unsigned": np.uint64, "boolean": np.bool_}
    data = {}
    for name in kind.schema if columns is None else {*columns, "fault"}:
        values = [row.get(name, blank.get(words[name], 0)) for row in rows]
        data[name] = text(values) if words[name] == "text" else np.array(values, dtype=dtypes[words[name]])
    return kind(data, notes)


class FakeGuest:
    name = "web01"
    how = "mapped from QEMU"
    notices: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.asked: list[str] | None = None
        self.notes: tuple[str, ...] = ()
        self.rows: dict[type[Table], Rows] = {Processes: PROCESSES, Threads: THREADS, OpenSockets: SOCKETS}
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True

    def _read(self, kind: type[T], columns: Iterable[str] | None) -> T:
        self.asked = None if columns is None else list(columns)
        return table(kind, self.rows[kind], self.asked, self.notes)

    def processes(self, columns: Iterable[str] | None = None) -> Processes:
        return self._read(Processes, columns)

    def threads(self, columns: Iterable[str] | None = None) -> Threads:
        return self._read(Threads, columns)

    def process_open_sockets(self, columns: Iterable[str] | None = None) -> OpenSockets:
        return self._read(OpenSockets, columns)

    def info(self) -> SystemInfo:
        return table(
            SystemInfo, [{"hostname": EVIL, "release": "6.1.0", "memory": 1 << 30, "kaslr_offset": 0x1C000000}]
        )


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> FakeGuest:
    fake = FakeGuest()
    monkeypatch.setattr(vmi_inside.guest, "attach", lambda *args, **kwargs: fake)
    monkeypatch.setattr(vmi_inside.guest, "guests", lambda connect=None: table(Guests, DOMAINS))
    return fake


@pytest.fixture
def run(guest: FakeGuest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("TZ", "UTC")
    return lambda *args: CliRunner().invoke(cli, args, prog_name="vmi-inside", catch_exceptions=False)


def data(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


# -- ps ---------------------------------------------------------------------------------------------------------------


def test_ps(run: Callable[..., Result], guest: FakeGuest) -> None:
    result = run("ps", "web01", "--no-kernel", "--pid", "1,41")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "PID  PARENT  UID  STATE  THREADS  RSS           START_TIME  NAME   CMDLINE",
        "  1       0    0  S            0  12K  1970-01-02T00:00:00  init   /sbin/init -",
        " 41      40   33  R            0    0  1970-01-01T00:00:00  nginx  nginx: worker",
    ]
    assert result.stderr == ""
    assert guest.closed


def test_ps_reads_only_what_it_shows(run: Callable[..., Result], guest: FakeGuest) -> None:
    run("ps", "web01", "-o", "pid,name", "--sort", "-uid", "--kernel")
    assert set(guest.asked or ()) == {"pid", "name", "uid", "kernel_thread"}


def test_ps_names_in_brackets_what_has_no_command_line(run: Callable[..., Result]) -> None:
    assert run("ps", "web01", "-o", "cmdline", "--no-headers", "--kernel").stdout == "[kthreadd]\n[ksoftirqd/0]\n"
    assert [row["cmdline"] for row in data(run("ps", "web01", "--kernel", "--format", "json"))] == ["", ""]


def test_ps_tree(run: Callable[..., Result]) -> None:
    shown = run("ps", "web01", "--tree", "-o", "pid,name", "--user", "0", "--no-headers").stdout
    assert shown.splitlines() == [" 1  init", "40  └─ nginx", " 2  kthreadd", "12  └─ ksoftirqd/0"]
    ordered = data(run("ps", "web01", "--tree", "--format", "json", "-o", "name,pid"))
    assert [list(row) for row in ordered] == [["name", "pid"]] * 6
    assert [row["pid"] for row in ordered] == [1, 40, 41, 50, 2, 12]


def test_ps_tree_says_when_parents_go_round_in_circles(run: Callable[..., Result], guest: FakeGuest) -> None:
    guest.rows[Processes] = [{"pid": 7, "parent": 8, "name": "a"}, {"pid": 8, "parent": 7, "name": "b"}]
    result = run("ps", "web01", "--tree", "-o", "name", "--no-headers")
    assert result.stdout.splitlines() == ["a", "└─ b"]
    assert result.stderr == "vmi-inside: web01: parents go round in a circle at pid 7\n"


def test_ps_tree_indents_command_lines_when_there_are_no_names(run: Callable[..., Result]) -> None:
    shown = run("ps", "web01", "--tree", "-o", "cmdline", "--name", "ngin[xy]", "--no-headers").stdout
    assert shown.splitlines() == ["nginx: master", "└─ nginx: worker"]


def test_ps_sorted(run: Callable[..., Result]) -> None:
    rows = data(run("ps", "web01", "--sort", "-resident_size,-pid", "--format", "json", "-o", "PID"))
    assert [row["pid"] for row in rows] == [40, 1, 50, 41, 12, 2]


def test_ps_threads(run: Callable[..., Result]) -> None:
    shown = run("ps", "web01", "--threads", "-p", "40", "-o", "tid,nice,name").stdout
    assert shown.splitlines() == ["TID  NICE  NAME", " 40     0  nginx", " 45    -5  nginx-io"]
    assert "1:01.23" in run("ps", "web01", "-T").stdout


@pytest.mark.parametrize("options", [("--pid", "999999"), ("--name", "x*"), ("--user", "7"), ("-T", "--pid", "2")])
def test_ps_without_a_match_exits_1_and_says_so(run: Callable[..., Result], options: tuple[str, ...]) -> None:
    result = run("ps", "web01", "--format", "json", *options)
    assert (result.exit_code, result.stdout) == (1, "[]\n")
    assert result.stderr.startswith("vmi-inside: web01: no ")
    assert result.stderr.count("\n") == 1


# -- ss ---------------------------------------------------------------------------------------------------------------


def test_ss_shows_everything_the_internet_first(run: Callable[..., Result]) -> None:
    assert run("ss", "web01").stdout.splitlines() == [
        "PROTOCOL  STATE      RX_QUEUE  TX_QUEUE  LOCAL         REMOTE          PROCESS",
        "tcp       TIME_WAIT         0         0  10.0.2.15:80  10.0.2.2:40123  -",
        "tcp       LISTEN            0         9  0.0.0.0:80    0.0.0.0:*       nginx[40] 6",
        "tcp       LISTEN            0         0  [::]:80       [::]:*          nginx[40] 7",
        r"udp       UNCONN            0         0  0.0.0.0:68    0.0.0.0:*       "
        r"\x1b]0;owned\x07\u202e[bold]x[/bold]\n[50] 5",
        "unix      LISTEN            0         0  /run/x.sock   *               init[1] 9",
        "netlink   UNCONN            0         0  route:*       *               [1] 4",
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-l"], {"tcp", "udp", "unix", "netlink"}),
        (["-tu"], {"tcp", "udp"}),
        (["-x", "-4", "-t"], {"tcp", "unix"}),
        (["-6"], {"tcp"}),
        (["--netlink"], {"netlink"}),
        (["--packet", "--vsock", "-w"], set()),
        (["--state", "time-wait"], {"tcp"}),
        (["--state", "UNCONN", "--state", "TIME_WAIT"], {"tcp", "udp", "netlink"}),
        (["-tulpn"], {"tcp", "udp"}),
        (["--pid", "-1"], {"tcp"}),
        (["--pid", "50,1", "-l"], {"udp", "unix", "netlink"}),
    ],
)
def test_ss_filters(run: Callable[..., Result], options: list[str], expected: set[str]) -> None:
    assert {row["protocol"] for row in data(run("ss", "web01", "--format", "json", *options))} == expected


def test_ss_data_has_the_librarys_columns(run: Callable[..., Result]) -> None:
    rows = data(run("ss", "web01", "--format", "json", "-6"))
    assert tuple(rows[0]) == OpenSockets.schema
    assert (rows[0]["local_address"], rows[0]["local_port"], rows[0]["fd"]) == ("::", 80, 7)


def test_ss_of_a_process_without_sockets_exits_1(run: Callable[..., Result]) -> None:
    assert run("ss", "web01", "--pid", "2").exit_code == 1
    assert run("ss", "web01", "--vsock").exit_code == 0


# -- guests, info -----------------------------------------------------------------------------------------------------


def test_guests(run: Callable[..., Result]) -> None:
    assert run("guests").stdout.splitlines() == [
        "ID  NAME   KIND  STATE     VCPUS  MEMORY  ATTACHABLE  REASON",
        "1   web01  qemu  running       2    1.0G  yes",
        "    db01   qemu  shut off      1    512M  no          not running",
    ]
    assert run("guests", "--all").stdout == run("guests").stdout
    assert [row["name"] for row in data(run("guests", "--running", "--format", "json"))] == ["web01"]


def test_info(run: Callable[..., Result]) -> None:
    shown = dict(
        line.split(maxsplit=1) for line in run("info", "web01", "-o", "release,memory,kaslr_offset").stdout.splitlines()
    )
    assert shown == {"release": "6.1.0", "memory": "1.0G", "kaslr_offset": "0x1c000000"}
    assert "fault" not in run("info", "web01").stdout
    rows = data(run("info", "web01", "--format", "json"))
    assert (len(rows), rows[0]["hostname"], rows[0]["kaslr_offset"]) == (1, EVIL, 0x1C000000)


# -- formats ----------------------------------------------------------------------------------------------------------


def test_json_is_exact_and_safe(run: Callable[..., Result]) -> None:
    result = run("ps", "web01", "--format", "json")
    rows = data(result)
    assert tuple(rows[0]) == Processes.schema
    assert (rows[5]["name"], rows[5]["address"], rows[1]["kernel_thread"]) == (EVIL, 0xFFFF888012345678, True)
    assert result.stdout.replace("\n", "").isascii()
    assert result.stdout.replace("\n", "").isprintable()


def test_jsonl(run: Callable[..., Result]) -> None:
    lines = run("ps", "web01", "--format", "jsonl").stdout.splitlines()
    assert [json.loads(line) for line in lines] == data(run("ps", "web01", "--format", "json"))


def test_csv_is_rfc_4180(run: Callable[..., Result]) -> None:
    result = run("ps", "web01", "--format", "csv", "-o", "name,pid")
    assert result.stdout_bytes.startswith(b"name,pid\r\ninit,1\r\n")
    rows = list(csv.reader(io.StringIO(result.stdout_bytes.decode(), newline="")))
    assert rows[-1] == [EVIL, "50"]
    bare = run("ps", "web01", "--format", "csv", "--no-headers", "-o", "pid", "--pid", "1")
    assert bare.stdout_bytes == b"1\r\n"


def test_tables_never_carry_guest_escapes(run: Callable[..., Result]) -> None:
    for command in ("ps", "ss", "info"):
        shown = run(command, "web01", "--wide", *(("-o", "all") if command != "info" else ())).stdout
        assert r"\x1b]0;owned\x07\u202e[bold]x[/bold]\n" in shown
        assert shown.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-o", "uid,pid,uid"], "UID,PID"),
        (["-o", "uid", "-o", "pid"], "UID,PID"),
        (["-o", "+path"], "PID,PARENT,UID,STATE,THREADS,RSS,START_TIME,NAME,CMDLINE,PATH"),
        (["-o", "path,all"], ",".join(["PATH", *(name.upper() for name in Processes.schema if name != "path")])),
    ],
)
def test_columns(run: Callable[..., Result], options: list[str], expected: str) -> None:
    header = ",".join(run("ps", "web01", *options).stdout.splitlines()[0].split())
    assert header == expected.replace("RESIDENT_SIZE", "RSS").replace("TOTAL_SIZE", "VSZ")


# -- messages ---------------------------------------------------------------------------------------------------------


def test_faults_notes_and_notices_go_to_stderr(run: Callable[..., Result], guest: FakeGuest) -> None:
    guest.rows[Processes] = [*PROCESSES[:2], {"pid": 3, "fault": "credentials unreadable"}]
    guest.notes = ("the task list is a circle\x1b",)
    guest.notices = ("libvirt marks the domain as tainted",)
    result = run("ps", "web01", "-v")
    assert result.stdout.splitlines()[0].endswith("  FAULT")
    assert result.stdout.splitlines()[-1].endswith("  credentials unreadable")
    assert result.stderr.splitlines() == [
        "vmi-inside: web01: libvirt marks the domain as tainted",
        "vmi-inside: web01: mapped from QEMU",
        r"vmi-inside: web01: the task list is a circle\x1b",
        "vmi-inside: web01: 1 row is marked as not wholly readable: see the column fault",
    ]
    assert "FAULT" not in run("ps", "web01", "-o", "pid").stdout
    assert run("ps", "web01", "--quiet").stderr == ""


def refuse(error: BaseException) -> Callable[..., object]:
    def attach(*args: object, **kwargs: object) -> object:
        raise error

    return attach


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (errors.NoSuchDomain("no domain web01; see: virsh list --all"), 3, "no domain web01; see: virsh list --all"),
        (errors.NotRunning("web01: is shut off"), 4, "web01: is shut off"),
        (errors.PermissionDenied("cannot read \x1b[2J"), 5, r"web01: cannot read \x1b[2J"),
        (errors.UnknownKernel("web01: no kernel"), 6, "web01: no kernel"),
        (errors.WrongProfile("web01: damaged"), 6, "web01: damaged"),
        (errors.BadDump("web01: is empty"), 7, "web01: is empty"),
        (errors.PageFault(0x1000), 8, "web01: virtual address 0x1000 is not mapped (level 0, entry 0x0)"),
        (errors.Unsupported("web01: needs libvirt-python"), 9, "web01: needs libvirt-python"),
        (errors.GuestGone("web01: ended"), 10, "web01: ended"),
        (errors.AttachError("web01: odd"), 1, "web01: odd"),
    ],
)
@pytest.mark.parametrize("command", ["ps", "ss", "info"])
def test_errors_are_a_line_and_a_code(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, command: str, error: Exception, code: int, said: str
) -> None:
    monkeypatch.setattr(vmi_inside.guest, "attach", refuse(error))
    result = run(command, "web01")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"vmi-inside: {said}\n")


def test_debug_shows_where_an_error_came_from(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(vmi_inside.guest, "attach", refuse(errors.NotRunning("web01: is shut off")))
    for args in (("ps", "web01", "--debug"), ("--debug", "ps", "web01")):
        result = run(*args)
        assert result.exit_code == 4
        assert "Traceback" in result.stderr
        assert result.stderr.endswith("vmi-inside: web01: is shut off\n")


def test_a_file_that_cannot_be_written_is_a_line(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    error = click.FileError("nowhere/x", "No such file or directory")
    monkeypatch.setattr(vmi_inside.guest, "attach", refuse(error))
    done = run("ps", "web01")
    assert (done.exit_code, done.stderr) == (1, "vmi-inside: nowhere/x: No such file or directory\n")


def test_ctrl_c_is_quiet(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmi_inside.guest, "attach", refuse(KeyboardInterrupt()))
    result = run("ps", "web01")
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["ps", "web01", "-o", "pid,nme"], "no column 'nme'. Did you mean 'name'? Columns: pid, parent,"),
        (["ps", "web01", "-o", ","], "no columns. There are: pid,"),
        (["info", "web01", "-o", "kernel"], "no column 'kernel'."),
        (["guests", "--sort", "ids"], "Did you mean 'id'?"),
        (["ps", "web01", "--sort", "-resident"], "no column 'resident'. Did you mean 'resident_size'?"),
        (["ps", "web01", "-T", "-o", "uid"], "no column 'uid'."),
        (["ps", "web01", "-T", "--tree"], "--threads has no --tree"),
        (["ps", "web01", "--pid", "1,x"], "no list of numbers"),
        (["ss", "web01", "--state", "open"], "there are established, syn-sent"),
        (["ps", "web01", "--raw-split", "3Q"], "no size like"),
        (["ps"], "Missing argument 'TARGET'"),
        (["pss"], "No such command 'pss'"),
        (["lsmdo", "web01"], "No such command 'lsmdo'. Did you mean 'lsmod'?"),
        (["allow", "web01", "network", "--all"], "Either --all, or what to allow to whom"),
        (["deny", "web01", "network", "--uid", "7", "--children"], "--children goes with --pid"),
        (["diff", "before"], "Give AFTER, or --wait SECONDS"),
        (["dmesg", "web01", "--follow", "--sort", "time"], "--follow writes lines as they come"),
        (["dropcaps", "web01", "7"], "Name capabilities, or say --all"),
        (["setuid", "web01", "7"], "Give --uid, --gid or both"),
        (["undo", "web01", "3", "--all"], "Either an ID or --all"),
        (["kill", "web01", "--signal", "NOSUCH", "7"], "is no signal like TERM, KILL, USR1 or 15"),
        (["kill", "web01"], "Which processes? Give PIDs, --group or --cgroup"),
        (["limit", "web01", "7", "nofile"], "is no limit like nofile=64"),
        (["limit", "web01", "7", "as=1", "nosuch=1"], "there is no limit 'nosuch'; there are cpu,"),
        (["limit", "web01", "7", "as=1", "AS=2"], "the limit as is given twice"),
        (["memdump", "web01", "7", "--regions", "heap,nosuch"], "no kind of regions 'nosuch'; there are"),
        (["netfilter", "web01", "--tables", "--hook", "input"], "--hook is of hooks, --tables shows tables"),
        (["read", "web01", "0", "8", "--pid", "7", "--physical"], "--pid and --physical exclude each other"),
        (["read", "web01", "0", "0"], "there is nothing to read"),
        (["strings", "web01", "--all", "--kernel"], "exclude each other"),
        (["strings", "web01", "--encoding", "nosuch"], "no encoding 'nosuch'; there are"),
        (["sql", "web01", ".nosuch"], "there are .tables and .schema [TABLE]"),
        (["write", "web01", "0x1000"], "One of --hex, --text and --int says what to write"),
        (["write", "web01", "0x1000", "--hex", ""], "There are no bytes to write"),
        (["creds", "web01", "--cap", "nosuch"], "no capability 'nosuch'. There are:"),
    ],
)
def test_wrong_usage_exits_2_before_attaching(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, args: list[str], hint: str
) -> None:
    monkeypatch.setattr(vmi_inside.guest, "attach", refuse(AssertionError("attached")))
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert hint in result.stderr


def test_how_to_attach_is_passed_on(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def attach(*args: object, **kwargs: object) -> FakeGuest:
        seen.append((args, kwargs))
        return FakeGuest()

    monkeypatch.setattr(vmi_inside.guest, "attach", attach)
    run("ps", "file:/x", "--raw-split", "3G", "-c", "qemu:///session")
    run("ps", "web01")
    bounded = {"resident_limit": options.RESIDENT_LIMIT, "profile": None}
    assert seen == [
        (("file:/x",), {"connect": "qemu:///session", "raw_split": 3 << 30, **bounded}),
        (("web01",), {"connect": None, "raw_split": None, **bounded}),
    ]


# -- help, version, completion, terminals -----------------------------------------------------------------------------


def test_help_and_version(run: Callable[..., Result]) -> None:
    assert run("--version").stdout == f"vmi-inside {__version__}\n"
    shown = run("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in shown
        assert "Examples:\n  " in run(name, "--help").stdout
    assert "..." not in shown.partition("\nGuests:\n")[2].partition("Exit codes:")[0]


def complete(line: str) -> list[str]:
    """What bash would offer at the end of a line, by click's own protocol."""
    words = line.split(" ")
    environment = {"_VMI_INSIDE_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = CliRunner().invoke(cli, env=environment, prog_name="vmi-inside")
    return [offer.removeprefix("plain,") for offer in result.stdout.splitlines()]


def test_completion_offers(guest: FakeGuest, tmp_path: Path) -> None:
    (tmp_path / "web.core").touch()
    (tmp_path / "webs").mkdir()
    assert complete("vmi-inside ps ") == ["web01", "db01", "file:", "qmp:", "libvmi:"]
    assert complete("vmi-inside ps w") == ["web01"]
    assert complete(f"vmi-inside ss file:{tmp_path}/web") == [f"file:{tmp_path}/web.core", f"file:{tmp_path}/webs/"]
    assert complete("vmi-inside ps web01 -o pid,na") == ["pid,name"]
    assert complete("vmi-inside ss web01 --sort pid,-rx") == ["pid,-rx_queue"]
    assert complete("vmi-inside inf") == ["info"]


def test_completion_is_silent_on_errors(guest: FakeGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmi_inside.guest, "guests", refuse(errors.PermissionDenied("no libvirt")))
    assert complete("vmi-inside ps ") == ["file:", "qmp:", "libvmi:"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run: Callable[..., Result], shell: str) -> None:
    assert "_VMI_INSIDE_COMPLETE" in run("completion", shell).stdout


def test_bash_takes_the_colon_of_a_path_as_it_is(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "a.core").touch()
    vmi_inside_command = tmp_path / "vmi-inside"
    vmi_inside_command.write_text(f'#!/bin/sh\nexec {sys.executable} -m vmi_inside.cli "$@"\n')
    vmi_inside_command.chmod(0o755)
    line = f"vmi-inside ps file:{tmp_path}/a"
    script = (
        f'{run("completion", "bash").stdout}\nCOMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}\n'
        '_vmi_inside_complete vmi-inside; echo "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == f"{tmp_path}/a.core\n", done.stderr


def test_on_a_terminal_tables_are_cut_and_bold_and_safe(guest: FakeGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    long = [*PROCESSES, {"pid": 60, "name": "java", "cmdline": "java -jar " + "x" * 500}]
    monkeypatch.setitem(guest.rows, Processes, long)
    for format_, cut in (("table", True), ("csv", False)):
        shown = on_terminal("ps", "web01", "--format", format_)
        assert r"\x1b]0;owned" in shown
        assert ("\x1b[1m" in shown) == cut
        lines = shown.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
        assert all(line.isprintable() for line in lines)
        assert (max(map(len, lines)) <= 100) == cut
    assert "x" * 500 in on_terminal("ps", "web01", "--wide")


def on_terminal(*args: str) -> str:
    """What a terminal gets to see of a command."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        with os.fdopen(theirs, "w", encoding="utf-8", newline="\n") as stdout, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            with pytest.raises(SystemExit) as end:
                cli(args, prog_name="vmi-inside")
            stdout.flush()
            shown = screen.read(1 << 16)
        assert not end.value.code
    return shown.decode().replace("\r\n", "\n")
