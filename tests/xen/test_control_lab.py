"""What is done to a Xen host's guests: pauses, writes, gates, signals, and a controller that dies."""

from __future__ import annotations

import pytest

from tests.lab.xen.host import Refused, XenGuest
from tests.xen.dom0 import long, seen

pytestmark = [pytest.mark.lab, pytest.mark.xen]


def test_a_pause_stops_the_guest_and_lets_it_go(guest: XenGuest) -> None:
    cpu, after, state = guest.host.python(
        f"""
guest = {guest.name}
def spent():
    return guest.number(8, "jiffies_64") if hasattr(guest, "number") else guest.kernel.number(8, "jiffies_64")
with guest.paused():
    state = guest.machine.paused
    first = spent(); time.sleep(1.0); second = spent()
time.sleep(1.5)
out = (first, second), spent(), (state, guest.machine.paused)
"""
    )
    assert cpu[0] == cpu[1] < after
    assert state == (True, False)
    assert guest.ask("echo goes on").strip() == "goes on"


def test_registers_point_into_the_kernel(guest: XenGuest) -> None:
    code = "{row.register: (row.value, row.symbol) for row in guest.registers()}"
    found = guest.host.python(
        f"from vmi_inside.control.registers import registers\nguest = {guest.name}\nwith guest.paused():\n"
        f"    out = {code.replace('guest.registers()', 'registers(guest.kernel, guest.vcpus)')}"
    )
    assert found["rip"][0] > 0
    assert found["cr3"][0] % 4096 == 0
    assert "gs_base" in found


def test_a_write_is_journalled_and_undone(guest: XenGuest) -> None:
    before = guest.ask("hostname").strip()
    guest.host.python(
        f"guest = {guest.name}; kernel = guest.kernel\n"
        "at = kernel.symbol('init_uts_ns') + kernel.struct('uts_namespace').member('name.nodename').offset\n"
        "entry = guest.write_memory(at, b'seen\\0')"
    )
    assert guest.ask("hostname").strip() == "seen"
    assert seen(guest, "guest.undo(entry.id).state") == "done"
    assert guest.ask("hostname").strip() == before


def test_a_gate_cuts_the_network_and_gives_it_back(guest: XenGuest) -> None:
    loop = "while :; do ping -c 1 127.0.0.1; usleep 50000; done" if guest.name == "pvh" else "exec ping 127.0.0.1"
    pid = guest.ask(f"sh -c '{loop}' >/tmp/ping 2>&1 </dev/null & echo $!").strip()
    children = guest.name == "pvh"  # who forks faster than it can be read here
    assert seen(guest, f"guest.deny('network', pid={pid}, children={children}).entry.state") == "done"
    assert "denied" in guest.ask("sleep 3; tail -n 3 /tmp/ping")
    assert seen(guest, "guest.allow('network').entry.state") == "done"
    assert "1 packets received" in guest.ask("ping -c 1 127.0.0.1")
    guest.ask(f"kill -9 {pid}", check=False)


def test_a_process_is_killed_and_one_made_nice(guest: XenGuest) -> None:
    first, second = guest.ask("for n in 1 2; do sleep 9999 >/dev/null 2>&1 </dev/null & echo $!; done").split()
    assert guest.host.python(f"guest = {guest.name}\nguest.signal({first}, 9)\nguest.nice({second}, 7)", 200) is None
    assert guest.ask(f"ls -d /proc/{first}", check=False).strip().endswith("No such file or directory")
    assert guest.ask(f"cut -d ' ' -f 19 /proc/{second}/stat").strip() == "7"
    entries = seen(guest, "[(entry.kind, entry.state, entry.writes) for entry in guest.journal()][-2:]")
    assert entries == [("signal", "done", ()), ("nice", "done", ())]
    assert seen(guest, "guest.machine.paused") is False


@long
def test_a_controller_that_dies_while_a_vcpu_waits_for_it(guest: XenGuest) -> None:
    pid = guest.ask("sleep 9999 >/dev/null 2>&1 </dev/null & echo $!").strip()
    states, paused, entry = guest.host.python(
        f"""
import vmi_inside.control.visit as visit
from vmi_inside.control.gates.entries import find_entry
guest = {guest.name}
dier = os.fork()
if not dier:  # what a process has mapped of a Xen guest is not its children's: it attaches by itself
    visit.Visitor.call = lambda *_: os.kill(os.getpid(), 9)
    try:
        vmi_inside.attach("xen:{guest.name}", writable=True).signal({pid}, 9)
    finally:
        os._exit(1)
status, end = os.waitpid(dier, 0)[1], time.monotonic() + 100
while "open" in {{entry.state for entry in guest.journal()}} and time.monotonic() < end:
    time.sleep(0.5)
while guest.machine.paused and time.monotonic() < end:
    time.sleep(0.5)
out = (status, guest.journal()[-1].state), guest.machine.paused, find_entry(guest.kernel, *visit.DOORS).state
""",
        250,
    )
    assert states == (9, "put back")
    assert (paused, entry) == (False, "free")
    assert guest.ask(f"ls -d /proc/{pid}").strip() == f"/proc/{pid}"


@long
def test_a_vcpu_that_left_before_the_guest_was_stopped(guest: XenGuest) -> None:
    pid = guest.ask("sleep 9999 >/dev/null 2>&1 </dev/null & echo $!").strip()
    rung = guest.host.python(
        f"""
import vmi_inside.control.visit as visit
come, kept, rung = visit._come, visit._ITS_PATIENCE, []
def late(*arguments):
    stack = come(*arguments)
    rung.append(stack)
    if len(rung) == 1:
        time.sleep(2)  # it does not wait for so long
    return stack
visit._come, visit._ITS_PATIENCE = late, 1.0
try:
    {guest.name}.signal({pid}, 9)
finally:
    visit._come, visit._ITS_PATIENCE = come, kept
out = len(rung)
""",
        200,
    )
    assert rung >= 2
    assert guest.ask(f"ls -d /proc/{pid}", check=False).strip().endswith("No such file or directory")


def test_what_cannot_be_had_is_said(guest: XenGuest) -> None:
    for code, words in (
        ("guest.vcpus[0].pause()", "single vCPUs cannot be kept standing"),
        ("guest.debugging().__enter__()", "needs QEMU's gdb stub"),
        ("guest.dump('/tmp/dump')", "page tables of a Xen PV guest"),
    ):
        if "dump" in code and guest.name != "pv":
            continue
        with pytest.raises(Refused) as error:
            seen(guest, code)
        assert error.value.kind == "Unsupported"
        assert words in error.value.said
        assert "\n" not in error.value.said
    assert seen(guest, "guest.machine.paused") is False


def test_memory_that_is_taken_away_and_given_back(guest: XenGuest) -> None:
    total = int(guest.ask("awk '/MemTotal/ {print $2}' /proc/meminfo"))
    guest.host.ask(f"xl mem-set {guest.name} 144m")
    guest.ask(f"until [ $(awk '/MemTotal/ {{print $2}}' /proc/meminfo) -lt {total - 8192} ]; do sleep 0.2; done")
    table = seen(guest, "guest.processes(('pid', 'name'))")
    assert len(table) > 60
    assert set(table.fault.tolist()) == {""}
    guest.host.ask(f"xl mem-set {guest.name} 160m")
