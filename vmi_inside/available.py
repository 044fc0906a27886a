"""The ways to a guest's memory that this installation has, and what each of those lacks that it has not.

Knows what each kind of target needs. Whether a certain guest can be attached to is `guest.guests`' matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Final

import numpy as np

from vmi_inside.errors import VmiError
from vmi_inside.table import Table, Text, text
from vmi_inside.types import Mask

#: Packages that some dumps are compressed for, and what for.
_CODECS: Final = {"lzallright": "lzo", "cramjam": "snappy, zstd"}


class Drivers(Table):
    """One row for each way to a guest's memory."""

    driver: Text
    target: Text  # how it is asked for
    guests: Text  # what it is for
    available: Mask
    reason: Text  # why it is not, or what it lacks


def drivers(connect: str | None = None) -> Drivers:
    """The drivers, and whether each can be used here. Asks the libvirt at `connect`, and LibVMI, what they have."""
    rows = [
        ("libvirt", "NAME", "domains of libvirt, QEMU and KVM", *_tried(partial(_libvirt, connect))),
        ("qmp", "qmp:SOCKET", "QEMU without libvirt", *_tried(_qmp)),
        ("xen", "xen:NAME", "PV and PVH guests of this Xen host", *_tried(_xen)),
        ("file", "file:PATH", "dumps: raw, ELF core, kdump, LiME", True, _codecs()),
        *_libvmi(),
    ]
    driver, target, guests, available, reason = zip(*rows, strict=True)
    return Drivers({
        "driver": text(driver),
        "target": text(target),
        "guests": text(guests),
        "available": np.array(available, dtype=np.bool_),
        "reason": text(reason),
        "fault": text("" for _ in rows),
    })  # fmt: skip


def _tried(reason: Callable[[], str]) -> tuple[bool, str]:
    try:
        told = reason()
    except VmiError as error:
        told = str(error)
    return not told, told


def _libvirt(connect: str | None) -> str:
    from vmi_inside import domains

    domains.list_domains(connect, all=False)
    return ""


def _qmp() -> str:
    return "" if _there("qemu") and _there("qemu.qmp") else "QEMU's package is missing: pip install 'vmi-inside[qmp]'"


def _xen() -> str:
    from vmi_inside.drivers import xen

    xen.list_domains()
    return ""


def _codecs() -> str:
    lacks = [kinds for package, kinds in _CODECS.items() if not _there(package)]
    return f"no kdump files compressed with {', '.join(lacks)}: pip install 'vmi-inside[kdump]'" if lacks else ""


def _libvmi() -> Iterator[tuple[str, str, str, bool, str]]:
    from vmi_inside.drivers import libvmi

    for kind, target, guests in (
        ("file", "libvmi:PATH", "raw images of memory, QEMU's RAM file, through LibVMI"),
        ("xen", "libvmi:NAME", "domains of Xen, through LibVMI"),
        ("kvm", "libvmi:NAME", "domains of KVM, through LibVMI"),
    ):
        yield f"libvmi-{kind}", target, guests, *_tried(partial(libvmi.unavailable, kind))


def _there(package: str) -> bool:
    return find_spec(package) is not None
