"""The commands on what watches a kernel and where its memory goes, on guests in which there is something to see."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.lab.guest import LabGuest
from vmi_inside.cli.app import cli
from vmi_inside.linux.memory.process_memory import PLAIN

Run = Callable[..., Result]


@pytest.fixture
def run(watched_guest: LabGuest) -> Run:
    where = ["-c", watched_guest.uri or "", watched_guest.name]
    return lambda command, *args: CliRunner().invoke(cli, [command, *where, *args])


def data(done: Result) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.output
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("meminfo",), ("memory_total", "swap_free")),
        (("slabinfo", "task_*"), ("NAME", "ACTIVE_OBJS", "task_struct")),
        (("memory", "--name", "watched"), ("RSS", "SWAP", "watched")),
        (("memory", "--pss"), ("PSS", "USS", "huge-twin")),
        (("bpf",), ("TAG", "lab_filter", "socket_filter", "0xffffffff")),
        (("bpf", "maps"), ("MAX_ENTRIES", "lab_hash")),
        (("bpf", "links"), ("TARGET", "sched_process_exit", "/watched")),
        (("bpf", "attached"), ("LINK_ID", "cgroup_device", "lab_device", "xdp_generic")),
        (("kprobes",), ("STATE", "optimized", "disabled ftrace", "lab:inside")),
        (("uprobes", "/bin/*"), ("OFFSET", "/bin/busybox", "lab:start")),
        (("ftrace",), ("CALLBACK", "global_ops", "function_trace_call")),
        (("ftrace", "functions", "--name", "vfs_*"), ("CALLBACKS", "vfs_statx", "vfs_mkdir")),
        (("tracepoints", "sched_process_*"), ("FUNCTION", "perf_trace_sched_process_fork")),
        (("perfevents", "--type", "kprobe"), ("PROGRAM", "kprobe do_nanosleep", "lab_kprobe")),
        (("vmstat", "pg*fault"), ("VALUE", "pgfault", "pgmajfault")),
        (("buddyinfo",), ("ORDER_10", "DMA32")),
        (("swaps",), ("PRIORITY", "/dev/loop0", "partition")),
    ],
    ids=lambda value: " ".join(value) if len(value) < 6 else "",
)
def test_people_see_it(run: Run, args: tuple[str, ...], words: tuple[str, ...]) -> None:
    done = run(*args)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    for word in words:
        assert word in done.stdout
    exact = run(*args, "--format", "json", "-o", "all")
    assert data(exact)
    assert {row["fault"] for row in data(exact)} == {""}


def test_what_is_not_there(run: Run) -> None:
    for args in (
        ("kprobes", "nonsense"), ("tracepoints", "nonsense"), ("bpf", "--name", "nonsense"), ("slabinfo", "nonsense"),
        ("ftrace", "users", "--owner", "nonsense"), ("uprobes", "/nonsense"), ("vmstat", "nonsense"),
    ):  # fmt: skip
        done = run(*args)
        assert done.exit_code == 1
        assert "matches" in done.stderr


def test_page_tables_are_walked_when_that_was_asked_for(run: Run) -> None:
    assert tuple(data(run("memory", "--format", "json"))[0]) == PLAIN
    assert {"pss", "uss", "mapped"} <= set(data(run("memory", "--pss", "--format", "json"))[0])
    order = [row["pss"] for row in data(run("memory", "--pss", "--format", "json"))]
    assert order == sorted(order, reverse=True)
    sizes = run("meminfo", "-o", "memory_total", "--format", "csv").stdout.split()
    assert sizes[0] == "memory_total"
    assert int(sizes[1]) > 1 << 20
