"""What a made-up kernel says of itself, and kernels that say nonsense."""

from __future__ import annotations

import pytest

from tests.synthetic import LinuxGuest
from tests.synthetic.guest import NOWHERE
from vmi_inside.linux.kernel_info import kernel_info, taint_words

NAMES = """
new_utsname 390
    sysname 0 char[65]
    nodename 65 char[65]
    release 130 char[65]
    version 195 char[65]
    machine 260 char[65]
    domainname 325 char[65]
uts_namespace 432
    name 4 new_utsname
"""
LINE = "BOOT_IMAGE=/old BOOT_IMAGE=/boot/vmlinuz-6.1 root=UUID=1-2 ro rootflags=x quiet"


def planted() -> LinuxGuest:
    guest = LinuxGuest()
    guest.profile.extend(NAMES)
    at = guest.global_("init_uts_ns", 432)
    guest.put("uts_namespace", at, name__nodename=b"web01", name__release=b"6.1.0", name__version=b"#1 SMP",
              name__machine=b"x86_64", name__domainname=b"(none)")  # fmt: skip
    guest.word(guest.global_("saved_command_line", 8), guest.string(LINE + "\n"))
    guest.word(guest.global_("tainted_mask", 8), 1 << 12 | 1 << 13 | 1 << 40)
    guest.word(guest.global_("__cpu_online_mask", 1024), 0b101)
    guest.word(guest.global_("kernel_locked_down", 4), 21)
    guest.profile.enumerators |= {"LOCKDOWN_NONE": 0, "LOCKDOWN_INTEGRITY_MAX": 21, "LOCKDOWN_CONFIDENTIALITY_MAX": 30}
    return guest


def test_every_column() -> None:
    (row,) = kernel_info(planted().kernel)
    assert (row.version, row.build, row.machine, row.hostname, row.domainname) == (
        "6.1.0", "#1 SMP", "x86_64", "web01", "(none)",
    )  # fmt: skip
    assert (row.arguments, row.path, row.device) == (LINE, "/boot/vmlinuz-6.1", "UUID=1-2")
    assert (row.cpus, row.cpus_online) == (2, 1)  # a bit above the possible CPUs counts for none
    assert (row.tainted, row.lockdown) == ("out-of-tree module, unsigned module, bit 40", "integrity")
    assert row.fault == "clock unreadable"  # the made-up timekeeper has no seconds


def test_words() -> None:
    assert taint_words(0) == ""
    assert taint_words(1) == "proprietary module"
    assert taint_words((1 << 64) - 1).count(",") == 63


def test_nonsense() -> None:
    guest = planted()
    guest.word(guest.profile.symbols["kernel_locked_down"], 7)
    guest.word(guest.profile.symbols["saved_command_line"], NOWHERE)
    guest.word(guest.profile.symbols["tainted_mask"], (1 << 64) - 1)
    for name in ("__cpu_online_mask", "init_uts_ns"):
        del guest.profile.symbols[name]
    (row,) = kernel_info(guest.kernel)
    assert (row.arguments, row.lockdown, row.cpus_online, row.hostname) == ("", "", 0, "")
    assert row.version == "synthetic"
    for word in ("command line unreadable", "lockdown 7", "__cpu_online_mask", "init_uts_ns"):
        assert word in row.fault


def test_a_command_line_without_an_end() -> None:
    guest = planted()
    guest.word(guest.profile.symbols["saved_command_line"], guest.string(b"x" * 9000))
    assert len(kernel_info(guest.kernel).arguments[0]) == 4096


def test_columns() -> None:
    guest = planted()
    assert kernel_info(guest.kernel, ["tainted", "taint"]).columns == ("taint", "tainted", "fault")
    with pytest.raises(AttributeError, match="no column 'nonsense'"):
        kernel_info(guest.kernel, ["nonsense"])
