"""Control of real guests: pauses, writes, the journal, and what becomes of a guest whose controller is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vmi_inside
from tests.lab.guest import LabGuest
from vmi_inside.control import machine
from vmi_inside.control.borrow import borrow
from vmi_inside.control.gates.holes import spare_words
from vmi_inside.control.groups import in_cgroup, in_group
from vmi_inside.control.places import KERNEL, pieces
from vmi_inside.errors import Busy, Conflict, ControlError, MemoryFault, NotUndoable, Unsafe, Unsupported, VmiError

ROOT = Path(__file__).parents[1]
#: Of the steps of a borrowed vCPU every so many-th is tried; all of them with VMI_CONTROL_ALL in the environment.
STRIDE = 1 if os.environ.get("VMI_CONTROL_ALL") else 11
ROUNDS = 100 if os.environ.get("VMI_CONTROL_ALL") else 15


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
        seen.undo_all()  # what a failed test leaves would fail others


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
    with lab_guest.attach(pausing=True) as guest, guest.paused(), pytest.raises(Unsupported, match="writable=True"):
        guest.write_memory(nodename(guest), b"x")
    with lab_guest.attach() as guest:
        with pytest.raises(Unsupported, match="read-only"):
            guest.paused()
        assert not hasattr(guest.memory, "write")


def test_two_controllers(lab: LabGuest, guest: vmi_inside.Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmi_inside.control.store.PATIENCE", 0.2)
    monkeypatch.setattr("vmi_inside.control.store.Store.lock.__wrapped__.__defaults__", (0.2,))
    mine = pytest.raises(Busy, match=f"pid {os.getpid()}")
    with lab.attach(writable=True) as other, guest.paused(), mine, other.paused():
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
    burn = "taskset $((1 << cpu)) sh -c 'while :; do :; done' </dev/null >/dev/null 2>&1 &"
    pids = lab.ask(f"for cpu in 0 1; do {burn} echo $!; done").split()
    try:
        with lab.attach(writable=True) as guest:

            def spent() -> list[int]:
                by_pid = {row.pid: row.user_time + row.system_time for row in guest.processes()}
                return [by_pid[int(pid)] for pid in pids]

            time.sleep(1)
            guest.vcpus[1].pause()
            assert guest.vcpus[1].paused
            where = guest.vcpus[1].registers["rip"]
            first = second = spent()
            deadline = time.monotonic() + 30
            while second[0] - first[0] <= 300 and time.monotonic() < deadline:  # a busy host gives it little
                time.sleep(0.5)
                second = spent()
            assert guest.vcpus[1].registers["rip"] == where
            assert second[0] - first[0] > 300
            assert second[1] == first[1]
            guest.vcpus[1].resume()
            while (last := spent())[1] <= second[1] and time.monotonic() < deadline + 30:
                time.sleep(0.5)
            assert last[1] > second[1]
        assert ticks(lab)
    finally:
        lab.ask(f"kill -9 {' '.join(pids)}")


def test_killed_while_one_vcpu_stands(lab_boot: Callable[..., LabGuest]) -> None:
    lab = lab_boot(workload="none")
    code = (
        "import sys, time, vmi_inside\n"
        "guest = vmi_inside.attach(sys.argv[1], connect=sys.argv[2], pausing=True)\n"
        "guest.vcpus[1].pause()\n"
        "print('stands', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, lab.target, lab.uri or ""], stdout=subprocess.PIPE, cwd=ROOT
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"stands\n"
        child.kill()
        child.wait()
    assert lab.ask("taskset 2 echo yes; taskset 1 echo yes", timeout=20).split() == ["yes", "yes"]
    with lab.attach(pausing=True) as guest:
        assert guest.vcpus[1].registers


def test_breakpoints_and_watched_memory(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    at = guest.kernel.symbol("__x64_sys_getppid")
    jiffies = guest.kernel.symbol("jiffies_64")
    for kind in (machine.SOFTWARE, machine.HARDWARE):
        caller = subprocess.Popen(
            [sys.executable, "-c", "import sys; from tests.test_control_lab import agent; agent(*sys.argv[1:])",
             lab.uri or "", lab.name, "sleep 1; for i in 1 2 3 4; do sh -c :; done"], cwd=ROOT,
        )  # fmt: skip
        with guest.vcpus.debugger() as debugger:
            debugger.set(kind, at)
            debugger.cont()
            stop = debugger.wait(20)
            assert stop is not None
            assert debugger.registers(stop.vcpu)["rip"] == at
            debugger.clear(kind, at)
        assert caller.wait(20) == 0
    with guest.vcpus.debugger() as debugger:
        debugger.set(machine.WRITE, jiffies, 8)
        debugger.cont()
        stop = debugger.wait(10)
        assert stop is not None
        assert stop.watch == jiffies
    assert ticks(lab)
    assert healthy(lab)


def agent(uri: str, name: str, command: str) -> None:
    """Ask a guest something from another process."""
    from tests.lab.libvirt import Daemon

    Daemon(Path(uri.partition("socket=")[2]).parents[1], 0).guest(name).ask(command)


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
        [sys.executable, "-m", "tests.control_victim", lab.target, lab.uri or "", str(point), str(pid)]
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


# -- the guest's own code ---------------------------------------------------------------------------------------------


def test_signals_end_as_they_should(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    for number, told in ((signal.SIGTERM, "143"), (signal.SIGKILL, "137"), (signal.SIGUSR1, "138")):
        pid = sleeper(lab)
        guest.signal(pid, number)
        assert status(lab) == told
    assert [entry.kind for entry in guest.journal()] == ["signal"] * 3
    with pytest.raises(NotUndoable, match="wrote nothing"):
        guest.undo(1)
    assert healthy(lab)


def test_stopped_and_gone_on(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    pid = sleeper(lab)

    def state() -> str:
        return lab.ask(f"sleep .1; grep State /proc/{pid}/status").split()[1]

    guest.signal(pid, signal.SIGSTOP)
    assert state() == "T"
    guest.nice(pid, 7)
    assert lab.ask(f"cut -d' ' -f19 /proc/{pid}/stat").strip() == "7"
    guest.signal(pid, signal.SIGCONT)
    assert state() == "S"
    guest.signal(pid, signal.SIGKILL)
    assert status(lab) == "137"
    with pytest.raises(ControlError, match="no process"):
        guest.signal(pid)


def test_what_a_parent_sees(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    def told() -> list[str]:
        return lab.ask("sleep .2; cat /tmp/told").splitlines()[1:]

    lab.ask("rm -f /tmp/told; workload wait /tmp/told sleep 1000 </dev/null >/dev/null 2>&1 &")
    pid = int(lab.ask("while [ ! -s /tmp/told ]; do :; done; cat /tmp/told").split()[1])
    for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM):
        guest.signal(pid, number)
        assert told()
    assert told() == ["stopped 19", "continued", "stopped 19", "continued", "killed 15"]


def test_one_that_sleeps_and_is_not_to_be_disturbed(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    """In state D: a parent of vfork, which a signal ends if it is fatal. Others wait for it to wake."""
    lab.ask("workload start dstate")
    pid, child = (
        next(row.pid for row in guest.processes() if (row.name, row.state) == (name, state))
        for name, state in (("dstate", "D"), ("dstate-child", "S"))
    )

    def pending() -> int:
        return int(lab.ask(f"sleep .1; sed -n 's/ShdPnd:\\t//p' /proc/{pid}/status"), 16)

    assert pending() == 0
    guest.signal(pid, signal.SIGTSTP)
    assert pending() == 1 << signal.SIGTSTP - 1
    guest.signal(pid, signal.SIGKILL)
    assert lab.ask(f"sleep .2; grep State /proc/{pid}/status").split()[1] == "Z"  # its parent waits for nobody
    parent = next(row.parent for row in guest.processes() if row.pid == pid)
    guest.signal([child, parent], signal.SIGKILL)
    assert lab.ask(f"sleep .2; test -e /proc/{pid} || echo gone").strip() == "gone"
    assert healthy(lab)


def test_whom_not_to_signal(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    for pid, words in ((1, "ancestor"), (2, "thread of the kernel")):
        with pytest.raises(Unsafe, match=words):
            guest.signal(pid, signal.SIGKILL)
        with pytest.raises(Unsafe, match=words):
            guest.nice(pid, 3)
    assert guest.journal() == []


def test_a_busy_guest(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    burners = lab.ask(
        "for i in 1 2 3; do sh -c 'while :; do :; done' </dev/null >/dev/null 2>&1 & echo $!;"
        "dd if=/dev/zero of=/dev/null bs=64k </dev/null >/dev/null 2>&1 & echo $!; done"
    ).split()
    try:
        for _ in range(5):
            pid = sleeper(lab)
            guest.signal(pid)
            assert status(lab) == "143"
            guest.call("get_random_u32")
    finally:
        guest.signal([int(pid) for pid in burners], signal.SIGKILL)
    assert lab.ask(f"sleep .5; ls -d {' '.join(f'/proc/{pid}' for pid in burners)} 2>/dev/null", check=False) == ""
    assert healthy(lab)


def test_a_call_and_what_it_returns(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    pid = sleeper(lab)
    task = int(next(row.address for row in guest.processes() if row.pid == pid))
    found = guest.call("pid_vnr", guest.call("get_task_pid", task, 0))
    assert found in (0, pid)  # 0 where the interrupted task is in another pid namespace
    assert guest.call("task_prio", task) == 20
    with pytest.raises(VmiError, match="no symbol"):
        guest.call("no_such_function")
    guest.signal(pid, signal.SIGKILL)
    assert healthy(lab)


def test_interrupted_in_a_call(lab_boot: Callable[..., LabGuest]) -> None:
    lab = lab_boot(workload="none")
    code = (
        "import os, signal, sys, threading, vmi_inside\n"
        "threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "with vmi_inside.attach(sys.argv[1], connect=sys.argv[2], writable=True) as guest:\n"
        "    while True:\n"
        "        guest.call('__const_udelay', 100_000 * 4295)\n"  # a tenth of a second
    )
    done = subprocess.run(
        [sys.executable, "-c", code, lab.target, lab.uri or ""], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"
    with lab.attach(writable=True) as guest:
        calls = [entry for entry in guest.journal() if entry.kind == "call"]
        assert {entry.state for entry in calls} <= {"done", "put back"}
        assert guest.call("get_random_u32") >= 0
    assert ticks(lab)
    assert healthy(lab)


def test_a_function_that_does_not_return(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    spin = guest.kernel.symbol("__x64_sys_getuid")  # becomes an endless loop for a moment
    with guest.transaction("a loop", code=True) as change, borrow(change) as vcpu:
        before = change.read(spin, 2)
        change.code(spin, b"\xeb\xfe")
        with pytest.raises(Unsafe, match="has not returned"):
            vcpu.call(spin, timeout=0.5)
        change.code(spin, before)
    assert uid(lab) == "0"
    assert healthy(lab)


def test_a_call_that_waits_for_a_lock(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    word, before = next(iter(spare_words(guest.kernel)))
    [place] = pieces(guest.kernel, KERNEL, word, 8)
    guest.memory.write(place.pa, (1).to_bytes(8, "little"))  # type: ignore[attr-defined]  # held, by nobody
    try:
        for _ in range(2):
            with pytest.raises(Unsafe, match=r"has not returned in 0\.3 s, and the vCPU was put back"):
                guest.call("_raw_spin_lock", word, timeout=0.3)
    finally:
        guest.memory.write(place.pa, before.to_bytes(8, "little"))  # type: ignore[attr-defined]
    assert [entry.state for entry in guest.journal()] == ["put back", "put back"]
    assert guest.call("get_random_u32") >= 0
    for _ in range(20):  # tasks change on every CPU
        assert ticks(lab)
    assert healthy(lab)


def test_what_is_a_processs_ends_with_it(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    pid = sleeper(lab)
    told = f"grep -E '^(Uid|Gid|Cap)' /proc/{pid}/status; cat /proc/{pid}/limits"
    before = lab.ask(told)
    entries = [
        guest.set_ids(pid, 1000, 1001), guest.drop_capabilities(pid), guest.set_limit(pid, "nofile", 64, 128),
        guest.write_memory(guest.place("task_struct.comm", pid), b"renamed\0"),
    ]  # fmt: skip
    assert re.search(r"Uid:\s+1000\s+1000\s+1000\s+1000\s", lab.ask(told))
    assert len(guest.undo_all()) == 4
    assert lab.ask(told) == before
    entries = [guest.set_ids(pid, 1000), guest.set_limit(pid, "nofile", 64, 128)]
    guest.signal(pid, signal.SIGKILL)
    assert status(lab) == "137"
    for entry in entries:
        with pytest.raises(NotUndoable, match="has ended"):
            guest.undo(entry.id)
    assert guest.standing() == []
    with pytest.raises(Unsafe, match="ancestor"):
        guest.set_ids(1, 1000)
    assert healthy(lab)


def test_settings(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    told = lab.ask(
        "cd /proc/sys; for f in kernel/* vm/* net/core/*; do [ -f $f ] && v=$(cat $f 2>/dev/null) &&"
        " echo $f=$v; done; true"
    )
    same = 0
    for line in told.splitlines():
        name, _, value = line.partition("=")
        try:
            found = guest.sysctl(name)
        except (Unsupported, ControlError):
            continue
        same += found.split() == value.split()
        assert found.split() == value.split() or value != lab.ask(f"cat /proc/sys/{name}").strip(), name
    assert same > 100
    for name, value in (("kernel.printk", "1 2 3 4"), ("vm/swappiness", "7"), ("net.ipv4.ip_forward", "1")):
        try:
            entry = guest.set_sysctl(name, value)
        except Unsupported:
            continue
        path = f"/proc/sys/{name.replace('.', '/')}"
        assert lab.ask(f"cat {path}").split() == value.split()
        guest.undo(entry.id)
        assert lab.ask(f"cat {path}").split() != value.split()


def test_a_paused_guest_is_not_made_to_run(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    pid = sleeper(lab)
    with guest.paused(), pytest.raises(Unsafe, match="paused"):
        guest.signal(pid)
    guest.pause()
    try:
        with pytest.raises(Unsafe, match="paused"):
            guest.signal(pid)
        assert guest.machine is not None
        assert guest.machine.paused
    finally:
        guest.resume()
    guest.vcpus[0].pause()
    with pytest.raises(Unsafe, match="paused"):
        guest.signal(pid)
    code = guest.kernel.symbol("__x64_sys_getppid")
    guest.undo(guest.write_memory(code, bytes.fromhex("b892100000c3"), code=True).id)
    guest.vcpus[0].resume()
    guest.signal(pid)
    assert status(lab) == "143"


def test_a_group_and_a_cgroup(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    script = "for i in 1 2 3; do sleep 1000 & done; wait"
    leader = int(lab.ask(f"setsid sh -c '{script}' </dev/null >/dev/null 2>&1 & sleep .5; echo $!"))
    group = sorted(in_group(guest.kernel, leader))
    told = lab.ask("for s in /proc/[0-9]*/stat; do cut -d' ' -f1,5 $s 2>/dev/null; done")
    assert group == sorted(int(line.split()[0]) for line in told.splitlines() if line.split()[1] == str(leader))
    assert len(group) == 4
    lab.ask("mkdir -p /sys/fs/cgroup/box/in")
    lab.ask("".join(f"echo {pid} >/sys/fs/cgroup/box/in/cgroup.procs; " for pid in group))
    assert sorted(in_cgroup(guest.processes(), "/box")) == group
    guest.signal(group, signal.SIGKILL)
    assert lab.ask("sleep .3; cat /sys/fs/cgroup/box/in/cgroup.procs").split() == []
    lab.ask("rmdir /sys/fs/cgroup/box/in /sys/fs/cgroup/box")


def test_a_hundred_rounds(lab: LabGuest, guest: vmi_inside.Guest) -> None:
    before = guest.read_memory(guest.kernel.symbol("_text"), 1 << 20)
    at = guest.kernel.symbol("__x64_sys_getppid")
    for _ in range(ROUNDS):
        with guest.paused():
            pass
        entry = guest.write_memory(at, bytes.fromhex("b892100000c3"), code=True)
        pid = sleeper(lab)
        assert lab.ask("sh -c 'echo $PPID'").strip() == "4242"
        guest.signal(pid, signal.SIGKILL)
        assert status(lab) == "137"
        guest.undo(entry.id)
    assert guest.read_memory(guest.kernel.symbol("_text"), 1 << 20) == before
    assert lab.ask("sh -c 'echo $PPID'").strip() != "4242"
    assert healthy(lab)


def sleeper(lab: LabGuest) -> int:
    """A process that sleeps; its parent waits for it, and `status` tells what it saw."""
    lab.ask("rm -f /tmp/pid /tmp/status")
    lab.ask("(sleep 1000 & echo $! >/tmp/pid~; mv /tmp/pid~ /tmp/pid; wait $!; echo $? >/tmp/status~;"
            " mv /tmp/status~ /tmp/status) </dev/null >/dev/null 2>&1 &")  # fmt: skip
    return int(lab.ask("while [ ! -e /tmp/pid ]; do :; done; cat /tmp/pid"))


def status(lab: LabGuest) -> str:
    """The status that the sleeper's parent got from wait(2), as a shell tells it."""
    return lab.ask("while [ ! -e /tmp/status ]; do sleep .02; done; cat /tmp/status").strip()


def healthy(lab: LabGuest) -> bool:
    """Whether the guest's kernel has nothing to complain about."""
    return not re.search(r"BUG|Oops|WARNING|Call Trace|stall|lockup|hung", lab.ask("dmesg"))
