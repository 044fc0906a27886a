"""A real Xen host: what is seen from its dom0 of a PV and a PVH guest, compared with what each says of itself.

Everything in dom0 is done in one Python there: starting one takes this emulation many seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests import compare, truth
from tests.lab.guest import BootFailed
from tests.lab.xen import host as lab
from tests.lab.xen.host import Refused, XenGuest, XenHost

pytestmark = [pytest.mark.lab, pytest.mark.xen]

KINDS = ("pvh", "pv")
#: What is told apart by processes and sockets, without what keeps an emulated processor busy.
WORKLOAD = "tree,threads,zombie,stopped,names,userns,files,mappings,tcp,udp,unix,raw"


@pytest.fixture(scope="module")
def host(_prerequisites: None) -> Iterator[XenHost]:
    try:
        made = lab.boot()
    except BootFailed:  # of the emulated machine, not of what is tested
        made = lab.boot()
    try:
        made.python(
            "import os, time, vmi_inside, vmi_inside.guest\n"
            "from vmi_inside.errors import *\n"
            "from vmi_inside.linux.clock import boot_time"
        )
        yield made
    finally:
        made.destroy()


@pytest.fixture(scope="module")
def guests(host: XenHost) -> dict[str, XenGuest]:
    made = {kind: host.start(kind, WORKLOAD, libvirt=kind == "pv") for kind in KINDS}
    host.python("pvh = vmi_inside.attach('xen:pvh', writable=True)", 200)
    host.python("pv = vmi_inside.attach('pv', connect='xen:///system', writable=True)", 200)
    return made


@pytest.fixture(params=KINDS)
def guest(guests: dict[str, XenGuest], request: pytest.FixtureRequest) -> XenGuest:
    return guests[request.param]


def seen(guest: XenGuest, code: str) -> Any:
    """The value of an expression about `guest`, in dom0."""
    return guest.host.python(f"guest = {guest.name}\nout = {code}", 200)


def test_what_is_told_of_each_guest(guest: XenGuest) -> None:
    how, release, runs = seen(
        guest, "guest.how, guest.kernel.profile.release, [(r.start, r.size) for r in guest.memory.runs]"
    )
    assert guest.name.upper() in how
    assert release == guest.ask("uname -r").strip()
    assert runs[0][0] == 0
    assert 140 << 20 < sum(size for _, size in runs) <= 165 << 20


def test_processes_cell_by_cell(guest: XenGuest) -> None:
    for attempt in (1, 2):  # it lives on while it is compared
        table, boot = seen(guest, "(guest.processes(), boot_time(guest.kernel))")
        inside = truth.processes(guest)
        outside = set(table.pid.tolist())
        # The shell that answers is only seen from inside; kernel workers come and go.
        missing = {pid for pid in set(inside) - outside if not inside[pid]["kernel_thread"] and pid < max(outside)}
        invented = [row for row in table if row.pid not in inside and not row.kernel_thread]
        differences = compare.process_differences(table, inside, boot)
        if not (missing or invented or differences) or attempt == 2:
            break
    assert (missing, invented, differences) == (set(), [], [])
    assert len(table) > 60
    assert set(table.fault.tolist()) == {""}
    assert table.notes == ()


def test_sockets_of_every_namespace(guest: XenGuest) -> None:
    table = seen(guest, "guest.process_open_sockets()")
    pids = {row.net_namespace: row.pid for row in seen(guest, "guest.processes(('pid', 'net_namespace'))")}
    compared = 0
    for namespace, pid in pids.items():
        if not namespace:
            continue
        said = compare.internet_truth(guest, pid)
        outside = compare.internet_rows(table, namespace)
        assert said - outside == Counter()
        # What was never bound is in no table of /proc.
        more = [row for row in outside - said if row[0] in ("tcp", "udp") and row[4]]
        assert [row for row in more if row[2] not in ("CLOSE", "UNCONN", "LISTEN")] == []
        compared += sum(said.values())
    assert compared > 10


def test_modules(guest: XenGuest) -> None:
    inside = {line.split()[0] for line in guest.ask("cat /proc/modules").splitlines()}
    assert set(seen(guest, "guest.kernel_modules().name.tolist()")) == inside


def test_memory_of_a_process(guest: XenGuest) -> None:
    inside = guest.ask("tr '\\0' '\\n' </proc/1/cmdline").split()
    code = "[row.cmdline for row in guest.processes(('pid', 'cmdline')) if row.pid == 1][0].split()"
    assert seen(guest, code) == inside


def test_checks_find_nothing_grave(guest: XenGuest) -> None:
    only = ("disguises", "modules", "syscalls")
    found = seen(guest, f"[(f.check, f.severity, f.subject) for f in guest.check({only})]")
    assert [one for one in found if one[1] not in ("info", "low")] == []
    assert found  # what was not looked at is told


def test_a_snapshot(guest: XenGuest) -> None:
    made = seen(guest, "guest.snapshot('processes', 'mounts', pause=True).tables")
    assert len(made["processes"]) > 60
    assert set(made["processes"].fault.tolist()) == {""}
    assert "proc" in made["mounts"].type.tolist()


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
    loop = "while :; do ping -c 1 127.0.0.1; done" if guest.name == "pvh" else "exec ping 127.0.0.1"
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


def test_a_controller_that_dies_while_a_vcpu_waits_for_it(guest: XenGuest) -> None:
    if guest.name == "pv":
        pytest.skip("done on one kind: it takes long")
    pid = guest.ask("sleep 9999 >/dev/null 2>&1 </dev/null & echo $!").strip()
    states, paused, entry = guest.host.python(
        f"""
import vmi_inside.control.visit as visit
from vmi_inside.control.gates.entries import find_entry
guest = {guest.name}
dier = os.fork()
if not dier:
    visit.Visitor.call = lambda *_: os.kill(os.getpid(), 9)
    try:
        guest.signal({pid}, 9)
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


def test_a_guest_that_has_not_begun(guests: dict[str, XenGuest], host: XenHost) -> None:
    host.ask(
        "sed \"s/^name=.*/name='new'/; s/^memory=.*/memory=128/\" /tmp/pvh.cfg >/tmp/new.cfg; xl create -p /tmp/new.cfg"
    )
    try:  # its kernel lies in memory already
        rows = host.python("with vmi_inside.attach('xen:new') as new:\n    out = new.processes(), new.info()", 200)
    finally:
        host.ask("xl destroy new")
    processes, info = rows
    assert len(processes) == 0
    assert list(info.fault) == ["clock unreadable"]


@pytest.fixture(scope="module")
def held(guests: dict[str, XenGuest], host: XenHost) -> XenGuest:
    """The PVH guest, which is attached to through LibVMI in dom0."""
    host.ask(
        "cd /usr/lib/x86_64-linux-gnu; for one in ctrl store evtchn foreignmemory devicemodel; do"
        " ln -sf $(ls libxen$one.so.* | head -n 1) libxen$one.so; done"
    )
    host.python("held = vmi_inside.attach('libvmi:pvh', writable=True)", 200)
    return guests["pvh"]


def test_libvmi_sees_the_same_of_a_pvh_guest(held: XenGuest, host: XenHost) -> None:
    both = host.python(
        """
columns = ("pid", "name", "parent", "uid")
def rows(guest):
    table = guest.processes(columns)
    return set(zip(*(getattr(table, name).tolist() for name in columns)))
out = rows(pvh), rows(held)
""",
        200,
    )
    kernel_workers = {row for row in both[0] ^ both[1] if row[1].startswith("kworker")}
    assert both[0] ^ both[1] == kernel_workers
    assert len(both[1]) > 60
    with pytest.raises(Refused) as error:
        host.python("vmi_inside.attach('libvmi:pv')", 200)
    assert "try xen:pv" in error.value.said


def test_libvmi_holds_a_pvh_guest(held: XenGuest, host: XenHost) -> None:
    counted, states, found, stands, snapshot = host.python(
        """
from vmi_inside.drivers import libvmi, libvmimachine
def spent():
    return pvh.kernel.number(8, "jiffies_64")
with held.paused():
    states = [pvh.machine.paused]
    first = spent(); time.sleep(1.0); second = spent()
states.append(pvh.machine.paused)
time.sleep(1.5)
counted = first, second, spent()
pvh.machine.pause()
with held.paused() as pause:
    found = pause.found
states.append(pvh.machine.paused)
stands = held.resume(), held.resume()
states.append(pvh.machine.paused)
memory = libvmi.open_domain("pvh")
machine = libvmimachine.open_machine("libvmi:pvh", memory)
machine.pause()
machine.close()
memory.close()
states.append(pvh.machine.paused)  # it stands on when who paused it has let go of LibVMI
stands += (held.resume(),)
snapshot = held.snapshot("processes", pause=True)
out = counted, states, found, stands, (snapshot.paused, len(snapshot.tables["processes"]), pvh.machine.paused)
""",
        200,
    )
    assert counted[0] == counted[1] < counted[2]
    assert states == [True, False, True, False, True]
    assert found is True
    assert stands == (True, False, True)
    assert snapshot[0] > 0
    assert snapshot[1] > 60
    assert snapshot[2] is False
    assert held.ask("echo goes on").strip() == "goes on"


def test_libvmi_reads_and_sets_registers_of_a_pvh_guest(held: XenGuest, host: XenHost) -> None:
    own, theirs, changed, after, table = host.python(
        """
from vmi_inside.control.registers import registers
def both():
    with pvh.machine.debugger() as one, one() as one, held.machine.debugger() as two, two() as two:
        return [one.registers(n) for n in range(len(one.threads))], [two.registers(n) for n in range(len(two.threads))]
with held.paused():
    own, theirs = both()
    before = own[0]["r12"]
    held.vcpus[0].set_registers({"r12": 0x1234_5678_9ABC_DEF0})
    changed = both()
    held.vcpus[0].set_registers({"r12": before})
    after = both()
    table = [(row.register, row.value) for row in registers(held.kernel, held.vcpus)]
out = own, theirs, changed, after, table
""",
        200,
    )
    assert len(own) == 1
    assert own == theirs
    assert table == list(theirs[0].items())
    wanted = [{**own[0], "r12": 0x1234_5678_9ABC_DEF0}]
    assert changed == (wanted, wanted)
    assert after == (own, own)
    assert held.ask("echo goes on").strip() == "goes on"


def test_what_libvmi_changes_is_journalled_where_xen_undoes_it(held: XenGuest, host: XenHost) -> None:
    before = held.ask("hostname").strip()
    host.python(
        "at = held.kernel.symbol('init_uts_ns') + held.kernel.struct('uts_namespace').member('name.nodename').offset\n"
        "entry = held.write_memory(at, b'seen\\0')"
    )
    assert held.ask("hostname").strip() == "seen"
    assert host.python("out = pvh.undo(entry.id).state") == "done"
    assert held.ask("hostname").strip() == before
    for code, words in (
        ("held.vcpus[0].pause()", "single vCPUs cannot be kept standing"),
        ("held.vcpus[0].set_registers({'cr3': 0})", "cr3 cannot be set"),
        ("held.call('ktime_get')", "no vCPU can be borrowed"),
    ):
        with pytest.raises(Refused) as error:
            host.python(code, 200)
        assert error.value.said.startswith("libvmi:pvh: ")
        assert words in error.value.said
        assert "\n" not in error.value.said
    assert host.python("held.close()\nout = pvh.machine.paused") is False


def test_guests_are_listed(guests: dict[str, XenGuest], host: XenHost) -> None:
    rows = host.python("out = [(row.name, row.kind, row.state, row.possible) for row in vmi_inside.guest.guests()]")
    assert sorted(rows) == [
        ("Domain-0", "pv", "running", ""), ("pv", "pv", "running", "read, control"),
        ("pvh", "pvh", "running", "read, control"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "kind", "words"),
    [
        ("xen:0", "Unsupported", "domain 0 is the system"),
        ("xen:Domain-0", "Unsupported", "domain 0 is the system"),
        ("xen:nobody", "NoSuchDomain", "xl list"),
        ("xen:pw", "NoSuchDomain", "xl list"),
        ("xen:4711", "NoSuchDomain", "xl list"),
        ("xen:", "AttachError", "write xen:NAME"),
    ],
)
def test_targets_that_are_none(host: XenHost, target: str, kind: str, words: str) -> None:
    with pytest.raises(Refused) as error:
        host.python(f"vmi_inside.attach({target!r})")
    assert error.value.kind == kind
    assert words in error.value.said


def test_without_privilege(host: XenHost) -> None:
    code = "import os; os.setuid(1000); from vmi_inside.drivers.xenlib import Xen; Xen()"
    said = host.ask(f'python3 -c "{code}"', check=False)
    assert "PermissionDenied: no access to /dev/xen/privcmd" in said


def test_a_guest_that_is_destroyed_while_it_is_read(guests: dict[str, XenGuest], host: XenHost) -> None:
    said = host.python(
        """
import subprocess
ender = subprocess.Popen("sleep 2; xl destroy pvh", shell=True)
started, out = time.monotonic(), None
while time.monotonic() - started < 60 and out is None:
    try:
        pvh.processes()
    except GuestGone as error:
        out = str(error)
ender.wait()
pvh.close()
""",
        200,
    )
    assert said is not None
    assert "is gone" in said
    assert "pvh" not in host.ask("xl list")
