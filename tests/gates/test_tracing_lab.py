"""Gates and the kernel's own tracer, which wants the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.gates.arena import LOCAL, NETWORK, Arena, refused, went_on
from tests.lab.guest import LabGuest
from vmi_inside.errors import Unsafe


@contextmanager
def traced(lab: LabGuest, functions: str) -> Iterator[Callable[[str], bool]]:
    """The guest traces these functions meanwhile. Gives what tells whether one was called.

    For guests of one vCPU: emulated ones of several do not live through it for sure, gates or not (one goes on running
    into a breakpoint that another has taken out again).
    """
    folder = "/sys/kernel/tracing"
    lab.ask(f"mount -t tracefs tracefs {folder}; cd {folder} && echo '{functions}' >set_ftrace_filter "
            "&& echo function >current_tracer")  # fmt: skip

    def called(function: str) -> bool:
        # Not while it goes on: reading makes more of it.
        told = lab.ask(f"cd {folder} && echo 0 >tracing_on; grep -m1 {function} trace; echo 1 >tracing_on")
        return function in told

    try:
        yield called
    finally:
        lab.ask(f"cd {folder} && echo nop >current_tracer; echo >set_ftrace_filter; cd /; umount {folder}")


def test_a_function_that_is_traced_is_somebody_elses(one_vcpu: Arena) -> None:
    here, guest = one_vcpu, one_vcpu.guest
    pid = here.start("one")
    with traced(here.lab, "security_socket_sendmsg"):
        with pytest.raises(Unsafe, match=r"security_socket_sendmsg is being traced"):
            guest.deny("network", pid=pid)
        guest.deny("exec", pid=pid)  # that is another function
        guest.allow("exec", pid=pid)
    assert here.room_is_padding()


def test_a_tracer_leaves_gated_functions_alone(one_vcpu: Arena) -> None:
    here, guest = one_vcpu, one_vcpu.guest
    pid = here.start("one")
    guest.deny("network", pid=pid)
    with traced(here.lab, "security_*") as called:
        refused(here.during("one")[0], NETWORK)
        assert called("security_task_kill")
        assert not called("security_socket_sendmsg")
    guest.allow("network", pid=pid)
    with traced(here.lab, "security_socket_sendmsg") as called:
        went_on(here.during("one")[0], (*NETWORK, *LOCAL))
        assert called("security_socket_sendmsg")
