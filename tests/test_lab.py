"""The lab itself: what the other tests trust."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Boot
from tests.lab import LabError
from tests.lab.guest import LabGuest

EVERY_TCP_STATE = {f"{state:02X}" for state in range(1, 12)} - {"07", "0C"}  # CLOSE is in no table


def test_the_workload_is_complete(lab_guest: LabGuest) -> None:
    assert "failed" not in lab_guest.ask("cat /run/workload")
    states = {line.split()[3] for line in lab_guest.ask("cat /proc/net/tcp").splitlines()[1:]}
    assert states >= EVERY_TCP_STATE
    six = {line.split()[3] for line in lab_guest.ask("cat /proc/net/tcp6").splitlines()[1:]}
    assert six >= EVERY_TCP_STATE
    letters = set(lab_guest.ask("cat /proc/[0-9]*/stat | sed 's/.*) \\(.\\) .*/\\1/'").split())
    assert letters >= set("SDTtZI")


def test_answers_are_whole_and_statuses_are_told(lab_guest: LabGuest) -> None:
    assert lab_guest.ask("seq 20000") == "".join(f"{n}\n" for n in range(1, 20001))
    assert lab_guest.ask("printf '\\002\\033[31m'; false", check=False) == "\x02\x1b[31m"
    with pytest.raises(LabError, match="exited with 3"):
        lab_guest.ask("exit 3")


def test_a_command_that_hangs_is_given_up_and_the_next_one_answered(lab_guest: LabGuest) -> None:
    with pytest.raises(LabError):
        lab_guest.ask("sleep 1000", timeout=2)
    assert lab_guest.ask("echo here") == "here\n"


def test_a_bare_qemu_serves_qmp_and_ends(lab_qemu: Boot) -> None:
    guest = lab_qemu(workload="none", vcpus=1)
    assert Path(guest.target.removeprefix("qmp:")).is_socket()
    assert guest.ask("cat /proc/cmdline").strip() == guest.shape.parameters
    guest.destroy()
    assert not Path(f"/proc/{guest.pid}").exists()


def test_a_domain_is_as_asked_for_and_ends(lab_fresh: Boot) -> None:
    guest = lab_fresh(cpu="la57-off", machine="pc", backing="memfd", numa=2, workload="none")
    assert "la57" not in guest.ask("cat /proc/cpuinfo")
    assert "memfd:" in Path(f"/proc/{guest.pid}/maps").read_text()
    assert guest.ask("ls -d /sys/devices/system/node/node[0-9]* | wc -l") == "2\n"
    guest.destroy()
    assert not Path(f"/proc/{guest.pid}").exists()
