"""The kernel's log, held against /dev/kmsg and dmesg of the guest."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.lab.guest import LabGuest
from vmi_inside.linux.kernel_log import FACILITIES, LEVELS, KernelLog

KERNELS = ("6.1-cloud", "new-cloud", "6.12-cloud", "5.10-cloud")


@pytest.fixture(params=KERNELS)
def guest(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> LabGuest:
    return lab_boot() if request.param == "6.1-cloud" else lab_boot(kernel=request.param)


def told(guest: LabGuest) -> dict[int, tuple]:
    """What /dev/kmsg has: by sequence number priority, microseconds, text, subsystem and device."""
    found: dict[int, list] = {}
    last: list = []
    for line in guest.ask("timeout -s INT 1 cat /dev/kmsg 2>/dev/null; true", timeout=120).splitlines():
        if line.startswith(" "):
            key, _, value = line[1:].partition("=")
            last[{"SUBSYSTEM": 3, "DEVICE": 4}[key]] = value
        elif ";" in line:
            head, _, text = line.partition(";")
            priority, number, microseconds = map(int, head.split(",")[:3])
            plain = re.sub(r"\\x(..)", lambda hit: chr(int(hit[1], 16)), text)
            found[number] = last = [priority, microseconds, plain, "", ""]
    return {number: tuple(each) for number, each in found.items()}


def seen(table: KernelLog) -> dict[int, tuple]:
    return {
        row.sequence: (
            FACILITIES.index(row.facility) * 8 + LEVELS.index(row.level), int(row.time * 1e6 + 1e-4), row.text,
            row.subsystem, row.device,
        )
        for row in table
    }  # fmt: skip


def test_every_record(guest: LabGuest) -> None:
    before = told(guest)
    with guest.attach() as attached:
        table = attached.kernel_log()
    mine, after = seen(table), told(guest)
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert table.finished.all()
    assert len(mine) > 300
    assert {number: mine.get(number) for number in before.keys() & after.keys()} == {
        number: before[number] for number in before.keys() & after.keys()
    }
    assert set(mine) <= set(before) | set(after)
    assert {caller[0] for caller in table.caller} <= {"T", "C"}


def test_what_is_logged_next(guest: LabGuest) -> None:
    with guest.attach() as attached:
        last = int(attached.kernel_log(["sequence"]).sequence[-1])
        assert len(attached.kernel_log(after=last)) == 0
        guest.ask("echo '<11>vmi: one' >/dev/kmsg; echo '<12>vmi: two' >/dev/kmsg")
        new = attached.kernel_log(after=last)
    rows = [row for row in new if row.text.startswith("vmi: ")]
    assert [(row.text, row.level, row.facility) for row in rows] == [
        ("vmi: one", "err", "user"), ("vmi: two", "warn", "user"),
    ]  # fmt: skip
    assert all(row.sequence > last for row in new)


def test_a_ring_that_went_round_more_than_once(lab_guest: LabGuest) -> None:
    lab_guest.ask("echo on >/proc/sys/kernel/printk_devkmsg")
    line = "x" * 300
    lab_guest.ask(  # the ring has 4096 records and 128 KiB of text; no process is started for a line
        f'x={line}; i=0; while [ $i -lt 4200 ]; do echo "vmi: $i ${{x:0:$((i % 300))}}" >/dev/kmsg; i=$((i+1)); done',
        timeout=120,
    )
    lab_guest.ask("echo ratelimit >/proc/sys/kernel/printk_devkmsg")
    before = told(lab_guest)
    with lab_guest.attach() as attached:
        table = attached.kernel_log()
    mine = seen(table)
    assert (table.notes, set(table.fault)) == ((), {""})
    after = told(lab_guest)
    both = before.keys() & after.keys()
    assert len(both) > 500
    assert min(mine) > 1000
    assert {number: mine.get(number) for number in both} == {number: before[number] for number in both}


def test_the_command(lab_guest: LabGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRSH_DEFAULT_CONNECT_URI", lab_guest.uri or "")
    command = [sys.executable, "-W", "error", "-m", "vmi_inside.cli", "dmesg", lab_guest.name]
    said = [line.expandtabs() for line in lab_guest.ask("dmesg", timeout=120).splitlines()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    # busybox's buffer may lack the oldest, and what comes meanwhile is ours alone.
    assert " ".join(said[10:]) in " ".join(shown.stdout.splitlines())
    assert shown.stderr == ""
    lab_guest.ask("echo '<3>vmi: before' >/dev/kmsg")
    with subprocess.Popen(
        [*command, "-w", "--interval", "0.1", "-l", "err+"], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        while not run.stdout.readline().endswith("] vmi: before\n"):
            assert run.poll() is None
        lab_guest.ask("echo '<6>vmi: not this' >/dev/kmsg; echo '<3>vmi: this' >/dev/kmsg")
        assert run.stdout.readline().endswith("] vmi: this\n")
        run.terminate()
