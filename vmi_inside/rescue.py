"""The process that watches over a controller: when that one dies while it holds a guest, the guest is let go.

Started by `guest`, told by one byte on its standard input what the controller does: `+` holds the guest, `-` does not.
Knows nothing else; what is to be put right is read from what the controller wrote down.
"""

from __future__ import annotations

import os
import sys
import syslog
import time
import warnings
from typing import Final

#: The guest is tried to be let go so often, so many seconds apart.
_TRIES: Final = 60
_WAIT: Final = 2.0


def main() -> None:
    """Wait for the controller's end, and put right what it left. Arguments: target, connect, writable, profile."""
    last = b""
    while chunk := os.read(sys.stdin.fileno(), 4096):
        last = chunk[-1:]
    if last == b"+":
        _rescue(*sys.argv[1:5])


def _rescue(target: str, connect: str, writable: str, profile: str) -> None:
    from vmi_inside.errors import GuestGone, NoSuchDomain, NotRunning, VmiError
    from vmi_inside.guest import attach

    warnings.simplefilter("ignore")
    for left in reversed(range(_TRIES)):
        try:
            with attach(
                target, connect=connect or None, writable=bool(writable), pausing=True, profile=profile or None
            ) as guest:
                guest.watch = None
                guest.recover()
            return
        except (NoSuchDomain, NotRunning, GuestGone):
            return  # there is nobody left to be let go
        except VmiError as error:
            if not left:
                told = f"{target}: its controller died, and it could not be let go: {error}"
                syslog.syslog(syslog.LOG_ERR, f"vmi-inside: {told}")
                return
        time.sleep(_WAIT)  # as when libvirt's daemon is restarted, or another command is at it
