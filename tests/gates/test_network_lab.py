"""A process without its network, judged from inside: what it cannot do any more, what it still can, who notices."""

from __future__ import annotations

from tests.gates.arena import LOCAL, NETWORK, Arena, refused, went_on


def test_a_process_loses_its_network_and_lives_on_and_gets_it_back(everywhere: Arena) -> None:
    here, guest = everywhere, everywhere.guest
    pid, _ = here.start("one"), here.start("two")
    sockets = {fd: what for fd, what in here.descriptors(pid).items() if "socket" in what}
    assert len(sockets) >= 7

    done = guest.deny("network", pid=pid)
    one, two = here.during("one", "two")
    refused(one, NETWORK)
    refused(one, ("packet",))
    went_on(one, LOCAL)
    went_on(two, (*NETWORK, *LOCAL, "packet"))
    assert here.descriptors(pid).items() >= sockets.items()
    (row,) = guest.gates()
    assert (row.operation, row.scope, row.pid, row.name, row.alive) == ("network", "process", pid, "one", True)
    assert (row.errno, row.allow, row.entry) == ("EACCES", "", str(done.entry.id))
    assert row.refused >= sum(one[kind][1] for kind in NETWORK)

    guest.allow("network", pid=pid)
    assert not len(guest.gates())
    one, two = here.during("one", "two")
    went_on(one, (*NETWORK, *LOCAL, "bind", "dial", "packet"))
    went_on(two, (*NETWORK, *LOCAL))
    assert here.descriptors(pid).items() >= sockets.items()  # the same connections
    assert here.counts("one")["tcp4"][3] == here.counts("one")["tcp6"][3] == 0


def test_networks_that_are_let_through(one_kernel: Arena) -> None:
    here, guest = one_kernel, one_kernel.guest
    pid = here.start("one", ip="10.9.0.1")  # TCP and UDP there over IPv4, to ::1 over IPv6
    guest.deny("network", pid=pid, allow=("10.9.0.0/16",))
    (one,) = here.during("one")
    went_on(one, ("tcp4", "udp4", "make", "bind", "dial", "sendfile", "splice", *LOCAL))
    refused(one, ("tcp6", "udp6"))
    assert guest.gates()[0].allow == "10.9.0.0/16"
    guest.allow("network", pid=pid)
    guest.deny("network", pid=pid, allow_loopback=True)
    (one,) = here.during("one")
    went_on(one, ("tcp6", "udp6", "make", "bind", *LOCAL))
    refused(one, ("tcp4", "udp4", "dial", "sendfile", "splice"))
    guest.allow("network", pid=pid)
    guest.deny("network", pid=pid, allow=("10.9.0.1", "::1"))
    went_on(here.during("one")[0], (*NETWORK, *LOCAL))


def test_unix_sockets_when_asked(one_kernel: Arena) -> None:
    here, guest = one_kernel, one_kernel.guest
    here.start("one")
    pid = here.pid("one")
    guest.deny("network", pid=pid, unix=True)
    (one,) = here.during("one")
    refused(one, (*NETWORK, "unix"))
    went_on(one, ("pipe", "files"))
    assert guest.gates()[0].unix
