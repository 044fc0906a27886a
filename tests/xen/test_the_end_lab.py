"""Guests that are saved or destroyed while they are read."""

from __future__ import annotations

import pytest

from tests.lab.xen.host import XenGuest, XenHost
from tests.xen.dom0 import long, refused

pytestmark = [pytest.mark.lab, pytest.mark.xen]


@pytest.fixture(scope="module")
def saved(guests: dict[str, XenGuest], host: XenHost) -> tuple[str | None, str | None]:
    """What reading and attaching to the PVH guest said while it was saved; it is gone behind that."""
    said: tuple[str | None, str | None] = host.python(
        """
saver = subprocess.Popen(["xl", "save", "pvh", "/saved"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
said, stands, end = None, None, time.monotonic() + 150
while said is None and time.monotonic() < end:
    try:
        assert len(pvh.processes(("pid",))) > 60
        if stands is None:
            vmi_inside.attach("xen:pvh").close()
    except GuestGone as error:
        said = str(error)
    except NotRunning as error:
        stands = str(error)
    time.sleep(0.5)  # dom0 has one processor
assert saver.wait() == 0
pvh.close()
out = said, stands
""",
        200,
    )
    return said


def test_a_guest_that_is_saved_while_it_is_read(saved: tuple[str | None, str | None], host: XenHost) -> None:
    said, stands = saved
    assert said is not None
    assert "is gone" in said
    assert stands == "pvh: the domain is suspended; it is being saved or migrated"
    assert refused(host, "vmi_inside.attach('xen:pvh')", "'pvh'")[0] == 3


@long
@pytest.mark.usefixtures("saved")
def test_a_guest_that_was_saved_goes_on(host: XenHost) -> None:
    host.ask("xl restore /saved", 300)
    again = host.python("with vmi_inside.attach('xen:pvh') as pvh:\n    out = pvh.processes()", 200)
    assert len(again) > 60
    assert set(again.fault.tolist()) == {""}


def test_a_guest_that_is_destroyed_while_it_is_read(guests: dict[str, XenGuest], host: XenHost) -> None:
    said = host.python(
        """
import subprocess
ender = subprocess.Popen("sleep 2; xl destroy pv", shell=True)
started, out = time.monotonic(), None
while time.monotonic() - started < 60 and out is None:
    try:
        pv.processes()
    except GuestGone as error:
        out = str(error)
ender.wait()
pv.close()
""",
        200,
    )
    assert said is not None
    assert "is gone" in said
    assert "pv " not in host.ask("xl list")
