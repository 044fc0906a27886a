"""The commands about the kernel, on a real guest: people's tables, data, and what is asked for and not there."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner, Result

from tests.lab.guest import LabGuest
from vmi_inside.cli.app import cli

#: Command, arguments, the column that tells rows apart, a word of the guest's that a table for people shows.
COMMANDS = [
    (["mounts"], "id", "cgroup2"),
    (["mounts", "--usage"], "id", "tmpfs"),
    (["cgroups"], "path", "/lab.slice"),
    (["block"], "name", "loop0"),
    (["iomem"], "address", "System RAM"),
    (["iomem", "--ports"], "address", "dma1"),
    (["keys"], "serial_number", ".builtin_trusted_keys"),
    (["timers"], "address", "tcp_write_timer"),
    (["dmesg"], "sequence", "sctp: Hash tables"),
]
#: Arguments that nothing fits.
NOTHING = [
    ["mounts", "/no/such/place"], ["mounts", "--type", "btrfs"], ["mounts", "--namespace", "1"], ["cgroups", "/none"],
    ["cgroups", "--frozen"], ["block", "sdz"], ["iomem", "--name", "no such thing"], ["keys", "none"],
    ["keys", "--type", "logon"], ["timers", "--function", "none"], ["timers", "-p", "999999"],
]  # fmt: skip


@pytest.fixture
def guest(lab_guest: LabGuest, monkeypatch: pytest.MonkeyPatch) -> LabGuest:
    monkeypatch.setenv("VIRSH_DEFAULT_CONNECT_URI", lab_guest.uri or "")
    return lab_guest


def run(guest: LabGuest, command: list[str], *more: str) -> Result:
    name, *arguments = command
    return CliRunner().invoke(cli, [name, guest.name, *arguments, *more], catch_exceptions=False)


@pytest.mark.parametrize(
    ("command", "key", "word"), COMMANDS, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_a_table_for_people_and_data(guest: LabGuest, command: list[str], key: str, word: str) -> None:
    guest.ask("echo 'sctp: Hash tables' >/dev/kmsg")  # the ring may have gone round since it said so
    shown, data = run(guest, command), run(guest, command, "--format", "json")
    assert (shown.exit_code, data.exit_code) == (0, 0)
    assert shown.stderr == "" or command == ["timers"]  # of which one may be gone when it is looked at
    assert word in shown.stdout
    rows = json.loads(data.stdout)
    assert len(rows) >= 6
    assert "fault" in rows[0]
    named = run(guest, command, "-o", key, "--format", "csv").stdout.splitlines()
    assert named[0] == key
    assert len(named) - 1 == len(rows) or command in (["timers"], ["dmesg"])  # which go on
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", shown.stdout)


@pytest.mark.parametrize("command", NOTHING, ids=" ".join)
def test_what_is_asked_for_and_not_there(guest: LabGuest, command: list[str]) -> None:
    result = run(guest, command)
    assert result.exit_code == 1
    assert " matches" in result.stderr
