"""LibVMI on a Xen host's guests, and volatility3 on a dump of one."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.xen.host import Refused, XenGuest, XenHost
from tests.xen.dom0 import long, vcpus

pytestmark = [pytest.mark.lab, pytest.mark.xen]


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
