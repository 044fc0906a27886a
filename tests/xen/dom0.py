"""What tests ask of a Xen host, and what marks them."""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.lab.xen.host import Refused, XenGuest, XenHost
from vmi_inside import errors
from vmi_inside.cli import exits

long = pytest.mark.xen_long
KINDS = ("pvh", "pv", pytest.param("hvm", marks=long))


class Lost:
    """How many guests the emulated machine has lost: a test that fails meanwhile is done once more."""

    NAME: Final = "lost-guests"  # among pytest's plugins

    def __init__(self, host: XenHost) -> None:
        self._host = host
        self.known = 0

    def news(self) -> bool:
        """Whether one was lost that nobody has seen to."""
        return self._host.losses() > self.known


def lost_news(config: pytest.Config) -> bool:
    """Whether the run's Xen host, if there is one, lost a guest that was not replaced yet."""
    lost = config.pluginmanager.get_plugin(Lost.NAME)
    return lost is not None and lost.news()


def vcpus(request: pytest.FixtureRequest) -> int:
    """Of the PVH guest: two wait for each other, which an emulated processor does for long."""
    return 2 if request.config.getoption("--xen-long") else 1


def seen(guest: XenGuest, code: str) -> Any:
    """The value of an expression about `guest`, in dom0."""
    return guest.host.python(f"guest = {guest.name}\nout = {code}", 200)


def refused(host: XenHost, code: str, target: str) -> tuple[int, str]:
    """The exit code of the error that this ends in, and what it says."""
    with pytest.raises(Refused) as error:
        host.python(code, 200)
    assert "\n" not in error.value.said
    assert target in error.value.said
    return exits.code(getattr(errors, error.value.kind)(error.value.said)), error.value.said
