"""Containers, held against /proc/PID/cgroup and the namespaces of every process of the guest."""

from __future__ import annotations

import re

from tests.lab.guest import LabGuest
from tests.proc import whole

HEX = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789ab"
POD = "6f3a2c1d-aaaa-bbbb-cccc-0123456789ab"
#: By the name of its first process: runtime, name, pod, how many processes, and the end of its group's path.
EXPECTED = {
    "c-docker-1-init": ("docker", HEX[:12], "", 2, f"/docker-{HEX}0001.scope"),
    "c-docker-2": ("docker", HEX[:12], "", 2, f"/docker/{HEX}0002"),
    "c-podman": ("podman", HEX[:12], "", 2, f"/libpod-{HEX}0003.scope"),
    "c-containerd": ("containerd", HEX[:12], POD, 1, f"/cri-containerd-{HEX}0004.scope"),
    "c-crio": ("cri-o", HEX[:12], POD, 1, f"/crio-{HEX}0005.scope"),
    "c-kubepods": ("kubepods", HEX[:12], POD[:-2] + "ff", 1, f"/{HEX}0006"),
    "c-lxc-1": ("lxc", "web 1", "", 1, "/lxc.payload.web 1"),
    "c-lxc-2": ("lxc", "db", "", 1, "/lxc/db"),
    "c-machine": ("machine", "qemu-1-vm", "", 1, "/machine-qemu\\x2d1\\x2dvm.scope"),
    "c-nspawn": ("systemd-nspawn", "arch", "", 2, "/systemd-nspawn@arch.service"),
    "v1-docker": ("docker", HEX[:12], "", 1, f"/docker/{HEX}1001"),
    "v1-kubepods": ("kubepods", HEX[:12], "aaaaaaaa-aaaa-bbbb-cccc-0123456789ff", 1, f"/{HEX}1002"),
    "box-init": ("systemd", "box\\x2d1.scope", "", 6, "/box\\x2d1.scope"),
}
UNITS = {
    "c-unit": "nginx.service", "c-session": "session-2.scope", "c-user-unit": "user@1000.service",
    "c-docker-in": "", "c-docker-1-init": f"docker-{HEX}0001.scope", "v1-unit": "cron.service", "sleeper-0": "",
}  # fmt: skip


def test_containers_of_every_kind(lab_each: LabGuest) -> None:
    told = lab_each.ask("cd /proc; grep -aH '' [0-9]*/cgroup 2>/dev/null; true", timeout=120)
    groups: dict[int, set[str]] = {}
    for pid, path in re.findall(r"^(\d+)/cgroup:\d+:[^:]*:(.*)$", told, re.MULTILINE):
        groups.setdefault(int(pid), set()).add(path)
    with lab_each.attach() as seen:
        table = whole(seen.containers())
        assert {row.init: (row.runtime, row.name, row.pod, row.processes) for row in table} == {
            name: expected[:4] for name, expected in EXPECTED.items()
        }
        for row in table:
            assert row.cgroup_path.endswith(EXPECTED[row.init][4])
            assert row.cgroup_path in groups[row.pid]
            links = lab_each.ask(f"ls -l /proc/{row.pid}/ns/")
            for kind in ("pid", "net", "mnt"):
                assert f"{kind}:[{getattr(row, f'{kind}_namespace')}]" in links
            assert row.hostname == ("box" if row.init == "box-init" else "lab")

        processes = whole(seen.processes(["pid", "name", "container", "unit", "cgroup_path"]))
        by_id = {row.id: row for row in table}
        count = dict.fromkeys(by_id, 0)
        for row in processes:
            if not row.container:
                continue
            count[row.container] += 1
            root = by_id[row.container].cgroup_path
            assert any(path == root or path.startswith(f"{root}/") for path in groups[row.pid]), row
        for number, found in count.items():
            assert found == (by_id[number].processes if by_id[number].runtime != "systemd" else 0)
        units = {row.name: row.unit for row in processes}
        assert {name: units[name] for name in UNITS} == UNITS
        for name in ("c-false-1", "c-false-2", "c-conmon", "c-lxc-monitor"):
            assert [row.container for row in processes if row.name == name] == [""]
