"""Ranges of addresses and ports, held against /proc/iomem and /proc/ioports of the guest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.lab.guest import LabGuest


@pytest.mark.parametrize("kernel", ["6.1-cloud", "new-cloud", "6.12-cloud", "5.10-cloud"])
def test_all_ranges(lab_boot: Callable[..., LabGuest], kernel: str) -> None:
    guest = lab_boot() if kernel == "6.1-cloud" else lab_boot(kernel=kernel)
    with guest.attach() as seen:
        for table, digits, least in ((seen.iomem(), 8, 20), (seen.ioports(), 4, 15)):
            name = "iomem" if digits == 8 else "ioports"
            lines = [
                f"{'  ' * row.depth}{row.start:0{digits}x}-{row.end:0{digits}x} : {row.name}" for row in table
            ]  # fmt: skip
            assert lines == guest.ask(f"cat /proc/{name}").splitlines()
            assert len(lines) > least
            assert table.notes == ()
            assert set(table.fault) == {""}
        ram = seen.iomem(["name", "start"])
    assert ram.columns == ("start", "name", "fault")
    assert "System RAM" in ram.name
