"""What the kernel says of itself, held against what the guest does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.lab.guest import LabGuest


@pytest.mark.parametrize("kernel", ["6.1-cloud", "new-cloud", "6.12-cloud", "5.10-cloud"])
def test_kernel_info(lab_boot: Callable[..., LabGuest], kernel: str) -> None:
    guest = lab_boot() if kernel == "6.1-cloud" else lab_boot(kernel=kernel)

    def said(command: str) -> str:
        return guest.ask(command).strip()

    with guest.attach() as seen:
        before = float(said("cat /proc/uptime").split()[0])
        row = seen.kernel_info()[0]
        after = float(said("cat /proc/uptime").split()[0])
        whole = seen.info()[0]
    assert row.fault == ""
    assert (row.version, row.build, row.machine) == (said("uname -r"), said("uname -v"), said("uname -m"))
    assert (row.hostname, row.domainname) == (said("hostname"), said("cat /proc/sys/kernel/domainname"))
    assert row.arguments == said("cat /proc/cmdline")
    assert row.taint == int(said("cat /proc/sys/kernel/tainted"))
    assert row.cpus_online == int(said("grep -c ^processor /proc/cpuinfo"))
    assert before - 2 <= row.uptime <= after + 1
    assert row.paging_levels == (5 if " la57" in said("grep -m1 flags /proc/cpuinfo") else 4)
    text = int(said("grep -m1 ' _text$' /proc/kallsyms").split()[0], 16)
    assert row.kaslr_offset == text - 0xFFFFFFFF81000000
    level = said("unshare -m sh -c 'mount -t securityfs none /sys/kernel/security; cat /sys/kernel/security/lockdown'")
    assert f"[{row.lockdown}]" in level
    assert (whole.arguments, whole.version, whole.release) == (row.arguments, row.build, row.version)
