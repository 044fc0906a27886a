"""Controllers of gates: their journals, dry runs, what they are told wrongly, what the checks say."""

from __future__ import annotations

import time

import pytest

from tests.gates.arena import LOCAL, NETWORK, Arena, refused, went_on
from vmi_inside.control.gates.standing import Site
from vmi_inside.errors import Conflict, ControlError, Unsafe, Unsupported


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


def test_undoing_after_a_child_has_ended(one_kernel: Arena) -> None:
    """A mark in a process that is no more needs no undoing; one that was born since loses the one it inherited."""
    here, guest = one_kernel, one_kernel.guest
    pid = here.start("one")
    here.lab.ask(f"kill -USR1 {pid}")
    here.pid("one.child")
    done = guest.deny("network", pid=pid, children=True)
    assert done.entry is not None
    state, _ = Site(guest.kernel).read()
    assert state is not None
    assert any(one.space.startswith("thread ") for one in guest.journal()[-1].writes)
    refused(here.during("one")[0], NETWORK)
    here.lab.ask(f"kill -USR2 {pid}; killall -9 one.child")
    here.pid("one.orphan")
    here.lab.ask("sleep 0.5")
    refused(here.during("one.orphan")[0], ("make",))
    guest.undo(done.entry.id)
    assert not len(guest.gates())
    one, orphan = here.during("one", "one.orphan")
    went_on(one, NETWORK)
    went_on(orphan, ("make", *LOCAL))
    threads = guest.threads(columns=("address",))
    raw, ok = guest.kernel.space.gather(threads.address + state.mark, 4)
    assert ok.all()
    assert not raw.any()  # nothing is left in any task
