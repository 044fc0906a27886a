"""Writes to real guests, and the journal: undone, whole or not at all, and a controller that is killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import vmi_inside
from tests.control import ROOT
from tests.control.inside import healthy, nodename, sleeper, status, ticks, uid
from tests.lab.guest import LabGuest
from vmi_inside.errors import Conflict, ControlError, MemoryFault, NotUndoable, Unsafe

#: Of the steps of a borrowed vCPU every so many-th is tried; all of them with VMI_CONTROL_ALL in the environment.
STRIDE = 1 if os.environ.get("VMI_CONTROL_ALL") else 11


def test_a_write_and_its_undoing(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    at = nodename(guest)
    entry = guest.write_memory(at, b"changed\0", expect=b"lab\0\0\0\0\0", reason="another name")
    assert lab.ask("hostname").strip() == "changed"
    [told] = guest.journal()
    assert (told.id, told.state, told.reason) == (entry.id, "done", "another name")
    assert told.writes[0].old == b"lab\0\0\0\0\0"
    guest.undo(entry.id)
    assert lab.ask("hostname").strip() == "lab"
    assert [one.state for one in guest.journal()] == ["undone", "done"]
    with pytest.raises(NotUndoable, match="undone"):
        guest.undo(entry.id)
    with pytest.raises(NotUndoable, match="no entry"):
        guest.undo(99)


def test_changed_since(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    entry = guest.write_memory(nodename(guest), b"first\0")
    later = guest.write_memory(nodename(guest), b"later\0")
    with pytest.raises(Conflict, match=f"undo {later.id} first"):
        guest.undo(entry.id)
    lab.ask("hostname other")
    with pytest.raises(Conflict):
        guest.undo(later.id)
    assert lab.ask("hostname").strip() == "other"
    lab.ask("hostname later")
    assert len(guest.undo_all()) == 2
    assert lab.ask("hostname").strip() == "lab"


def test_whole_or_not_at_all(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    with pytest.raises(Conflict, match="nothing was written"):
        guest.write_memory(nodename(guest), b"xyz", expect=b"abc")
    with pytest.raises(ZeroDivisionError):
        half(guest)
    assert lab.ask("hostname").strip() == "lab"
    assert [one.state for one in guest.journal()] == ["put back", "put back"]
    # The last page before a hole: the last mapped page of the kernel's per-CPU or data is found by looking.
    with pytest.raises(MemoryFault):
        guest.write_memory(hole(guest) - 4, b"12345678")
    with pytest.raises(MemoryFault):
        guest.write_memory(1 << 50, b"1", physical=True)


def half(guest: vmi_inside.Guest) -> None:
    with guest.transaction("half of it") as change:
        change.write(nodename(guest), b"half\0")
        assert guest.info()[0].hostname == "half"
        raise ZeroDivisionError


def hole(guest: vmi_inside.Guest) -> int:
    """The first unmapped address behind the kernel's image."""
    at = guest.kernel.symbol("_end") & ~0xFFF
    while True:
        try:
            guest.read_memory(at, 1)
        except MemoryFault:
            return at
        at += 0x1000


def test_code_takes_effect(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    assert uid(lab) == "0"  # QEMU has translated it by now
    at = guest.kernel.symbol("__x64_sys_getuid")
    before = guest.read_memory(at, 32)
    entry = guest.write_memory(at, bytes.fromhex("b892100000c3"), code=True)  # mov $4242, %eax; ret
    assert uid(lab) == "4242"
    guest.undo(entry.id)
    assert uid(lab) == "0"
    assert guest.read_memory(at, 32) == before


def test_a_processs_memory(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    script = "secret=XXsecretXX; while :; do sleep 1; [ -e /tmp/tell ] && echo $secret >/tmp/told; done"
    pid = int(lab.ask(f"sh -c '{script}' </dev/null >/dev/null 2>&1 & echo $!"))
    try:
        lab.ask("sleep 1; rm -f /tmp/told")
        heap = next(row for row in guest.process_memory_map(pids=[pid]) if row.path == "[heap]")
        data = b"".join(
            guest.read_memory(at, 4096, pid=pid) if mapped(guest, at, pid) else bytes(4096)
            for at in range(heap.start, heap.end, 4096)
        )
        at = heap.start + data.rindex(b"XXsecretXX")
        guest.write_memory(at, b"YYchangedY", pid=pid, expect=b"XXsecretXX")
        lab.ask("touch /tmp/tell; sleep 3")
        text = next(row for row in guest.process_memory_map(pids=[pid]) if "x" in row.permissions)
        with pytest.raises(Unsafe, match="may not write"):
            guest.write_memory(text.start, b"\x90", pid=pid)
        assert "YYchangedY" in lab.ask("cat /tmp/told")
    finally:
        lab.ask(f"kill -9 {pid}; rm -f /tmp/tell /tmp/told")
    time.sleep(0.2)
    with pytest.raises(NotUndoable, match="has ended"):
        guest.undo(1)
    assert guest.standing() == []


def mapped(guest: vmi_inside.Guest, at: int, pid: int) -> bool:
    try:
        guest.read_memory(at, 1, pid=pid)
    except MemoryFault:
        return False
    return True


def test_the_journal_is_for_its_owner_alone(guest: vmi_inside.Guest, state: Path) -> None:
    guest.write_memory(nodename(guest), b"lab\0")
    [journal] = state.glob("*.journal")
    assert journal.stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o777 == 0o700
    journal.chmod(0o644)
    with pytest.raises(ControlError, match="not trusted"):
        guest.journal()
    journal.chmod(0o600)
    with open(journal, "a") as file:
        file.write('{"id": 2, "event": "begin", "ki')  # a host that went down in the middle of a line
    assert len(guest.journal()) == 1
    guest.write_memory(nodename(guest), b"lab\0")
    assert [entry.id for entry in guest.journal()] == [1, 2]


def killed(lab: LabGuest, point: int, pid: int, both: bool) -> tuple[str, bool]:
    """Let a controller die at its `point`-th step: what that was, and whether it came so far."""
    victim = subprocess.run(
        [sys.executable, "-m", "tests.control.victim", lab.target, lab.uri or "", str(point), str(pid)]
        + ["both"] * both,
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert victim.returncode in (0, -signal.SIGKILL)
    if both:  # nobody is left to let the guest go; the next command does
        with lab.attach(writable=True) as guest:
            guest.recover()
    assert ticks(lab), victim.stdout
    return victim.stdout.strip(), victim.returncode != 0


@pytest.mark.parametrize("both", [False, True])
def test_killed_at_every_step_of_a_change(lab_boot: Callable[..., LabGuest], both: bool) -> None:
    lab = lab_boot(workload="none")
    steps = []
    every = 3 if both and STRIDE > 1 else 1
    for point in range(1, 200, every):
        step, so_far = killed(lab, point, 0, both)
        with lab.attach(writable=True) as guest:
            guest.recover()
            done = [entry.state for entry in guest.journal() if entry.kind != "undo"][-1:] == ["done"]
            expected = ("victim", "4242") if done else ("lab", "0")
            assert (lab.ask("hostname").strip(), uid(lab)) == expected, step
            assert "open" not in [one.state for one in guest.journal()]
            guest.undo_all()
            assert guest.vcpus[0].registers
        assert (lab.ask("hostname").strip(), uid(lab)) == ("lab", "0"), step
        if not so_far:
            break
        steps.append(step)
    else:
        pytest.fail("the victim never came to its end")
    wanted = {"before QemuMachine.resume", "before GdbStub.write", "after WritableQemuMemory.scatter"}
    assert every > 1 or wanted <= set(steps)
    assert healthy(lab)


def test_killed_while_a_vcpu_is_borrowed(lab_boot: Callable[..., LabGuest]) -> None:
    lab = lab_boot(workload="none")
    steps = []
    for point in range(1, 1000, STRIDE):
        pid = sleeper(lab)
        step, so_far = killed(lab, point, pid, both=False)
        with lab.attach(writable=True) as guest:
            guest.recover()
            if [entry.state for entry in guest.journal()][-1:] == ["done"]:
                assert status(lab) == "143", step
            elif lab.ask(f"test -e /proc/{pid} && echo there", check=False):
                guest.signal(pid, signal.SIGKILL)
                assert status(lab) == "137", step
        if not so_far:
            break
        steps.append(step)
    else:
        pytest.fail("the victim never came to its end")
    assert len(steps) >= 100 // STRIDE
    assert healthy(lab)
