"""The process that watches over a controller: when that one dies while it holds a guest, the guest is let go.

Started by `guest`, told by one byte on its standard input what the controller does: `+` holds the guest, `-` does not.
Knows nothing else; what is to be put right is read from what the controller wrote down.
"""

from __future__ import annotations

import os
import sys
import warnings


def main() -> None:
    """Wait for the controller's end, and put right what it left. Arguments: target, connect, writable, profile."""
    last = b""
    while chunk := os.read(sys.stdin.fileno(), 4096):
        last = chunk[-1:]
    if last == b"+":
        _rescue(*sys.argv[1:5])


def _rescue(target: str, connect: str, writable: str, profile: str) -> None:
    from vmi_inside.errors import VmiError
    from vmi_inside.guest import attach

    warnings.simplefilter("ignore")
    try:
        with attach(
            target, connect=connect or None, writable=bool(writable), pausing=True, profile=profile or None
        ) as guest:
            guest.watch = None
            guest.recover()
    except VmiError as error:
        sys.stderr.write(f"vmi-inside: {target}: its controller died, and it could not be let go: {error}\n")
