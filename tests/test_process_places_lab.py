"""Directories, terminals, groups, sessions and scheduling of processes, held against the guest's /proc."""

from __future__ import annotations

import re
from typing import Any

from tests.lab.guest import LabGuest
from tests.proc import lasting, lines, whole
from vmi_inside.linux.processes.scheduling import POLICIES

#: Of /proc/PID/stat, counted from behind the name.
PGRP, SESSION, TTY, PROCESSOR, RT_PRIORITY, POLICY = 2, 3, 4, 36, 37, 38


def stats(guest: LabGuest, where: str) -> dict[int, list[str]]:
    """The fields of stat files behind the name; a name may have newlines and parentheses."""
    told = guest.ask(f"cd /proc; grep -aH '' {where} 2>/dev/null; true", timeout=120)
    whole: dict[int, str] = {}
    for number, line in re.findall(r"^(?:\d+/task/)?(\d+)/stat:(.*)$", told, re.MULTILINE):
        whole[int(number)] = f"{whole.get(int(number), '')}\n{line}"
    return {number: text.rpartition(")")[2].split() for number, text in whole.items()}


def test_places(lab_each: LabGuest) -> None:
    with lab_each.attach() as seen:

        def differences() -> dict[Any, object]:
            told, adjusted = stats(lab_each, "[0-9]*/stat"), lines(lab_each, "oom_score_adj")
            listed = lab_each.ask("cd /proc; ls -ld [0-9]*/cwd [0-9]*/root 2>/dev/null; true", timeout=120)
            found = re.findall(r" (\d+)/(cwd|root) -> (.*)$", listed, re.MULTILINE)
            links = {(int(pid), name): target for pid, name, target in found}
            wrong: dict[Any, object] = {}
            table = whole(seen.processes())
            assert len(told.keys() & set(table.pid.tolist())) > 250
            for row in table:
                if row.pid not in told:
                    continue
                fields, number = told[row.pid], int(told[row.pid][TTY])
                tty = f"pts/{number & 0xFF}" if number >> 8 == 136 else ""
                for name, mine, theirs in (
                    ("pgroup", row.pgroup, int(fields[PGRP])), ("session", row.session, int(fields[SESSION])),
                    ("tty", row.tty, tty), ("oom_score_adj", str(row.oom_score_adj), adjusted.get(row.pid)),
                    ("policy", row.policy, POLICIES[int(fields[POLICY])]),
                    ("rt_priority", row.rt_priority, int(fields[RT_PRIORITY])),
                    ("processor", row.processor, int(fields[PROCESSOR])),
                    ("cwd", row.cwd, links.get((row.pid, "cwd"), "")),
                    ("root", row.root, links.get((row.pid, "root"), "")),
                    ("on_disk", row.on_disk, (not row.path.endswith(" (deleted)")) if row.path else -1),
                ):  # fmt: skip
                    # Kernel threads that have work go from processor to processor.
                    if mine != theirs and not (name == "processor" and row.kernel_thread):
                        wrong[row.pid, name] = (row.name, mine, theirs)
            return wrong

        assert lasting(lab_each, differences) == {}
        rows = {row.name: row for row in seen.processes()}
        assert (rows["on-tty"].tty, rows["on-tty-child"].tty) == ("pts/0", "pts/0")
        assert rows["on-tty-child"].session == rows["on-tty"].pid != rows["on-tty-child"].pgroup
        assert rows["gone-dir"].cwd == "/tmp/a gone dir (deleted)"
        assert rows["own-root"].root == rows["own-root"].cwd == "/tmp/own root"
        assert (rows["oom-first"].oom_score_adj, rows["oom-last"].oom_score_adj) == (567, -987)
        assert {"other", "fifo", "rr", "batch", "idle", "deadline"} <= {row.policy for row in rows.values()}
        assert (rows["deleted-exe"].on_disk, rows["memfd-exe"].on_disk, rows["kthreadd"].on_disk) == (0, 0, -1)


def test_threads(lab_each: LabGuest) -> None:
    with lab_each.attach() as seen:

        def differences() -> dict[Any, object]:
            told = stats(lab_each, "[0-9]*/task/[0-9]*/stat")
            table = whole(seen.threads())
            assert len(told.keys() & set(table.tid.tolist())) > 260
            return {
                row.tid: (row, told[row.tid]) for row in table if row.tid in told and
                [row.processor, row.rt_priority, row.policy] != [
                    int(told[row.tid][PROCESSOR]), int(told[row.tid][RT_PRIORITY]),
                    POLICIES[int(told[row.tid][POLICY])],
                ]
            }  # fmt: skip

        assert {tid: pair for tid, pair in lasting(lab_each, differences).items() if not pair[0].kernel_thread} == {}
