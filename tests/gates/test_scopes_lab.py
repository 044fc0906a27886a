"""Whom a gate is for: a process, its children, those of a group, of a user, in namespaces; and nobody else."""

from __future__ import annotations

import time

from tests.gates.arena import EPERM, LOCAL, NETWORK, Arena, refused, went_on
from vmi_inside.control.gates.standing import Site


def test_its_children_too_and_those_born_later(here: Arena) -> None:
    guest, pid = here.guest, here.start("one")
    here.start("two")
    here.lab.ask(f"kill -USR1 {pid}")
    before = here.guest.processes(columns=("pid", "name"))
    assert pid in before.pid
    guest.deny("network", pid=pid, children=True, errno="EPERM")
    here.lab.ask(f"kill -USR2 {pid}")
    time.sleep(1.0)
    one, child, orphan, two = here.during("one", "one.child", "one.orphan", "two")
    refused(one, NETWORK, EPERM)
    refused(child, ("tcp4", "udp6", "make"), EPERM)
    refused(orphan, ("tcp4", "udp6", "make"), EPERM)
    for each in (one, child, orphan):
        went_on(each, LOCAL)
    went_on(two, (*NETWORK, *LOCAL))
    (row,) = guest.gates()
    assert (row.scope, row.pid, row.alive, row.errno) == ("children", pid, True, "EPERM")
    mark = Site(guest.kernel).read()[0].mark
    assert mark
    guest.allow("network", pid=pid)
    one, child, orphan = here.during("one", "one.child", "one.orphan")
    for each in (one, child, orphan):
        went_on(each, (*NETWORK, *LOCAL))
    threads = guest.threads(columns=("address",))
    raw, ok = guest.kernel.space.gather(threads.address + mark, 4)
    assert ok.all()
    assert not raw.any()  # nothing is left in any task


def test_a_control_group_and_those_within(here: Arena) -> None:
    guest, pid = here.guest, here.start("one")
    here.start("two")
    here.lab.ask(f"mkdir -p /sys/fs/cgroup/outer/inner; echo {pid} > /sys/fs/cgroup/outer/inner/cgroup.procs")
    guest.deny("network", cgroup="/outer")
    one, two = here.during("one", "two")
    refused(one, NETWORK)
    went_on(one, LOCAL)
    went_on(two, (*NETWORK, *LOCAL))
    (row,) = guest.gates()
    assert (row.scope, row.cgroup, row.pid, row.alive) == ("cgroup", "/outer", -1, True)
    here.lab.ask(f"echo {pid} > /sys/fs/cgroup/cgroup.procs")
    went_on(here.during("one")[0], NETWORK)
    here.lab.ask("rmdir /sys/fs/cgroup/outer/inner /sys/fs/cgroup/outer")
    time.sleep(0.5)
    assert not guest.gates().alive.any()
    guest.allow()
    assert not len(guest.gates())


def test_a_user(one_kernel: Arena) -> None:
    here, guest = one_kernel, one_kernel.guest
    here.start("one", uid=2001)
    here.start("two", uid=2002)
    guest.deny("network", uid=2001)
    one, two = here.during("one", "two")
    refused(one, NETWORK)
    went_on(two, NETWORK)
    guest.allow("network", uid=2001)
    went_on(here.during("one")[0], NETWORK)


def test_a_process_in_namespaces_of_its_own(here: Arena) -> None:
    guest = here.guest
    box = "unshare -n -p -f sh -c 'ip link set lo up; (workload echo 7100 &); sleep 0.5; exec \"$@\"' box"
    pid = here.start("boxed", through=box)
    here.start("two")
    assert here.guest.processes(columns=("pid", "net_namespace")).net_namespace.tolist()
    guest.deny("network", pid=pid)
    boxed, two = here.during("boxed", "two")
    refused(boxed, NETWORK)
    went_on(boxed, LOCAL)
    went_on(two, (*NETWORK, *LOCAL))
    guest.allow("network", pid=pid)
    went_on(here.during("boxed")[0], (*NETWORK, *LOCAL))


def test_a_later_process_of_the_same_pid_is_free(here: Arena) -> None:
    guest, pid = here.guest, here.start("one")
    guest.deny("network", pid=pid)
    refused(here.during("one")[0], NETWORK)
    here.lab.ask(f"kill -9 {pid}; sleep 0.5")
    assert guest.gates().alive.tolist() == [False]
    for _ in range(20):
        again = here.start("one", through=f"sh -c 'echo {pid - 1} >/proc/sys/kernel/ns_last_pid; \"$@\" & wait' again")
        if again == pid:
            break
        here.lab.ask(f"kill -9 {again}; sleep 0.2")
    assert again == pid
    went_on(here.during("one")[0], NETWORK)
    assert guest.gates().alive.tolist() == [False]
    guest.deny("network", pid=pid)  # takes the place of the one that has no subject any more
    refused(here.during("one")[0], NETWORK)
    assert len(guest.gates()) == 1
