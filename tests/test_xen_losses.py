"""Which guests of an emulated Xen host count as lost by the emulation: by what Xen shows of their last state."""

from __future__ import annotations

from typing import cast

import pytest

from tests.lab.guest import LabGuest
from tests.lab.xen.host import XenHost

_DUMP = """\
(XEN) d1v1 Triple fault - invoking HVM shutdown action 1\r
(XEN) *** Dumping Dom1 vcpu#1 state: ***\r
(XEN) ----[ Xen-4.17.5  x86_64  debug=n  Not tainted ]----\r
(XEN) CPU:    0\r
(XEN) RIP:    {rip}\r
(XEN) RFLAGS: 0000000000000246   CONTEXT: hvm guest (d1v1)\r
"""
_XENS, _ITS_OWN = (_DUMP.format(rip=rip) for rip in ("e008:[<ffff82d040204505>]", "0010:[<ffffffff81074f5b>]"))


class Said:
    """A host's shell of which only the console is known."""

    def __init__(self, text: str) -> None:
        self.text = text

    def console_tail(self, size: int) -> str:
        return self.text[-size:]


@pytest.mark.parametrize(
    ("text", "losses"),
    [("lab: ready\n", 0), (_XENS, 1), (_ITS_OWN, 0), (_ITS_OWN + _XENS, 1), (_XENS + "lab\n" + _XENS, 2)],
)
def test_only_those_that_died_with_xens_own_registers(text: str, losses: int) -> None:
    assert XenHost(cast(LabGuest, Said(text))).losses() == losses
