"""The command dmesg: which levels are asked for, how lines look, what is held back while it is written."""

from __future__ import annotations

import click
import numpy as np
import pytest
from click.testing import CliRunner

from vmi_inside.cli import dmesg
from vmi_inside.cli.app import cli
from vmi_inside.linux.kernel_log import LEVELS, KernelLog
from vmi_inside.table import text


def log(*rows: tuple[int, str, str, bool]) -> KernelLog:
    """Rows of sequence number, text, fault, and whether it is finished; one a second."""
    count = len(rows)
    return KernelLog({
        "sequence": np.array([row[0] for row in rows], dtype=np.int64),
        "time": np.arange(count) + 0.1234567,
        "level": text(["warn"] * count),
        "facility": text(["kern"] * count),
        "text": text(row[1] for row in rows),
        "finished": np.array([row[3] for row in rows], dtype=np.bool_),
        "fault": text(row[2] for row in rows),
    })  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("err", {"err"}),
        ("err,debug", {"err", "debug"}),
        ("Err+", {"emerg", "alert", "crit", "err"}),
        ("+notice", {"notice", "info", "debug"}),
        ("crit+,debug", {"emerg", "alert", "crit", "debug"}),
    ],
)
def test_levels(asked: str, found: set[str]) -> None:
    assert dmesg.levels(asked) == found
    assert dmesg._LEVELS == LEVELS


@pytest.mark.parametrize("asked", ["error", "", "warn,", "4"])
def test_levels_that_are_none(asked: str) -> None:
    with pytest.raises(click.BadParameter, match="is no level"):
        dmesg.levels(asked)


def test_lines() -> None:
    table = log((1, "one\ttab", "", True), (2, "two\nlines\x1b[0m", "", True), (3, "", "text lost", True))
    assert list(dmesg._lines(table, None, False)) == [
        "[    0.123456] one     tab\n",
        "[    1.123456] two\n",
        "[    1.123456] lines\\x1b[0m\n",
        "[    2.123456]  (text lost)\n",
    ]
    assert next(dmesg._lines(table, None, True)) == "kern  :warn  : [    0.123456] one     tab\n"


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ([(5, True), (6, True)], [5, 6]),
        ([(5, True), (6, False), (7, True)], [5]),
        ([(5, True), (7, True)], [5]),
        ([(5, False)], []),
        ([], []),
    ],
)
def test_what_is_still_being_written_is_held_back(rows: list[tuple[int, bool]], shown: list[int]) -> None:
    table = log(*((number, "x", "", done) for number, done in rows))
    assert dmesg._settled(table).sequence.tolist() == shown


@pytest.mark.parametrize("more", [["--format", "csv"], ["-o", "text"], ["--sort", "time"]])
def test_following_writes_lines(more: list[str]) -> None:
    result = CliRunner().invoke(cli, ["dmesg", "web01", "--follow", *more])
    assert result.exit_code == 2
    assert "--format jsonl" in result.stderr
