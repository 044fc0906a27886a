"""What people are shown: guest text that cannot harm a terminal, numbers in human form, trees of hostile parents."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi_inside import errors
from vmi_inside.cli import exits, forest
from vmi_inside.cli.escape import visible, width
from vmi_inside.cli.fields import column_cells, duration, moment, size
from vmi_inside.cli.grids import Grid
from vmi_inside.control.registers import Registers
from vmi_inside.errors import VmiError
from vmi_inside.linux.memory.vm_counters import VmCounters
from vmi_inside.table import text as words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sshd: root@pts/0", "sshd: root@pts/0"),
        ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x7f\x9b31m", r"\x7f\x9b31m"),
        ("gpj.\u202eexe\u2066\u2069", r"gpj.\u202eexe\u2066\u2069"),
        ("s\u200bsh\ufeffd\u3164", r"s\u200bsh\ufeffd\u3164"),
        ("\U000e0041\U000e0100", r"\U000e0041\U000e0100"),
        ("\udcff", r"\udcff"),
        ("C:\\x1b größe 測試", "C:\\x1b größe 測試"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_visible_is_always_printable_and_keeps_harmless_text(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    shown.encode()
    assert visible(shown) == shown


def test_width_of_wide_and_combining() -> None:
    assert (width("abc"), width("測試"), width("e\u0301")) == (3, 4, 1)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"), (1023, "1023"), (1024, "1.0K"), (1025, "1.1K"), (10239, "10K"), (10241, "11K"), (1 << 20, "1.0M"),
        ((1 << 20) - 1, "1.0M"), (3 << 30, "3.0G"), (-5, "-5"), (1 << 63, "8.0E"), ((1 << 70) - 1, "1024E"),
    ],
)  # fmt: skip
def test_size(value: int, shown: str) -> None:
    assert size(value) == shown


def test_moment_is_local_and_survives_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    try:
        assert moment(86400) == "1970-01-02T02:00:00"
        assert [moment(value) for value in (-1, 1 << 62)] == ["-1", str(1 << 62)]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_duration() -> None:
    assert [duration(value) for value in (0, 1230, 61_239, 3_600_000, -4)] == [
        "0:00.00",
        "0:01.23",
        "1:01.23",
        "60:00.00",
        "0:00.00",
    ]


def test_a_counter_is_a_number_and_a_register_an_address() -> None:
    counters = VmCounters({"name": words(["nr_free_pages"]), "value": np.array([37150]), "fault": words([""])})
    registers = Registers({"register": words(["rip"]), "value": np.array([37150], np.uint64), "fault": words([""])})
    assert column_cells(counters, "value") == ["37150"]
    assert column_cells(registers, "value") == ["0x911e"]


def test_grid_aligns_by_what_is_seen() -> None:
    grid = Grid(["N", "NAME", "X"], [["1", "100"], ["測試", "abc"], ["end", "e"]], [True, False, False])
    assert list(grid.lines()) == ["  N  NAME  X", "  1  測試  end", "100  abc   e"]


def test_one_endless_text_does_not_widen_all_rows() -> None:
    """As a process of a guest can have 65,536 groups, whose list is 400 KB: beside 10,000 others, of 4 GB of spaces."""
    endless = "測" * 100_000
    lines = list(Grid(["A", "B"], [[endless, *["x"] * 1000], ["1"] * 1001], [False, False]).lines())
    assert lines[1] == f"{endless}  1"
    assert {len(line) for line in lines[2:]} == {515}


@given(
    st.lists(st.tuples(st.integers(), st.text("ab測", max_size=60), st.text("xy試", max_size=60))), st.integers(10, 120)
)
def test_grid_never_exceeds_its_limit(rows: list[tuple[int, str, str]], limit: int) -> None:
    columns = [[str(row[0]) for row in rows], [row[1] for row in rows], [row[2] for row in rows]]
    lines = list(Grid(["N", "A", "B"], columns, [True, False, False]).lines(limit))
    assert len(lines) == len(rows) + 1
    assert all(width(line) <= limit for line in lines)


def tree(own: list[int], parent: list[int]) -> list[str]:
    order, depth, last = forest.grow(own, parent)
    drawn = forest.branches(depth, last)
    return [before + str(own[row]) for before, row in zip(drawn, order, strict=True)]


def test_tree() -> None:
    assert tree([1, 2, 10, 11, 12, 20, 99], [0, 0, 1, 10, 10, 1, 77]) == [
        "1", "├─ 10", "│  ├─ 11", "│  └─ 12", "└─ 20", "2", "99",
    ]  # fmt: skip


def test_tree_of_circles_loses_nobody() -> None:
    assert tree([5, 6, 7, 8], [7, 5, 6, 8]) == ["8", "5", "└─ 6", "   └─ 7"]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12))))
def test_tree_shows_each_row_once(rows: list[tuple[int, int]]) -> None:
    order, depth, last = forest.grow([row[0] for row in rows], [row[1] for row in rows])
    assert sorted(order) == list(range(len(rows)))
    assert not depth or depth[0] == 0
    assert all(below <= above + 1 for above, below in pairwise(depth))
    assert len(forest.branches(depth, last)) == len(rows)


def test_tree_of_a_long_chain_stays_narrow() -> None:
    count = 5000
    lines = tree(list(range(count)), [max(number - 1, 0) for number in range(count)])
    assert max(map(len, lines)) < 100
    assert "(4999)" in lines[-1]


def every_error(kind: type[VmiError] = VmiError) -> Iterator[type[VmiError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from every_error(child)


def test_exit_codes_are_distinct_and_complete() -> None:
    codes = [each.code for each in exits.EXITS]
    assert len(set(codes)) == len(codes)
    assert {exits.code(kind.__new__(kind)) for kind in every_error()} <= set(codes)
    assert exits.code(errors.PageFault(1)) == exits.code(errors.NoMemory(1)) == 8
    assert exits.code(errors.GuestGone("x")) == 10
    assert exits.code(VmiError("x")) == 1


EMIT = "import sys; from vmi_inside.cli.sink import emit; emit('x' * 99 + '\\n' for _ in range(100_000))"


def test_a_closed_pipe_ends_by_sigpipe_in_silence() -> None:
    with subprocess.Popen([sys.executable, "-c", EMIT], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (-13, b"")


def test_help_needs_neither_numpy_nor_rich_nor_libvirt() -> None:
    code = (
        "import sys, runpy; sys.argv = ['vmi-inside', '--help']\n"
        "try: runpy.run_module('vmi_inside.cli')\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({'numpy', 'rich', 'libvirt'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert all(f"{each.code:>5}  {each.meaning}" in done.stdout for each in exits.EXITS)


def test_a_bug_is_one_line_that_says_how_to_see_more() -> None:
    code = (
        "import sys; sys.argv = ['vmi-inside', 'completion', 'bash']\n"
        "import vmi_inside.cli, vmi_inside.cli.completion as c\n"
        "def emit(lines): raise ZeroDivisionError('of \\x1b[2J')\n"
        "c.emit = emit\n"
        "vmi_inside.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("vmi-inside: this is a bug: ZeroDivisionError: of \\x1b[2J")
    assert "vmi-inside --debug completion bash" in done.stderr
