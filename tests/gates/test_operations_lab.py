"""Operations other than the network."""

from __future__ import annotations

import re

import pytest

from tests.gates.arena import EPERM, LOCAL, NETWORK, Arena, refused, went_on


@pytest.mark.parametrize(
    ("operation", "lost"),
    [("exec", ("exec",)), ("open", ("open",)), ("kill", ("kill",)), ("ptrace", ("trace",))],
)
def test_other_operations(one_kernel: Arena, operation: str, lost: tuple[str, ...]) -> None:
    here, guest = one_kernel, one_kernel.guest
    pid = here.start("one")
    here.start("two")
    guest.deny(operation, pid=pid, children=operation == "exec")
    one, two = here.during("one", "two")
    refused(one, lost)
    # what needs a file to be opened has none to send
    without = {"open": {"open", "exec", "sendfile", "splice"}}.get(operation, set(lost))
    went_on(one, tuple(kind for kind in (*NETWORK, *LOCAL) if kind not in without))
    went_on(two, (*NETWORK, *LOCAL))
    guest.allow(operation, pid=pid)
    went_on(here.during("one")[0], (*NETWORK, *LOCAL))


def test_modules(here: Arena) -> None:
    guest = here.guest
    here.lab.ask("rmmod loop 2>/dev/null; cp /modules/*loop.ko /run/loop.ko; : >/run/said; "
                 "(sh -c 'echo $$ >/run/shell; while :; do insmod /run/loop.ko; rmmod loop; sleep 0.1; done' "
                 ">/run/said 2>&1 &); sleep 0.5")  # fmt: skip
    pid = int(here.lab.ask("cat /run/shell"))
    try:
        guest.deny("module", pid=pid, children=True, errno="EPERM")
        here.lab.ask(": >/run/said; sleep 1")
        said = here.lab.ask("cat /run/said")
        assert re.search(r"insmod:.*(Operation not permitted|-1)", said), said
        assert guest.gates().refused[0] > 0
        guest.allow("module", pid=pid)
        assert "insmod" not in here.lab.ask("sleep 0.5; : >/run/said; sleep 1; cat /run/said")
    finally:
        here.lab.ask(f"kill {pid}; rm -f /run/said /run/shell /run/loop.ko")


def test_gates_of_several_operations_stand_together(one_kernel: Arena) -> None:
    here, guest = one_kernel, one_kernel.guest
    pid, other = here.start("one"), here.start("two")
    guest.deny("network", pid=pid, children=True)
    guest.deny("exec", pid=pid, children=True)
    here.lab.ask(f"kill -USR1 {pid}")
    guest.deny("network", pid=other, errno="EPERM")
    one, two = here.during("one", "two")
    refused(one, (*NETWORK, "exec"))
    refused(here.counts("one.child"), ("make", "exec"))
    refused(two, NETWORK, EPERM)
    assert len(guest.gates()) == 3
    guest.allow("network", pid=pid)
    one, two = here.during("one", "two")
    went_on(one, NETWORK)
    refused(one, ("exec",))
    refused(two, NETWORK, EPERM)
    guest.allow(pid=pid)
    assert guest.gates().pid.tolist() == [other]
    guest.allow()
    for counts in here.during("one", "two"):
        went_on(counts, (*NETWORK, *LOCAL))
