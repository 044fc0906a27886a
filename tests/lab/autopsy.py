"""What a lab guest does that does not answer, seen from outside: whether it runs, where its vCPUs are, who is runnable.

Knows that it is asked when something is wrong already: what cannot be told is told as such, and raises nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.lab.guest import LabGuest
    from vmi_inside.guest import Guest

_LOOKS: Final = 3
_MOST_TASKS: Final = 20


def autopsy(lab: LabGuest) -> str:
    """Some lines about that guest."""
    return "\n".join(line for part in (_state, _inside) for line in _told(part, lab))


def _told(part: Callable[[LabGuest], Iterator[str]], lab: LabGuest) -> Iterator[str]:
    try:
        yield from part(lab)
    except Exception as error:  # whatever it is, it is one thing more that is wrong with the guest
        yield f"{part.__name__.strip('_')}: {type(error).__name__}: {error}"


def _state(lab: LabGuest) -> Iterator[str]:
    if lab.domain is not None:
        yield f"libvirt: state and reason {lab.domain.state()}"


def _inside(lab: LabGuest) -> Iterator[str]:
    with lab.attach(writable=True) as guest:
        for _ in range(_LOOKS):
            for vcpu in guest.vcpus:
                registers = vcpu.registers
                flags = registers["eflags"]
                yield f"vCPU {vcpu.index}: rip {_symbol(guest, registers['rip'])}, eflags {flags:#x}"
            time.sleep(0.2)
        runnable = [row for row in guest.processes() if row.state in ("R", "D")][:_MOST_TASKS]
        for row in runnable:
            yield f"{row.state} {row.pid} {row.name}: user {row.user_time} ms, system {row.system_time} ms"
        for frame in guest.process_stack(pids=frozenset(row.pid for row in runnable)):
            yield f"  {frame.pid}/{frame.tid} {frame.symbol}"


def _symbol(guest: Guest, address: int) -> str:
    found = guest.kernel.profile.symbol_at(address)
    return f"{address:#x}" if found is None else f"{found[0]}+{found[1]:#x}"
