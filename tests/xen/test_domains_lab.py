"""Which guests a Xen host has; targets that are none, and guests in which no kernel runs."""

from __future__ import annotations

import base64
import struct

import pytest

from tests.lab.xen.host import Refused, XenGuest, XenHost
from tests.xen.dom0 import refused

pytestmark = [pytest.mark.lab, pytest.mark.xen]


def test_guests_are_listed(guests: dict[str, XenGuest], host: XenHost) -> None:
    rows = host.python("out = [(row.name, row.kind, row.state, row.possible) for row in vmi_inside.guest.guests()]")
    assert sorted(rows) == [
        ("Domain-0", "pv", "running", ""),
        *((name, name, "running", "read, control") for name in sorted(guests)),
    ]


@pytest.mark.parametrize(
    ("target", "kind", "words"),
    [
        ("xen:0", "Unsupported", "domain 0 is the system"),
        ("xen:Domain-0", "Unsupported", "domain 0 is the system"),
        ("xen:nobody", "NoSuchDomain", "xl list"),
        ("xen:pw", "NoSuchDomain", "xl list"),
        ("xen:4711", "NoSuchDomain", "xl list"),
        ("xen:", "AttachError", "write xen:NAME"),
    ],
)
def test_targets_that_are_none(host: XenHost, target: str, kind: str, words: str) -> None:
    with pytest.raises(Refused) as error:
        host.python(f"vmi_inside.attach({target!r})")
    assert error.value.kind == kind
    assert words in error.value.said


def test_without_privilege(host: XenHost) -> None:
    code = "import os; os.setuid(1000); from vmi_inside.drivers.xenlib import Xen; Xen()"
    said = host.ask(f'python3 -c "{code}"', check=False)
    assert "PermissionDenied: no access to /dev/xen/privcmd" in said


@pytest.mark.parametrize("kind", ["pvh", "pv"])
def test_a_guest_that_has_not_begun(guests: dict[str, XenGuest], host: XenHost, kind: str) -> None:
    changes = f"s/^name=.*/name='new'/; s/^type=.*/type='{kind}'/; s/^memory=.*/memory=128/"
    host.ask(f'sed "{changes}" /tmp/pvh.cfg >/tmp/new.cfg; xl create -p /tmp/new.cfg')
    try:  # its kernel lies in memory already
        code, said = refused(host, "vmi_inside.attach('xen:new')", "new: ")
    finally:
        host.ask("xl destroy new")
    assert code == 4
    assert ("has not begun to run" if kind == "pvh" else "still booting") in said


def waiting() -> bytes:
    """An ELF file that a PVH guest is started with, and that waits for good, as a boot loader may."""
    entry, code = 0x10_0000, b"\xf3\x90\xeb\xfc"  # pause, and again: one that halts for good is ended by Xen
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen", entry)  # XEN_ELFNOTE_PHYS32_ENTRY (public/elfnote.h)
    at = 64 + 2 * 56
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, entry, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )  # fmt: skip
    load = struct.pack("<IIQQQQQQ", 1, 7, at, entry, entry, len(code), 0x1000, 0x1000)
    notes = struct.pack("<IIQQQQQQ", 4, 4, at + len(code), 0, 0, len(note), len(note), 4)
    return header + load + notes + code + note


def test_a_guest_without_a_kernel(host: XenHost) -> None:
    elf = base64.b64encode(waiting()).decode()
    config = "name='still'\ntype='pvh'\nmemory=32\nkernel='/tmp/still'"
    host.ask(f'echo {elf} | base64 -d >/tmp/still; echo "{config}" >/tmp/still.cfg; xl create /tmp/still.cfg')
    try:
        assert "still" in host.ask("xl list")
        code, said = refused(host, "vmi_inside.attach('xen:still')", "still: ")
    finally:
        host.ask("xl destroy still")
    assert code == 6
    assert "no Linux kernel in" in said
