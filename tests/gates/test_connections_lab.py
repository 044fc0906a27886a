"""Open connections that are ended with a gate: what the far end sees, what the process does, and who else notices."""

from __future__ import annotations

import time

import pytest

from tests.gates.arena import LOCAL, NETWORK, Arena, refused, went_on
from vmi_inside.control.gates.aborting import Aborting
from vmi_inside.control.gates.standing import Site
from vmi_inside.errors import ControlError

_EPIPE, _EDESTADDRREQ, _ECONNABORTED = 32, 89, 103


def receiver(here: Arena, *, shared: bool = False) -> int:
    """A process that waits for what never comes; its pid."""
    words = "/run/receiver 127.0.0.1 7100" + " 1" * shared
    here.lab.ask(f"(workload receiver {words} >/dev/null 2>&1 &); sleep 0.3")
    return here.pid("receiver")


def resets(here: Arena) -> int:
    """How many connections the far end has seen being reset."""
    return len(here.lab.ask("cat /run/resets 2>/dev/null", check=False).split())


def ended(here: Arena, text: str) -> bool:
    """Whether the receiver comes to write that down."""
    for _ in range(50):
        if text in here.lab.ask("cat /run/receiver"):
            return True
        time.sleep(0.1)
    return False


def test_open_connections_of_a_group_are_ended(everywhere: Arena) -> None:
    here, guest = everywhere, everywhere.guest
    pid, _, waits = here.start("one"), here.start("two"), receiver(here)
    before = resets(here)
    moving = f"for p in {pid} {waits}; do echo $p >/sys/fs/cgroup/cut/cgroup.procs; done"
    here.lab.ask(f"mkdir -p /sys/fs/cgroup/cut; {moving}")
    done = guest.deny("network", cgroup="/cut", abort=True)
    # TCP and UDP, each over IPv4 and IPv6, the receiver's, and one more for bulk
    assert done.aborted is not None
    assert (done.aborted.ended, done.aborted.failed, done.aborted.shared) == (6, 0, 0)
    assert ended(here, f"-1 {_ECONNABORTED}")
    one, two = here.during("one", "two")
    refused(one, NETWORK)
    went_on(one, LOCAL)
    went_on(two, (*NETWORK, *LOCAL))
    assert resets(here) == before + 4
    guest.allow("network", cgroup="/cut")
    one, two = here.during("one", "two")
    went_on(one, ("make", "bind", *LOCAL))
    assert (one["tcp4"][0], one["tcp4"][2], one["tcp6"][2]) == (0, _EPIPE, _EPIPE)
    assert (one["udp4"][0], one["udp4"][2], one["udp6"][2]) == (0, _EDESTADDRREQ, _EDESTADDRREQ)
    went_on(two, (*NETWORK, *LOCAL))
    assert here.text_is_padding_for_calls()
    here.lab.ask(f"kill {pid} {waits}; sleep 0.2; rmdir /sys/fs/cgroup/cut")


def test_what_is_let_through_and_what_others_hold_is_not_ended(one_kernel: Arena) -> None:
    here, guest = one_kernel, one_kernel.guest
    pid = here.start("one", ip="10.9.0.1")
    before = resets(here)
    done = guest.deny("network", pid=pid, allow=("10.9.0.0/16",), abort=True)
    assert done.aborted is not None
    assert done.aborted.ended == 2  # over IPv6
    assert resets(here) == before + 1
    went_on(here.during("one")[0], ("tcp4", "udp4", "sendfile", *LOCAL))
    guest.allow()
    of_another = here.start("two", uid=2002)
    before = resets(here)
    done = guest.deny("network", uid=2002, abort=True)
    assert done.aborted is not None
    assert (done.aborted.ended, done.aborted.failed, done.aborted.shared) == (5, 0, 0)
    assert resets(here) == before + 3
    one, two = here.during("one", "two")
    went_on(one, ("tcp4", "udp4", "sendfile", *LOCAL))
    refused(two, NETWORK)
    guest.allow()
    here.lab.ask(f"kill {of_another}")
    before = resets(here)
    waits = receiver(here, shared=True)
    done = guest.deny("network", pid=waits, abort=True)
    assert done.aborted is not None
    assert (done.aborted.ended, done.aborted.shared) == (0, 1)
    assert done.notes == ("0 connections ended, 1 left alone: somebody else holds it too",)
    guest.allow()
    done = guest.deny("network", pid=waits, children=True, abort=True)  # both who hold it
    assert done.aborted is not None
    assert done.aborted.ended == 1
    assert ended(here, f"-1 {_ECONNABORTED}")
    assert resets(here) == before + 1
    here.lab.ask("killall receiver sharer")


def test_nothing_is_left_of_ended_connections(one_kernel: Arena) -> None:
    here, guest = one_kernel, one_kernel.guest
    pid = here.start("one")
    site = Site(guest.kernel)
    planned = guest.deny("network", pid=pid, abort=True, dry_run=True)
    assert planned.aborted is None
    guest.deny("network", pid=pid)
    state, _ = site.read()
    assert state is not None
    (rule,) = state.rules.values()
    aborting = Aborting(guest, site.offsets)
    found = aborting.find(rule, state.mark)
    assert len(found.sock) == 5
    count = guest.kernel.struct("sock").member("__sk_common.skc_refcnt.refs.counter").offset
    assert aborting.abort(rule, state.mark, "a test").ended == 5
    # The process still has the sockets, and nobody else: no reference of ours is left.
    for sock in found.sock.tolist():
        assert int.from_bytes(guest.kernel.space.read(sock + count, 4), "little") == 1
    assert len(aborting.find(rule, state.mark).sock) == 0
    assert {entry.state for entry in guest.journal() if entry.kind == "deferred"} == {"undone"}
    with pytest.raises(ControlError, match="nothing to do with exec"):
        guest.deny("exec", pid=pid, abort=True)
