"""Gates in real guests, judged from inside: what a process cannot do any more, what it still can, who else notices.

`workload exercise` does a little of everything and counts how each of it goes; see tests/lab/workload/exercise.c.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import vmi_inside
from tests.lab.guest import LabGuest
from vmi_inside.control.gates.entries import find_entry
from vmi_inside.control.gates.holes import spare_words
from vmi_inside.control.gates.standing import Site
from vmi_inside.control.machine import HARDWARE
from vmi_inside.errors import Conflict, ControlError, Unsafe, Unsupported
from vmi_inside.linux.gated import AREA_SIZE

NETWORK = ("tcp4", "tcp6", "udp4", "udp6", "make", "sendfile", "splice")
LOCAL = ("unix", "pipe", "files", "open", "exec", "kill", "self", "trace", "thread")
EACCES, EPERM = 13, 1
Counts = dict[str, tuple[int, int, int, int]]  # went well, refused, errno of the last refusal, came back wrong
SHAPES = {
    "6.1": {"workload": "none"},
    "6.12": {"kernel": "6.12-cloud", "cpu": "la57-off", "backing": "memfd", "vcpus": 1, "workload": "none"},
    "new": {"kernel": "new-cloud"},
    "5.10": {"kernel": "5.10-cloud"},
}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journals' folder, for this test alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


class Arena:
    """A lab guest in which processes exercise, attached so that it can be changed."""

    def __init__(self, lab: LabGuest, guest: vmi_inside.Guest) -> None:
        self.lab = lab
        self.guest = guest
        lab.ask("pidof -s echo >/dev/null || (workload echo 7100 >/dev/null 2>&1 &); sleep 0.3", check=False)

    def start(self, name: str, *, ip: str = "127.0.0.1", uid: int = 0, through: str = "") -> int:
        """Let a process of that name exercise; its pid, once its connections stand."""
        self.lab.ask(
            f"killall {name} 2>/dev/null; rm -f /run/exercise/{name}; "
            f"({through} workload exercise {name} {ip} 7100 {uid} >/dev/null 2>&1 &)"
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            counts = self.counts(name)
            if counts and all(counts[kind][0] > 1 for kind in ("tcp4", "udp4", "open", "splice")):
                return self.pid(name)
            time.sleep(0.2)
        raise AssertionError(f"{name} does not come to exercise: {self.counts(name)}")

    def pid(self, name: str) -> int:
        found = self.guest.processes(columns=("pid", "name"))
        return int(next(row.pid for row in found if row.name == name))

    def counts(self, name: str) -> Counts:
        lines = self.lab.ask(f"cat /run/exercise/{name} 2>/dev/null", check=False).splitlines()
        return {line.split()[0]: tuple(map(int, line.split()[1:])) for line in lines if line}  # type: ignore[misc]

    def during(self, *names: str, seconds: float = 1.0) -> list[Counts]:
        """How it went meanwhile. What was under way when we began to look is not counted."""
        time.sleep(0.3)
        before = [self.counts(name) for name in names]
        time.sleep(seconds)
        return [
            {
                kind: (now[0] - was[kind][0], now[1] - was[kind][1], now[2], now[3])
                for kind, now in self.counts(name).items()
            }
            for name, was in zip(names, before, strict=True)
        ]

    def descriptors(self, pid: int) -> dict[str, str]:
        """The descriptors that stay open, and what they are: sockets by inode."""
        told = self.lab.ask(f"for i in 1 2 3 4; do ls -l /proc/{pid}/fd; sleep 0.1; done", check=False)
        return {fd: what for (fd, what), seen in Counter(re.findall(r"(\d+) -> (\S+)", told)).items() if seen == 4}

    def text(self) -> np.ndarray:
        """The kernel's text, with zeros where the kernel itself patches it while it runs (struct jump_entry)."""
        kernel = self.guest.kernel
        start, end = kernel.symbol("_stext"), kernel.symbol("_etext")
        text = np.frombuffer(kernel.space.read(start, end - start), dtype=np.uint8).copy()
        first, last = kernel.symbol("__start___jump_table"), kernel.symbol("__stop___jump_table")
        entries = np.frombuffer(kernel.space.read(first, last - first), dtype="<i4").reshape(-1, 4)
        place = (first - start) + 16 * np.arange(len(entries)) + entries[:, 0]  # `code` is relative to itself
        for at in place[(place >= 0) & (place < len(text))].tolist():
            text[at : at + 5] = 0
        return text

    def complaints(self) -> list[str]:
        said = self.lab.ask("dmesg")
        return re.findall(r".*(?:WARNING|BUG|Oops|Call Trace|rcu.*stall|ftrace).*", said)

    def room_is_padding(self) -> bool:
        site = Site(self.guest.kernel)
        return self.guest.kernel.space.read(site.base, AREA_SIZE) == b"\xcc" * AREA_SIZE


@contextmanager
def arena(lab: LabGuest) -> Iterator[Arena]:
    with lab.attach(writable=True) as guest:
        made = Arena(lab, guest)
        before, complaints = made.text(), made.complaints()
        try:
            yield made
        finally:
            if len(guest.gates()):
                guest.allow()
            lab.ask("killall one two boxed one.child one.orphan 2>/dev/null; rm -rf /run/exercise", check=False)
        changed = np.flatnonzero(made.text() != before)
        assert not len(changed), [guest.kernel.profile.symbol_at(guest.kernel.symbol("_stext") + at) for at in changed]
        assert made.room_is_padding()
        assert made.complaints() == complaints


@pytest.fixture(params=["6.1", "6.12"])
def here(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> Iterator[Arena]:
    with arena(lab_boot(**SHAPES[request.param])) as made:
        yield made


@pytest.fixture
def one_kernel(lab_boot: Callable[..., LabGuest]) -> Iterator[Arena]:
    with arena(lab_boot(**SHAPES["6.1"])) as made:
        yield made


@pytest.fixture
def one_vcpu(lab_boot: Callable[..., LabGuest]) -> Iterator[Arena]:
    with arena(lab_boot(**SHAPES["6.12"])) as made:
        yield made


@pytest.fixture(params=list(SHAPES))
def everywhere(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> Iterator[Arena]:
    with arena(lab_boot(**SHAPES[request.param])) as made:
        yield made


def refused(counts: Counts, kinds: tuple[str, ...], errno: int = EACCES) -> None:
    for kind in kinds:
        went, said_no, last, wrong = counts[kind]
        assert (went, last, wrong) == (0, errno, 0), (kind, counts[kind])
        assert said_no > 0, kind


def went_on(counts: Counts, kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        went, said_no, _, wrong = counts[kind]
        assert (said_no, wrong) == (0, 0), (kind, counts[kind])
        assert went > 0, kind


# -- the point of it all ----------------------------------------------------------------------------------------------


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


# -- other operations -------------------------------------------------------------------------------------------------


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


# -- dangerous moments ------------------------------------------------------------------------------------------------


def stop_at(guest: vmi_inside.Guest, address: int) -> None:
    """Let the guest, which is paused, run until a vCPU is about to go on at an address."""
    with guest.vcpus.debugger() as debugger:
        debugger.set(HARDWARE, address)
        debugger.cont()
        stop = debugger.wait(60)
        if stop is None:
            debugger.interrupt()
        debugger.clear(HARDWARE, address)
        assert stop is not None
        assert debugger.registers(stop.vcpu)["rip"] == address


def test_a_vcpu_at_the_entry_that_is_to_be_gated(here: Arena) -> None:
    guest, pid = here.guest, here.start("one")
    entry = find_entry(guest.kernel, "security_socket_sendmsg")
    assert entry is not None
    with guest.paused():
        stop_at(guest, entry.at)
        guest.deny("network", pid=pid)
    refused(here.during("one")[0], NETWORK)
    guest.allow("network", pid=pid)
    went_on(here.during("one")[0], (*NETWORK, *LOCAL))


def test_nothing_changes_under_a_vcpu_in_the_code_of_a_gate(here: Arena) -> None:
    guest, pid = here.guest, here.start("one")
    guest.deny("network", pid=pid)
    low, _ = Site(guest.kernel).code_range  # where rules begin to be read
    with guest.paused():
        stop_at(guest, low)
        for change in (
            lambda: guest.allow("network", pid=pid),
            lambda: guest.deny("network", uid=4711),
            lambda: guest.undo(guest.journal()[0].id),
        ):
            with pytest.raises(Unsafe, match="vCPU"):
                change()
    refused(here.during("one")[0], NETWORK)
    guest.allow("network", pid=pid)
    went_on(here.during("one")[0], (*NETWORK, *LOCAL))


# -- controllers, pids, others ----------------------------------------------------------------------------------------


def test_gates_outlive_their_controller(here: Arena) -> None:
    pid = here.start("one")
    with here.lab.attach(writable=True) as first:
        first.deny("network", pid=pid)
    with here.lab.attach() as reader:  # no right to write is needed to see them
        assert reader.gates().pid.tolist() == [pid]
    refused(here.during("one")[0], NETWORK)
    here.guest.allow("network", pid=pid)
    went_on(here.during("one")[0], NETWORK)
    done = [entry.reason for entry in here.guest.journal() if entry.kind == "gate" and entry.state == "done"]
    assert done == [f"deny network to pid {pid}", f"allow network to pid {pid}"]


def test_the_checks_see_gates_and_say_what_they_look_like(here: Arena) -> None:
    pid = here.start("seen")
    assert len(here.guest.check(["functions"], severity="medium")) == 0
    here.guest.deny("network", pid=pid)
    try:
        found = here.guest.check(["functions"], severity="medium")
        assert {row.severity for row in found} == {"critical"}
        subjects = {row.subject.partition("+")[0] for row in found}  # the jump may stand behind an endbr64
        assert subjects >= {"security_socket_sendmsg", "security_socket_connect"}
        assert all("`vmi-inside journal`" in row.detail for row in found)
    finally:
        here.guest.allow("network", pid=pid)
    assert len(here.guest.check(["functions"], severity="medium")) == 0


def test_a_gate_can_be_undone_from_the_journal(one_kernel: Arena) -> None:
    here, guest = one_kernel, one_kernel.guest
    pid = here.start("one")
    done = guest.deny("network", pid=pid)
    assert done.entry is not None
    refused(here.during("one")[0], NETWORK)
    guest.undo(done.entry.id)
    assert not len(guest.gates())
    went_on(here.during("one")[0], NETWORK)
    for _ in range(20):  # what an undone gate had counted does not use up the words to count in
        undone = guest.deny("network", pid=pid)
        assert undone.entry is not None
        time.sleep(0.05)
        guest.undo(undone.entry.id)
    guest.deny("network", pid=pid)
    here.during("one")
    assert 0 < guest.gates().refused[0] < 100_000


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


def test_what_is_asked_for_wrongly_changes_nothing(one_kernel: Arena) -> None:
    here, guest = one_kernel, one_kernel.guest
    pid = here.start("one")
    kernel_thread = next(row.pid for row in guest.processes() if row.kernel_thread)
    entries = len(guest.journal())
    for error, words, asked in (
        (ControlError, "no process 99999", {"pid": 99999}),
        (Unsafe, "process 1", {"pid": 1}),
        (Unsafe, "kernel thread", {"pid": kernel_thread}),
        (Unsafe, "uid 0", {"uid": 0}),
        (Unsafe, "cgroup /", {"cgroup": "/"}),
        (ControlError, "no cgroup /none in", {"cgroup": "/none/such"}),
        (ControlError, "for whom", {}),
        (ControlError, "for whom", {"pid": pid, "uid": 7}),
        (ControlError, "no uid", {"uid": 1 << 40}),
        (ControlError, "children", {"uid": 7, "children": True}),
        (ControlError, "no network", {"pid": pid, "allow": ("10.0.0.0/33",)}),
        (ControlError, "EACCES or EPERM", {"pid": pid, "errno": "ENOENT"}),
    ):
        with pytest.raises(error, match=words):
            guest.deny("network", **asked)
    with pytest.raises(ControlError, match="no operation 'everything'"):
        guest.deny("everything", pid=pid)
    with pytest.raises(ControlError, match="nothing to do with exec"):
        guest.deny("exec", pid=pid, allow=("10.0.0.0/8",))
    with pytest.raises(ControlError, match="is not denied"):
        guest.allow("network", pid=pid)
    thread = next(row.tid for row in guest.threads() if row.pid == pid and row.tid != pid)
    with pytest.raises(ControlError, match=f"thread of process {pid}"):
        guest.deny("network", pid=thread)
    guest.deny("network", pid=pid)
    with pytest.raises(Conflict, match="already"):
        guest.deny("network", pid=pid, allow_loopback=True)
    guest.allow("network", pid=pid)
    assert len([entry for entry in guest.journal() if entry.state == "done"]) == entries + 2


def test_a_dry_run_says_what_would_be_written(one_kernel: Arena) -> None:
    here, guest = one_kernel, one_kernel.guest
    pid = here.start("one")
    planned = guest.deny("network", pid=pid, dry_run=True)
    assert planned.entry is None
    went_on(here.during("one")[0], NETWORK)
    assert not len(guest.gates())
    for change in planned.changes:
        assert guest.kernel.space.read(change.address, len(change.old)) == change.old
    done = guest.deny("network", pid=pid)
    assert [(one.address, one.old) for one in done.changes] == [(one.address, one.old) for one in planned.changes]
    assert {one.what for one in done.changes} >= {"security_socket_sendmsg", "code of gates", "records of gates"}
    for change in done.changes:
        assert guest.kernel.space.read(change.address, len(change.new)) == change.new


def test_without_consent_nothing_is_written(one_kernel: Arena) -> None:
    here = one_kernel
    pid = here.start("one")
    with here.lab.attach() as reader:
        with pytest.raises(Unsupported, match="writable=True"):
            reader.deny("network", pid=pid)
        assert reader.deny("network", pid=pid, dry_run=True).changes


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


def test_a_hundred_rounds_under_load(one_kernel: Arena) -> None:
    here, guest = one_kernel, one_kernel.guest
    pid = here.start("one")
    here.start("two")
    words = sorted(spare_words(guest.kernel))
    pauses = []
    for round_ in range(100):
        children = round_ % 4 == 3
        pauses.append(guest.deny("network", pid=pid, children=children).seconds)
        pauses.append(guest.allow("network", pid=pid).seconds)
    for counts in here.during("one", "two"):
        went_on(counts, (*NETWORK, *LOCAL))
    assert here.counts("one")["tcp4"][1] > 0  # it was refused now and then
    assert sorted(spare_words(guest.kernel)) == words  # no count is left behind
    pauses.sort()
    print(f"pauses: median {pauses[100] * 1e3:.1f} ms, worst {pauses[-1] * 1e3:.1f} ms")
