"""What tests of lies share: the shape of the guests that lie, and helpers to find what is lied about."""

from __future__ import annotations

import numpy as np

import vmi_inside
from tests.lab.guest import LabGuest
from tests.lab.kernels import kernel
from vmi_inside.linux.integrity import Findings
from vmi_inside.linux.integrity.reading import Reading
from vmi_inside.linux.tasks import PIDTYPE_TGID, pids

#: Guests of this shape are looked at by no other test.
SHAPE = {"append": "lab_only_for=lies", "workload": "tree=4,threads=4,owners,mappings,tcp,udp,unix"}
#: A function that nothing calls while the guest is paused; its entry is traceable.
FUNCTION = "vfs_read"
#: What ftrace leaves at a function's entry while nobody traces.
IDLE = (bytes.fromhex("0f1f440000"), bytes.fromhex("6666666690"))


def one(found: Findings, check: str) -> dict[str, object]:
    rows = found.alarms.to_dicts()
    assert {row["check"] for row in rows} == {check}, rows
    assert len(rows) == 1, rows
    return rows[0]


def task_of(seen: vmi_inside.Guest, pid: int) -> int:
    number, _, tasks = pids(seen.kernel).tasks(seen.kernel, PIDTYPE_TGID)
    return int(tasks.address[number == pid][0])


def module_of(seen: vmi_inside.Guest, name: str) -> int:
    return next(row.address for row in seen.kernel_modules() if row.name == name)


def code_of(seen: vmi_inside.Guest, module: str) -> int:
    """Where a module's code begins."""
    return next(row.base for row in seen.kernel_modules() if row.name == module)


def vmlinuz(guest: LabGuest) -> str:
    """The image of the guest's kernel."""
    return str(kernel(guest.shape.kernel).vmlinuz)


def module_space_hole(seen: vmi_inside.Guest) -> int:
    """An address among the modules that nobody has."""
    known = Reading(seen.kernel).code.modules
    assert known is not None
    return int((known.base + known.size.astype(np.uint64)).max()) + (64 << 20)


def padding(seen: vmi_inside.Guest) -> int:
    """Room in the kernel's code that no function has."""
    at = seen.kernel.symbol("__entry_text_end") + 4096 & ~63
    assert seen.kernel.space.read(at - 64, 128) == b"\xcc" * 128
    return at
