"""A real Xen host: what is seen from its dom0 of a PV, a PVH and an HVM guest, compared with what each says of itself.

Everything in dom0 is done in one Python there: starting one takes this emulation many seconds. What takes longer than
the rest together is left out without `--xen-long`.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import importlib.util
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import compare, truth
from tests.lab.guest import BootFailed
from tests.lab.xen import host as lab
from tests.lab.xen.host import Refused, XenGuest, XenHost
from tests.lab.xen.parts import XEN_HOSTS
from vmi_inside import errors
from vmi_inside.cli import exits

pytestmark = [pytest.mark.lab, pytest.mark.xen]

long = pytest.mark.xen_long
KINDS = ("pvh", "pv", pytest.param("hvm", marks=long))
#: What is told apart by processes and sockets, without what keeps an emulated processor busy.
WORKLOAD = "tree,threads,zombie,stopped,names,userns,files,mappings,tcp,udp,unix,raw"


def needs_hvm(request: pytest.FixtureRequest) -> bool:
    """Whether a test that is to run does: such a guest takes minutes to boot."""
    return any("[hvm]" in item.name for item in request.session.items)


def vcpus(request: pytest.FixtureRequest) -> int:
    """Of the PVH guest: two wait for each other, which an emulated processor does for long."""
    return 2 if request.config.getoption("--xen-long") else 1


@pytest.fixture(scope="module")
def host(_prerequisites: None, request: pytest.FixtureRequest) -> Iterator[XenHost]:
    recipe = XEN_HOSTS[request.config.getoption("--xen-version")]
    recipe = dataclasses.replace(recipe, device_model=needs_hvm(request))
    try:
        made = lab.boot(recipe)
    except BootFailed:  # of the emulated machine, not of what is tested
        made = lab.boot(recipe)
    try:
        made.python(
            "import os, subprocess, time, vmi_inside, vmi_inside.guest\n"
            "from vmi_inside.errors import *\n"
            "from vmi_inside.linux.clock import boot_time"
        )
        yield made
    finally:
        made.destroy()


@pytest.fixture(scope="module")
def guests(host: XenHost, request: pytest.FixtureRequest) -> dict[str, XenGuest]:
    made = {"pvh": host.start("pvh", WORKLOAD, vcpus=vcpus(request)), "pv": host.start("pv", WORKLOAD, libvirt=True)}
    if needs_hvm(request):
        made["hvm"] = host.start("hvm", WORKLOAD)
    for guest in made.values():
        guest.wait_ready(400 if guest.name == "hvm" else 170)
        connect = "'pv', connect='xen:///system'" if guest.name == "pv" else f"'xen:{guest.name}'"
        host.python(f"{guest.name} = vmi_inside.attach({connect}, writable=True)", 200)
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


def refused(host: XenHost, code: str, target: str) -> tuple[int, str]:
    """The exit code of the error that this ends in, and what it says."""
    with pytest.raises(Refused) as error:
        host.python(code, 200)
    assert "\n" not in error.value.said
    assert target in error.value.said
    return exits.code(getattr(errors, error.value.kind)(error.value.said)), error.value.said


@pytest.mark.parametrize("kind", ["pvh", "pv"])
def test_a_guest_that_has_not_begun(guests: dict[str, XenGuest], host: XenHost, kind: str) -> None:
    changes = f"s/^name=.*/name='new'/; s/^type=.*/type='{kind}'/; s/^memory=.*/memory=128/"
    host.ask(f'sed "{changes}" /tmp/pvh.cfg >/tmp/new.cfg; xl create -p /tmp/new.cfg')
    try:  # its kernel lies in memory already
        code, said = refused(host, "vmi_inside.attach('xen:new')", "new: ")
    finally:
        host.ask("xl destroy new")
    assert code == 4
    assert ("has not begun to run" if kind == "pvh" else "still booting") in said


def waiting() -> bytes:
    """An ELF file that a PVH guest is started with, and that waits for good, as a boot loader may."""
    entry, code = 0x10_0000, b"\xf3\x90\xeb\xfc"  # pause, and again: one that halts for good is ended by Xen
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen", entry)  # XEN_ELFNOTE_PHYS32_ENTRY (public/elfnote.h)
    at = 64 + 2 * 56
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, entry, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )  # fmt: skip
    load = struct.pack("<IIQQQQQQ", 1, 7, at, entry, entry, len(code), 0x1000, 0x1000)
    notes = struct.pack("<IIQQQQQQ", 4, 4, at + len(code), 0, 0, len(note), len(note), 4)
    return header + load + notes + code + note


def test_a_guest_without_a_kernel(host: XenHost) -> None:
    elf = base64.b64encode(waiting()).decode()
    config = "name='still'\ntype='pvh'\nmemory=32\nkernel='/tmp/still'"
    host.ask(f'echo {elf} | base64 -d >/tmp/still; echo "{config}" >/tmp/still.cfg; xl create /tmp/still.cfg')
    try:
        assert "still" in host.ask("xl list")
        code, said = refused(host, "vmi_inside.attach('xen:still')", "still: ")
    finally:
        host.ask("xl destroy still")
    assert code == 6
    assert "no Linux kernel in" in said


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


def test_libvmi_knows_where_ram_lies(held: XenGuest, host: XenHost) -> None:
    """Else it looks for each page of 4 GiB: a dump does not end."""
    own, theirs = host.python("out = [[(run.start, run.size) for run in one.memory.runs] for one in (pvh, held)]")
    assert own == theirs


@long
def test_libvmi_dumps_the_same(held: XenGuest, host: XenHost) -> None:
    own, theirs = host.python(
        """
with held.paused():
    made = pvh.dump("/own.core"), held.dump("/theirs.core")
os.unlink("/own.core"), os.unlink("/theirs.core")
out = [(one.memory, one.missing, one.checksum) for one in made]
""",
        400,
    )
    assert own == theirs


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


def test_libvmi_reads_and_sets_registers_of_a_pvh_guest(
    held: XenGuest, host: XenHost, request: pytest.FixtureRequest
) -> None:
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
    assert len(own) == vcpus(request)
    assert own == theirs
    assert table == [pair for each in theirs for pair in each.items()]
    wanted = [{**own[0], "r12": 0x1234_5678_9ABC_DEF0}, *own[1:]]
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


@long
@pytest.mark.skipif(importlib.util.find_spec("volatility3") is None, reason="volatility3 is not installed")
def test_volatility3_lists_processes_of_a_dump(guests: dict[str, XenGuest], host: XenHost, tmp_path: Path) -> None:
    host.python(
        """
from vmi_inside.cli.profile import _FORMATS
os.makedirs("/made/symbols/linux", exist_ok=True)
with open("/made/symbols/linux/guest.json", "wb") as file:
    file.write(_FORMATS["isf"](pvh, None)[0])
pvh.dump("/made/guest.core", pause=True)
""",
        400,
    )
    host.bring("/made", tmp_path)
    volatility = [str(Path(sys.executable).parent / "vol"), "-q", "--offline", "-r", "csv"]
    said = subprocess.run(
        [*volatility, "-s", str(tmp_path / "symbols"), "--cache-path", str(tmp_path), "-f",
         str(tmp_path / "guest.core"), "linux.pslist"],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    theirs = {
        int(row["PID"]): row["COMM"] for row in csv.DictReader(line for line in said.stdout.splitlines() if "," in line)
    }
    import vmi_inside

    with vmi_inside.attach(f"file:{tmp_path / 'guest.core'}") as dumped:
        ours = {row.pid: row for row in dumped.processes(("pid", "name", "state"))}
    assert len(theirs) > 60, said.stderr
    assert set(ours) - set(theirs) == {pid for pid, row in ours.items() if row.state == "Z"}
    assert set(theirs) <= set(ours)
    plain = {pid: name for pid, name in theirs.items() if name.isidentifier()}
    assert {pid: ours[pid].name[:15].partition("\\x")[0] for pid in plain} == plain


def test_guests_are_listed(guests: dict[str, XenGuest], host: XenHost) -> None:
    rows = host.python("out = [(row.name, row.kind, row.state, row.possible) for row in vmi_inside.guest.guests()]")
    assert sorted(rows) == [
        ("Domain-0", "pv", "running", ""),
        *((name, name, "running", "read, control") for name in sorted(guests)),
    ]


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


@pytest.fixture(scope="module")
def saved(guests: dict[str, XenGuest], host: XenHost) -> tuple[str | None, str | None]:
    """What reading and attaching to the PVH guest said while it was saved; it is gone behind that."""
    said: tuple[str | None, str | None] = host.python(
        """
saver = subprocess.Popen(["xl", "save", "pvh", "/saved"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
said, stands, end = None, None, time.monotonic() + 150
while said is None and time.monotonic() < end:
    try:
        assert len(pvh.processes(("pid",))) > 60
        if stands is None:
            vmi_inside.attach("xen:pvh").close()
    except GuestGone as error:
        said = str(error)
    except NotRunning as error:
        stands = str(error)
    time.sleep(0.5)  # dom0 has one processor
assert saver.wait() == 0
pvh.close()
out = said, stands
""",
        200,
    )
    return said


def test_a_guest_that_is_saved_while_it_is_read(saved: tuple[str | None, str | None], host: XenHost) -> None:
    said, stands = saved
    assert said is not None
    assert "is gone" in said
    assert stands == "pvh: the domain is suspended; it is being saved or migrated"
    assert refused(host, "vmi_inside.attach('xen:pvh')", "'pvh'")[0] == 3


@long
@pytest.mark.usefixtures("saved")
def test_a_guest_that_was_saved_goes_on(host: XenHost) -> None:
    host.ask("xl restore /saved", 300)
    again = host.python("with vmi_inside.attach('xen:pvh') as pvh:\n    out = pvh.processes()", 200)
    assert len(again) > 60
    assert set(again.fault.tolist()) == {""}


def test_a_guest_that_is_destroyed_while_it_is_read(guests: dict[str, XenGuest], host: XenHost) -> None:
    said = host.python(
        """
import subprocess
ender = subprocess.Popen("sleep 2; xl destroy pv", shell=True)
started, out = time.monotonic(), None
while time.monotonic() - started < 60 and out is None:
    try:
        pv.processes()
    except GuestGone as error:
        out = str(error)
ender.wait()
pv.close()
""",
        200,
    )
    assert said is not None
    assert "is gone" in said
    assert "pv " not in host.ask("xl list")
