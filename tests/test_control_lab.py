"""Control of real guests: pauses, writes, the journal, and what becomes of a guest whose controller is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vmi_inside
from tests.lab.guest import LabGuest
from vmi_inside.errors import Busy, Conflict, ControlError, MemoryFault, NotUndoable, Unsafe, Unsupported

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["6.1", "6.12"])
def lab(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> LabGuest:
    """Two vCPUs, five-level paging, RAM that is QEMU's own; one vCPU, four levels, RAM that is shared."""
    if request.param == "6.1":
        return lab_boot(workload="none")
    return lab_boot(kernel="6.12-cloud", cpu="la57-off", backing="memfd", vcpus=1, workload="none")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The journals' folder, for this test alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "vmi-inside" / "guests"


@pytest.fixture
def guest(lab: LabGuest) -> Iterator[vmi_inside.Guest]:
    with lab.attach(writable=True) as seen:
        yield seen


def nodename(guest: vmi_inside.Guest) -> int:
    uts = guest.kernel.struct("uts_namespace")
    return guest.kernel.symbol("init_uts_ns") + uts.member("name.nodename").offset


def ticks(lab: LabGuest) -> bool:
    """Whether the guest runs: it answers."""
    return lab.ask("echo yes", timeout=20).strip() == "yes"


def uid(lab: LabGuest) -> str:
    return lab.ask("id -u").strip()


# -- pausing ----------------------------------------------------------------------------------------------------------


def test_a_pause_stops_the_clock(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    jiffies = guest.kernel.symbol("jiffies_64")
    with guest.paused() as pause:
        first = guest.read_memory(jiffies, 8)
        with guest.paused() as inner:
            assert inner is pause
        time.sleep(0.5)
        assert guest.read_memory(jiffies, 8) == first
        assert guest.machine is not None
        assert guest.machine.paused
    assert pause.seconds >= 0.5
    assert not guest.machine.paused
    assert ticks(lab)
    assert guest.read_memory(jiffies, 8) != first


def test_what_was_paused_stays_so(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    assert guest.pause()
    try:
        assert not guest.pause()
        with guest.paused() as pause:
            assert pause.found
        assert guest.vcpus[0].registers["rip"]
        assert lab.domain.state()[0] == 3  # VIR_DOMAIN_PAUSED
    finally:
        assert guest.resume()
    assert not guest.resume()
    assert ticks(lab)


def test_an_exception_lets_go(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    with pytest.raises(ZeroDivisionError), guest.paused():
        raise ZeroDivisionError
    assert ticks(lab)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_lets_go(lab_boot: Callable[..., LabGuest], number: signal.Signals) -> None:
    lab = lab_boot(workload="none")
    code = (
        "import sys, time, vmi_inside\n"
        "with vmi_inside.attach(sys.argv[1], connect=sys.argv[2], pausing=True) as guest, guest.paused():\n"
        "    print('paused', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, lab.target, lab.uri or ""], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        cwd=ROOT,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == b"paused\n"
        assert lab.domain.state()[0] == 3
        child.send_signal(number)
        child.wait()
    assert ticks(lab)


def test_pausing_alone_is_a_smaller_consent(lab_guest: LabGuest) -> None:
    with lab_guest.attach(pausing=True) as guest:
        with guest.paused():
            pass
        with pytest.raises(Unsupported, match="writable=True"):
            guest.write_memory(nodename(guest), b"x")
    with lab_guest.attach() as guest:
        with pytest.raises(Unsupported, match="read-only"):
            guest.paused()
        assert not hasattr(guest.memory, "write")


def test_two_controllers(lab: LabGuest, guest: vmi_inside.Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmi_inside.control.store.PATIENCE", 0.2)
    monkeypatch.setattr("vmi_inside.control.store.Store.lock.__wrapped__.__defaults__", (0.2,))
    with lab.attach(writable=True) as other, guest.paused():
        with pytest.raises(Busy, match=f"pid {os.getpid()}"), other.paused():
            pass
    assert ticks(lab)


# -- vCPUs ------------------------------------------------------------------------------------------------------------


def test_registers_read_and_written(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    with guest.paused():
        for vcpu in guest.vcpus:
            before = vcpu.registers
            assert before["cr3"] & ~0xFFF
            assert before["efer"] & 0x400  # long mode is active
            vcpu.set_registers({"r15": before["r15"] ^ 0x55})
            assert vcpu.registers == {**before, "r15": before["r15"] ^ 0x55}
            vcpu.set_registers({"r15": before["r15"]})
            assert vcpu.registers == before
        with pytest.raises(ControlError, match="no register"):
            guest.vcpus[0].set_registers({"xyz": 1})
    assert ticks(lab)


def test_one_vcpu_stands_while_the_other_runs(lab_boot: Callable[..., LabGuest]) -> None:
    lab = lab_boot(workload="none")
    count = lab.shape.vcpus
    assert count == 2
    pids = lab.ask(
        "for cpu in 0 1; do taskset $((1 << cpu)) sh -c 'while :; do :; done' </dev/null >/dev/null 2>&1 & echo $!; done"
    ).split()
    try:
        with lab.attach(writable=True) as guest:

            def spent() -> list[int]:
                by_pid = {row.pid: row.user_time + row.system_time for row in guest.processes()}
                return [by_pid[int(pid)] for pid in pids]

            time.sleep(1)
            guest.vcpus[1].pause()
            assert guest.vcpus[1].paused
            where = guest.vcpus[1].registers["rip"]
            first = spent()
            time.sleep(1.5)
            second = spent()
            assert guest.vcpus[1].registers["rip"] == where
            assert second[0] - first[0] > 300
            assert second[1] == first[1]
            guest.vcpus[1].resume()
            time.sleep(1)
            assert spent()[1] > second[1]
        assert ticks(lab)
    finally:
        lab.ask(f"kill -9 {' '.join(pids)}")


def test_a_debugger_of_the_users_own(lab: LabGuest, guest: vmi_inside.Guest, tmp_path: Path) -> None:
    assert guest.machine is not None
    guest.machine._hmp(f"gdbserver unix:{tmp_path}/gdb,server=on,wait=off")  # type: ignore[attr-defined]
    try:
        with pytest.raises(Busy, match="gdb stub"):
            guest.vcpus[0].registers  # noqa: B018
        assert ticks(lab)
    finally:
        guest.machine._hmp("gdbserver none")  # type: ignore[attr-defined]
    assert guest.vcpus[0].registers


# -- writes and the journal -------------------------------------------------------------------------------------------


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
    with pytest.raises(ZeroDivisionError), guest.transaction("half of it") as change:
        change.write(nodename(guest), b"half\0")
        assert guest.info()[0].hostname == "half"
        raise ZeroDivisionError
    assert lab.ask("hostname").strip() == "lab"
    assert [one.state for one in guest.journal()] == ["put back", "put back"]
    # The last page before a hole: the last mapped page of the kernel's per-CPU or data is found by looking.
    with pytest.raises(MemoryFault):
        guest.write_memory(hole(guest) - 4, b"12345678")
    with pytest.raises(MemoryFault):
        guest.write_memory(1 << 50, b"1", physical=True)


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
    pid = int(lab.ask("sh -c 'secret=XXsecretXX; while :; do sleep 1; [ -e /tmp/tell ] && echo $secret >/tmp/told; done'"
                      " </dev/null >/dev/null 2>&1 & echo $!"))  # fmt: skip
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
    with pytest.raises((NotUndoable, ControlError)):
        guest.undo(1)


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


@pytest.mark.parametrize("both", ["", "both"])
def test_killed_at_every_step(lab_boot: Callable[..., LabGuest], both: str) -> None:
    lab = lab_boot(workload="none")
    steps = []
    for point in range(1, 200):
        victim = subprocess.run(
            [sys.executable, "-m", "tests.control_victim", lab.target, lab.uri or "", str(point), both],
            cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if both:
            with lab.attach(writable=True) as guest:
                guest.recover()
        else:
            time.sleep(0.1)
        assert ticks(lab), victim.stdout
        with lab.attach(writable=True) as guest:
            guest.recover()
            [entry] = guest.journal()[-1:] or [None]
            done = entry is not None and entry.state == "done" and entry.kind != "undo"
            assert (lab.ask("hostname").strip(), uid(lab)) == (("victim", "4242") if done else ("lab", "0")), victim.stdout
            assert "open" not in [one.state for one in guest.journal()]
            guest.undo_all()
            assert guest.vcpus[0].registers
        assert (lab.ask("hostname").strip(), uid(lab)) == ("lab", "0"), victim.stdout
        if victim.returncode == 0:
            break
        assert victim.returncode == -signal.SIGKILL
        steps.append(victim.stdout.strip())
    else:
        pytest.fail("the victim never came to its end")
    assert {"after QemuMachine.pause", "before GdbStub.write", "after WritableQemuMemory.scatter"} <= set(steps)
    assert "BUG" not in lab.ask("dmesg")
