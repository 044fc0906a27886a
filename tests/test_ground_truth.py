"""What is seen from outside, compared with what real guests say of themselves, row by row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import vmi_inside
from tests import compare, truth
from tests.lab.guest import LabGuest
from vmi_inside.linux.clock import boot_time

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def seen(lab_boot: Callable[..., LabGuest]) -> vmi_inside.Guest:
    with lab_boot().attach() as guest:
        yield guest


@pytest.fixture(scope="module")
def inside(lab_boot: Callable[..., LabGuest]) -> dict:
    return truth.processes(lab_boot())


def agreeing(lab_guest: LabGuest, seen: vmi_inside.Guest, inside: dict) -> list[str]:
    """Differences that stay when both sides are asked again: a guest lives on while it is compared."""
    differences = compare.process_differences(seen.processes(), inside, boot_time(seen.kernel))
    if differences:
        differences = compare.process_differences(seen.processes(), truth.processes(lab_guest), boot_time(seen.kernel))
    return differences


def test_every_process_is_seen_and_no_other(lab_guest: LabGuest, seen: vmi_inside.Guest, inside: dict) -> None:
    table = seen.processes()
    outside = set(table.pid.tolist())
    ended = {pid for pid in inside if not lab_guest.ask(f"test -d /proc/{pid} && echo there", check=False)}
    assert set(inside) - outside - ended == set()
    began = {pid for pid in outside - set(inside) if lab_guest.ask(f"test -d /proc/{pid} && echo there", check=False)}
    invented = outside - set(inside) - began
    # What was seen and is gone by now can only be a process that ended meanwhile: kernel workers do.
    assert all(row.kernel_thread for row in table if row.pid in invented)
    assert len(table) > 100
    assert set(table.fault.tolist()) == {""}
    assert table.notes == ()


def test_processes_cell_by_cell(lab_guest: LabGuest, seen: vmi_inside.Guest, inside: dict) -> None:
    assert agreeing(lab_guest, seen, inside) == []


def test_the_workload_has_what_is_to_be_told_apart(seen: vmi_inside.Guest) -> None:
    table = seen.processes()
    assert {"Z", "T", "S", "I"} <= set(table.state.tolist())
    assert table.threads.max() > 4
    assert len(set(table.pid_namespace.tolist())) > 1
    assert len(set(table.net_namespace.tolist()) - {0}) > 1
    assert len(set(table.cgroup_path.tolist())) > 1
    assert table.nice.min() < 0 < table.nice.max()
    assert any(path.endswith(" (deleted)") for path in table.path)
    assert (table.uid != table.euid).any()


def test_threads(lab_guest: LabGuest, seen: vmi_inside.Guest) -> None:
    inside = {
        (int(pid), int(tid))
        for pid, tid in (
            line.split("/task/") for line in lab_guest.ask("cd /proc; ls -d [0-9]*/task/[0-9]*", check=False).split()
        )
    }
    table = seen.threads()
    outside = set(zip(table.pid.tolist(), table.tid.tolist(), strict=True))
    kernel = set(table.where(table.kernel_thread).tid.tolist())
    missing = {
        (pid, tid)
        for pid, tid in inside - outside
        if lab_guest.ask(f"test -d /proc/{pid}/task/{tid} && echo y", check=False)
    }
    assert missing == set()
    assert all(tid in kernel for _, tid in outside - inside)


def test_internet_sockets_of_every_namespace(lab_guest: LabGuest, seen: vmi_inside.Guest, inside: dict) -> None:
    namespaces = {row["net_namespace"]: pid for pid, row in inside.items() if row["net_namespace"]}
    assert len(namespaces) > 1
    for namespace, pid in namespaces.items():
        for attempt in (1, 2):
            said = compare.internet_truth(lab_guest, pid)
            outside = compare.internet_rows(seen.process_open_sockets(), namespace)
            missing = said - outside
            # /proc shows hashed sockets only; one that was never bound is in no table but a descriptor's.
            unbound = ("CLOSE", "UNCONN", "LISTEN")
            more = [row for row in (outside - said) if row[2] not in unbound or row[0] in ("udp", "raw")]
            more = [row for row in more if not (row[0] == "udp" and row[4] == 0)]
            if (not missing and not more) or attempt == 2:
                assert missing == Counter()
                assert more == []
                break


def test_tcp_is_seen_in_every_reachable_state(seen: vmi_inside.Guest) -> None:
    table = seen.process_open_sockets()
    states = set(table.where(table.protocol == "tcp").state.tolist())
    assert states >= {
        "LISTEN", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "CLOSE_WAIT", "TIME_WAIT",
        "LAST_ACK",
    }  # fmt: skip
    orphans = table.where((table.pid == -1) & (table.state == "TIME_WAIT"))
    assert len(orphans) > 0
    assert any(address.startswith("::ffff:") for address in table.local_address)


def test_queues_of_tcp(lab_guest: LabGuest, seen: vmi_inside.Guest) -> None:
    said = {row["inode"]: row for row in truth.internet(lab_guest, 1) if row["inode"] and row["protocol"] == "tcp"}
    table = seen.process_open_sockets()
    compared = 0
    for row in table:
        inside = said.get(row.inode)
        if inside is None or row.state in ("LISTEN", "SYN_SENT", "LAST_ACK", "FIN_WAIT1", "CLOSING"):
            continue
        assert (row.rx_queue, row.tx_queue) == (inside["rx_queue"], inside["tx_queue"]), row
        compared += bool(row.rx_queue or row.tx_queue)
    assert compared > 0  # with something waiting in them


def test_holders_of_sockets(lab_guest: LabGuest, seen: vmi_inside.Guest) -> None:
    said = truth.holders(lab_guest)
    table = seen.process_open_sockets()
    outside = {(row.pid, row.fd, row.inode) for row in table if row.pid >= 0}
    assert len(said) > 30
    assert said - outside == set()
    assert outside - said == set()


def test_unix_sockets(lab_guest: LabGuest, seen: vmi_inside.Guest, inside: dict) -> None:
    table = seen.process_open_sockets()
    for namespace, pid in {row["net_namespace"]: pid for pid, row in inside.items() if row["net_namespace"]}.items():
        said = Counter((row["type"], row["inode"], row["path"]) for row in truth.unix(lab_guest, pid))
        rows = table.where((table.family == "unix") & (table.net_namespace == namespace))
        outside = Counter({row.address: (row.type, row.inode, row.path.split("\n")[0]) for row in rows}.values())
        assert outside == said


def test_all_families_are_there(seen: vmi_inside.Guest) -> None:
    table = seen.process_open_sockets()
    families = set(table.family.tolist())
    assert families >= {"inet", "inet6", "unix", "netlink", "packet", "vsock"}
    assert set(table.protocol.tolist()) >= {"tcp", "udp", "raw", "icmp"}
    assert set(table.fault.tolist()) == {""}
    assert table.notes == ()
    vsock = table.where((table.family == "vsock") & (table.state == "LISTEN"))
    assert vsock.local_port.max() > 0  # its type is in the module's own BTF
    packet = table.where(table.family == "packet")
    assert set(packet.local_address.tolist()) - {"*"}


def test_info(lab_guest: LabGuest, seen: vmi_inside.Guest) -> None:
    row = seen.info()[0]
    assert row.release == lab_guest.ask("uname -r").strip()
    assert row.version == lab_guest.ask("uname -v").strip()
    assert row.hostname == lab_guest.ask("hostname").strip()
    assert row.cpus == lab_guest.shape.vcpus
    assert row.banner == lab_guest.ask("cat /proc/version").strip()
    assert abs(row.boot_time - int(lab_guest.ask("grep btime /proc/stat").split()[1])) <= 1
    assert row.fault == ""


def test_attaching_changes_nothing(lab_guest: LabGuest) -> None:
    before = lab_guest.domain.state()
    with lab_guest.attach() as guest:
        guest.processes()
        assert guest.notices == ()  # the domain was not tainted, nothing was slow
        assert lab_guest.domain.state() == before
    assert lab_guest.domain.state() == before


def test_a_paused_guest_can_be_read_and_stays_paused(lab_guest: LabGuest) -> None:
    lab_guest.domain.suspend()
    try:
        with lab_guest.attach() as guest:
            first = guest.processes()
            assert guest.processes().to_dicts() == first.to_dicts()
            assert len(first) > 100
        assert lab_guest.domain.state()[0] == 3  # VIR_DOMAIN_PAUSED
    finally:
        lab_guest.domain.resume()


def test_rounds_do_not_grow_with_processes(seen: vmi_inside.Guest) -> None:
    class Counted:
        gathers = 0

        def __init__(self, inner: object) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def gather(self, pa: object, out: object) -> object:
            self.gathers += 1
            return self.inner.gather(pa, out)

    space = seen.kernel.space
    counted = Counted(space.memory)
    space.memory = counted
    try:
        table = seen.processes(columns=("pid", "parent", "name", "uid", "state"))
    finally:
        space.memory = counted.inner
    assert len(table) > 100
    assert counted.gathers <= 45


@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_examples(lab_guest: LabGuest, example: str) -> None:
    environment = {**os.environ, "LIBVIRT_DEFAULT_URI": lab_guest.uri}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / example, lab_guest.target],
        capture_output=True, text=True, timeout=60, env=environment, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    if example == "without_executable.py":
        found = json.loads(done.stdout)
        assert done.returncode == 1
        assert found
        assert all(row["path"].endswith(" (deleted)") for row in found)
    else:
        assert done.returncode == 0
        assert len(done.stdout.splitlines()) > 5


def test_a_dump_shows_the_same_as_the_guest(lab_guest: LabGuest, tmp_path: Path) -> None:
    lab_guest.domain.suspend()
    try:
        dump = tmp_path / "memory.elf"
        lab_guest.domain.coreDumpWithFormat(str(dump), 0, 16)  # VIR_DUMP_MEMORY_ONLY
        with lab_guest.attach() as guest, vmi_inside.attach(f"file:{dump}") as image:
            for name in ("processes", "threads", "process_open_sockets"):
                assert getattr(image, name)().to_dicts() == getattr(guest, name)().to_dicts()
    finally:
        lab_guest.domain.resume()
