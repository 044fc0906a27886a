"""The kernel's keys, held against /proc/keys of the guest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.lab.guest import LabGuest


@pytest.mark.parametrize("kernel", ["6.1-cloud", "new-cloud", "6.12-cloud", "5.10-cloud"])
def test_every_key(lab_boot: Callable[..., LabGuest], kernel: str) -> None:
    guest = lab_boot() if kernel == "6.1-cloud" else lab_boot(kernel=kernel)
    with guest.attach() as seen:
        table = seen.kernel_keys()
        few = seen.kernel_keys(["description"])
    assert table.notes == ()
    assert set(table.fault) == {""}
    mine = {row.serial_number: row for row in table}
    told = {line.split()[0]: line.split(maxsplit=8) for line in guest.ask("cat /proc/keys").splitlines()}
    # Some belong to user namespaces that the guest's root does not look into.
    assert set(told) <= set(mine)
    assert len(told) >= 8
    for serial, words in told.items():
        row = mine[serial]
        gid = 65534 if row.gid == -1 else row.gid
        assert words[1:7] == [row.flags, str(row.usage), row.timeout, row.permissions, str(row.uid), str(gid)]
        assert words[7] == row.type[:9]
        shown = f"{row.description}: {row.content}" if row.content else row.description
        assert words[8].strip() == shown if row.content else words[8].startswith(shown)
    assert table.serial_number.tolist() == sorted(table.serial_number)
    assert {"keyring", "asymmetric"} <= set(table.type)
    assert few.description.tolist() == table.description.tolist()
