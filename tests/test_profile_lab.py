"""Profiles of real kernels in real guests, compared with what the guests say of themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.lab.guest import LabGuest
from vmi_inside.profile.profile import Profile
from vmi_inside.types import MASK64

KERNELS = [
    pytest.param({}, id="6.1-cloud"),
    pytest.param({"kernel": "5.10-cloud", "workload": "none"}, id="5.10-cloud"),
    pytest.param(
        {"kernel": "6.12-cloud", "cpu": "la57-off", "append": "nokaslr", "workload": "none"}, id="6.12-nokaslr"
    ),
    pytest.param({"kernel": "new-cloud", "workload": "none"}, id="new-cloud"),
]


def kallsyms_digest(profile: Profile) -> str:
    """Of all symbols as /proc/kallsyms prints them."""
    digest = hashlib.md5(usedforsecurity=False)
    symbols = profile.symbols
    for row in range(len(symbols)):
        one = symbols[row]
        address = one.value if one.fixed else one.value + profile.origin & MASK64
        digest.update(b"%016x %s %s\n" % (address, one.type.encode(), one.name.encode()))
    return digest.hexdigest()


@pytest.mark.parametrize("shape", KERNELS)
def test_every_symbol_is_as_the_guest_says(lab_boot: Callable[..., LabGuest], shape: dict[str, Any]) -> None:
    guest = lab_boot(**shape)
    inside = guest.ask("echo 0 > /proc/sys/kernel/kptr_restrict; grep -v '\\[' /proc/kallsyms | md5sum").split()[0]
    release = guest.ask("uname -r").strip()
    five = "la57" in guest.ask("grep -m1 flags /proc/cpuinfo").split()
    with guest.attach() as attached:
        profile = attached.kernel.profile
        assert kallsyms_digest(profile) == inside
        assert profile.release == release
        assert attached.kernel.space.paging.levels == (5 if five and "no5lvl" not in shape.get("append", "") else 4)
        assert profile.banner == guest.ask("cat /proc/version").strip()
        notes = bytes.fromhex(guest.ask("od -An -v -tx1 /sys/kernel/notes"))
        assert bytes.fromhex(profile.build_id) in notes
        own = guest.ask("md5sum < /sys/kernel/btf/vmlinux").split()[0]
        assert hashlib.md5(profile.types.blob.tobytes(), usedforsecurity=False).hexdigest() == own
