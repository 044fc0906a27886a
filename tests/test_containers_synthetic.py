"""Containers: what control groups' names say, and made-up guests whose groups and namespaces lie."""

from __future__ import annotations

from typing import Any

import pytest

from tests.synthetic import LinuxGuest
from tests.synthetic.guest import HOLE, NOWHERE
from tests.synthetic.linux import Task
from vmi_inside.linux.processes.container_names import container, unit
from vmi_inside.linux.processes.containers import containers
from vmi_inside.linux.processes.processes import processes

HEX = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4
POD = "6f3a2c1d-aaaa-bbbb-cccc-0123456789ab"


@pytest.mark.parametrize(
    ("path", "runtime", "number", "pod"),
    [
        (f"/system.slice/docker-{HEX}.scope", "docker", HEX, ""),
        (f"/docker/{HEX}", "docker", HEX, ""),
        (f"/docker/{HEX}/system.slice/ssh.service", "docker", HEX, ""),
        (f"/docker/{HEX}/docker/{OTHER}", "docker", OTHER, ""),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{HEX}.scope/container", "podman", HEX, ""),
        (f"/libpod_parent/libpod-{HEX}", "podman", HEX, ""),
        (f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{POD.replace('-', '_')}.slice/"
         f"cri-containerd-{HEX}.scope", "containerd", HEX, POD),
        (f"/kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice/crio-{HEX}.scope", "cri-o", HEX, POD),
        (f"/kubepods/burstable/pod{POD}/{HEX}", "kubepods", HEX, POD),
        (f"/kubepods/pod{POD}/crio-{HEX}", "cri-o", HEX, POD),
        (f"/k8s.io/{HEX}", "containerd", HEX, ""),
        (f"/system.slice/nerdctl-{HEX}.scope", "containerd", HEX, ""),
        ("/lxc.payload.web 1/init.scope", "lxc", "web 1", ""),
        ("/lxc/db", "lxc", "db", ""),
        ("/lxc.payload/old", "lxc", "old", ""),
        (r"/machine.slice/machine-qemu\x2d3\x2dweb01.scope/emulator", "machine", "qemu-3-web01", ""),
        ("/machine.slice/systemd-nspawn@arch.service/payload/init.scope", "systemd-nspawn", "arch", ""),
    ],
)  # fmt: skip
def test_groups_of_containers(path: str, runtime: str, number: str, pod: str) -> None:
    found = container(path)
    assert found is not None
    assert (found.runtime, found.id, found.pod) == (runtime, number, pod)
    assert found.name == (number[:12] if number in (HEX, OTHER) else number)
    assert path.startswith(found.path)
    assert container(found.path) == found


@pytest.mark.parametrize(
    "path",
    [
        "/", "", "/init.scope", "/system.slice/ssh.service", "/user.slice/user-0.slice/session-1.scope", "/docker",
        f"/docker/{HEX[:-1]}", f"/not-docker/{HEX}", "/system.slice/docker-short.scope", f"/{HEX}", "/lxc.monitor.web",
        f"/machine.slice/libpod-conmon-{HEX}.scope", f"/crio-conmon-{HEX}.scope", f"/docker/{HEX.upper()}",
        f"/kubepods/besteffort/podless/{HEX}", "/lxc", "/lxc.payload.", f"/docker/{HEX}\n",
    ],
)  # fmt: skip
def test_groups_of_none(path: str) -> None:
    assert container(path) is None


def test_units() -> None:
    assert unit("/system.slice/system-getty.slice/getty@tty1.service") == "getty@tty1.service"
    assert unit("/user.slice/user-1.slice/user@1.service/app.slice/emacs.service") == "user@1.service"
    assert unit("/init.scope") == "init.scope"
    assert unit(f"/docker/{HEX}/system.slice/ssh.service") == ""
    assert unit("/") == unit("/system.slice") == unit("/.service") == ""


def populate(guest: LinuxGuest) -> dict[int, Task]:
    """A docker container with a nested namespace, one of v1, one that is a namespace only, and the machine."""
    box, inner, alone = (guest.new("pid_namespace", ns__inum=0xF0000200 + at) for at in range(3))
    root = guest.css_set(guest.root_cgroup)
    docker = guest.css_set(guest.cgroup(guest.cgroup(guest.root_cgroup, "docker"), HEX))
    old = guest.cgroup(guest.cgroup(0, ""), "docker")
    older = guest.css_set(guest.root_cgroup, guest.cgroup(old, OTHER))
    service = guest.css_set(guest.cgroup(guest.cgroup(guest.root_cgroup, "system.slice"), "a.service"))
    nsproxy = guest.new("nsproxy", net_ns=guest.init_net)
    made: tuple[tuple[int, str, int, tuple[tuple[int, int], ...]], ...] = (
        (1, "init", root, ()), (50, "shim", root, ()), (90, "late", docker, ((9, box),)),
        (100, "boxed", docker, ((1, box),)), (101, "nested", docker, ((7, box), (1, inner))), (110, "v1", older, ()),
        (111, "v1-child", older, ()), (120, "alone", root, ((1, alone),)), (130, "service", service, ()),
    )  # fmt: skip
    for pid, name, css_set, numbers in made:
        guest.give(guest.task(pid, name, numbers=numbers, start_boottime=pid), cgroups=css_set, nsproxy=nsproxy)
    return guest.tasks


@pytest.mark.parametrize(
    "kind", [{}, {"levels": 5, "scattered": True}, {"older": True}], ids=["newer", "scattered", "older"]
)
def test_containers(kind: dict[str, Any]) -> None:
    guest = LinuxGuest(**kind)
    populate(guest)
    guest.finish()
    table = containers(guest.kernel, ["id", "name", "runtime", "pid", "init", "processes", "cgroup_path",
                                      "pid_namespace", "net_namespace"])  # fmt: skip
    assert table.notes == ()
    assert [tuple(row) for row in table] == [
        (HEX, HEX[:12], "docker", 100, "boxed", 3, f"/docker/{HEX}", 0xF0000200, 0xF0000001, ""),
        (OTHER, OTHER[:12], "docker", 110, "v1", 2, f"/docker/{OTHER}", 0xEFFFFFFC, 0xF0000001, ""),
        ("4026532354", "4026532354", "namespaces", 120, "alone", 1, "/", 0xF0000202, 0xF0000001, ""),
    ]
    rows = {row.pid: row for row in processes(guest.kernel, ["pid", "container", "unit"])}
    assert [pid for pid, row in rows.items() if row.container == HEX] == [90, 100, 101]
    assert [pid for pid, row in rows.items() if row.container == OTHER] == [110, 111]
    assert rows[130].unit == "a.service"
    assert (rows[120].container, rows[1].unit) == ("", "")


def test_a_kernel_that_lacks_something_says_so() -> None:
    guest = LinuxGuest()
    populate(guest)
    guest.finish()
    table = containers(guest.kernel)
    assert len(table) == 3
    assert {note.partition(":")[0] for note in table.notes} == {"hostname", "mnt_namespace"}
    with pytest.raises(AttributeError, match="no column 'image'"):
        containers(guest.kernel, ["image"])


@pytest.mark.parametrize("wild", [NOWHERE, HOLE, (1 << 64) - 8, 8, 0x1234_5678_9ABC_DEF0])
def test_wild_groups_mark_their_own(wild: int) -> None:
    guest = LinuxGuest(scattered=True)
    tasks = populate(guest)
    guest.finish()
    head = tasks[110].task + guest.offset("task_struct", "cgroups")
    css_set = guest.space.read_u64(head)
    links = css_set + guest.offset("css_set", "cgrp_links")
    first = guest.space.read_u64(links)
    for at, value in ((head, wild), (links, wild), (first, wild), (first - 32, wild)):
        before = guest.space.read_u64(at)
        guest.word(at, value)
        rows = {row.pid: row for row in processes(guest.kernel, ["pid", "container"])}
        assert "control groups incomplete" in rows[110].fault
        assert not rows[100].fault
        assert rows[100].container == HEX
        table = containers(guest.kernel, ["id", "pid"])
        assert 100 in table.pid
        assert not table.fault[table.pid.tolist().index(100)]
        guest.word(at, before)


def test_hierarchies_in_a_circle_end() -> None:
    guest = LinuxGuest()
    tasks = populate(guest)
    guest.finish()
    css_set = guest.space.read_u64(tasks[110].task + guest.offset("task_struct", "cgroups"))
    first = guest.space.read_u64(css_set + guest.offset("css_set", "cgrp_links"))
    second = guest.space.read_u64(first)
    guest.word(second, first)
    rows = {row.pid: row for row in processes(guest.kernel, ["pid", "container"])}
    assert rows[100].fault == ""
    assert rows[110].container == OTHER


def test_a_pid_level_too_deep_to_be() -> None:
    guest = LinuxGuest()
    tasks = populate(guest)
    guest.put("pid", tasks[120].pid, level=(1 << 32) - 1)
    guest.finish()
    table = containers(guest.kernel, ["id", "pid", "processes", "pid_namespace"])
    assert set(table.pid.tolist()) >= {100, 110}


def test_no_processes_at_all() -> None:
    table = containers(LinuxGuest().finish().kernel)
    assert table.to_dicts() == []
