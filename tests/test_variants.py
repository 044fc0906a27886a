"""The main job on other kernels and other machines: each is compared with what the guest says of itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import compare, truth
from tests.lab.guest import LabGuest
from vmi_inside.guest import Notice
from vmi_inside.linux.clock import boot_time

pytestmark = pytest.mark.lab

VARIANTS = [
    {"kernel": "6.1", "vcpus": 1, "cpu": "la57-off", "backing": "memfd", "memory": 512},
    {"kernel": "6.12", "vcpus": 2, "backing": "anon", "memory": 512},
    {"kernel": "6.12-cloud", "machine": "pc", "backing": "memfd", "memory": 4500, "cpu": "la57-off"},
    {"kernel": "5.10-cloud", "backing": "file", "append": "nokaslr"},
    {"kernel": "new-cloud", "backing": "anon", "memory": 512},
]


# A guest that panics for want of processor time while it boots comes up again, and leaves its first kernel behind.
@pytest.mark.filterwarnings("ignore:.*several kernels:vmi_inside.guest.Notice")
@pytest.mark.parametrize("shape", VARIANTS, ids=lambda shape: shape["kernel"])
def test_the_guest_agrees(lab_fresh: Callable[..., LabGuest], shape: dict) -> None:
    guest = lab_fresh(**shape)
    with guest.attach() as seen:
        assert [notice for notice in seen.notices if "several kernels" not in notice] == []
        assert seen.info().release[0] == guest.ask("uname -r").strip()
        five = bool(guest.ask("grep -m1 -o la57 /proc/cpuinfo", check=False).strip())  # cleared where it is not used
        assert ("5-level" in seen.info().paging[0]) == five
        differences: list[str] = []
        for _ in range(2):
            inside = truth.processes(guest)
            table = seen.processes()
            assert table.notes == ()
            assert set(table.fault.tolist()) == {""}
            differences = compare.process_differences(table, inside, boot_time(seen.kernel))
            if not differences:
                break
        assert differences == []
        outside = {row.pid for row in table if not row.kernel_thread}
        mine = {pid for pid, row in inside.items() if not row["kernel_thread"]}
        assert {pid for pid in mine - outside if guest.ask(f"test -d /proc/{pid} && echo y", check=False)} == set()
        assert len(outside) > 50

        said = compare.internet_truth(guest, 1)
        sockets = seen.process_open_sockets()
        # Modules have types of their own since 5.11: before, addresses of vsock sockets cannot be told, which is said.
        untyped = shape["kernel"].startswith("5.10")
        assert set(sockets.fault.tolist()) == ({"", "no type vsock_sock"} if untyped else {""})
        assert [note for note in sockets.notes if not (untyped and "vsock" in note)] == []
        rows = compare.internet_rows(sockets, inside[1]["net_namespace"])
        if said - rows:  # something went on between the two readings: once more
            said, sockets = compare.internet_truth(guest, 1), seen.process_open_sockets()
            rows = compare.internet_rows(sockets, inside[1]["net_namespace"])
        assert not said - rows
        assert len(said) > 20
        held = {(row.pid, row.fd, row.inode) for row in sockets if row.pid >= 0}
        assert held == truth.holders(guest)
        assert {"unix", "netlink", "packet"} <= set(sockets.family.tolist())


def test_nodes_of_equal_size_are_told_apart_with_a_notice(lab_fresh: Callable[..., LabGuest]) -> None:
    guest = lab_fresh(memory=512, numa=2, workload="none")
    with pytest.warns(Notice, match="tainted"):
        seen = guest.attach()
    with seen:
        assert any("tainted" in notice for notice in seen.notices)
        inside = truth.processes(guest)
        assert compare.process_differences(seen.processes(), inside, boot_time(seen.kernel)) == []


def test_a_qemu_without_libvirt(lab_qemu: Callable[..., LabGuest]) -> None:
    guest = lab_qemu(workload="none")
    with guest.attach() as seen:
        assert seen.notices == ()
        inside = truth.processes(guest)
        assert compare.process_differences(seen.processes(), inside, boot_time(seen.kernel)) == []
        assert {row.pid for row in seen.processes() if not row.kernel_thread} >= {1}
