"""Environments, namespaces, credentials, limits and signals, held against /proc/PID of every process of the guest."""

from __future__ import annotations

import re
from typing import Any

from tests.lab.guest import LabGuest
from tests.proc import lasting, lines, status, whole
from vmi_inside.linux.processes.credentials import CAPABILITIES, capability
from vmi_inside.linux.processes.signals import signal_name

UNLIMITED = (1 << 64) - 1
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


def test_environments(lab_each: LabGuest) -> None:
    with lab_each.attach() as seen:

        def differences() -> dict[Any, object]:
            # busybox's head marks where each file begins; no variable here has such a line in it
            told = lab_each.ask("cd /proc; head -v -c 300000 [0-9]*/environ 2>/dev/null; true", timeout=120)
            parts = re.findall(r"^==> (\d+)/environ <==\n(.*?)(?=^\n?==> \d+/environ <==\n|\Z)", told, re.M | re.S)
            inside = {int(pid): [part for part in text.rstrip("\n").split("\0") if part] for pid, text in parts}
            outside: dict[int, list[str]] = {pid: [] for pid in inside}
            for row in whole(seen.process_envs()):
                outside.setdefault(row.pid, []).append(f"{row.key}={row.value}")
            assert sum(map(len, inside.values())) > 1000
            return {pid: (inside.get(pid), outside.get(pid)) for pid in inside | outside
                    if inside.get(pid, []) != outside.get(pid)}  # fmt: skip

        assert lasting(lab_each, differences) == {}
        few = seen.process_envs(["key", "value"], pids=[1])
        assert ("HOME", "/root", "") in set(few)


def test_namespaces(lab_each: LabGuest) -> None:
    def inside() -> dict[int, dict[str, int]]:
        told = lab_each.ask("cd /proc; ls -l [0-9]*/ns/ 2>/dev/null; true", timeout=120)
        found: dict[int, dict[str, int]] = {}
        pid = 0
        for line in told.splitlines():
            if match := re.match(r"(\d+)/ns/:", line):
                pid = int(match[1])
                found[pid] = {}
            elif match := re.search(r" (\w+) -> (\w+):\[(\d+)\]", line):
                found[pid][match[1]] = int(match[3])
        return found

    with lab_each.attach() as seen:

        def differences() -> dict[Any, object]:
            told, numbers = inside(), status(lab_each)
            wrong: dict[Any, object] = {}
            for row in whole(seen.process_namespaces()):
                if row.pid not in told or row.pid not in numbers:
                    continue
                mine = {kind: getattr(row, f"{kind}_namespace") for kind in NAMESPACES}
                if any(mine[kind] != told[row.pid].get(kind, 0) for kind in NAMESPACES):
                    wrong[row.pid] = (mine, told[row.pid])
                if row.pid_in_namespace != int(numbers[row.pid]["NSpid"].split()[-1]):
                    wrong[row.pid, "pid"] = (row, numbers[row.pid]["NSpid"])
            return wrong

        assert lasting(lab_each, differences) == {}
        table = seen.process_namespaces()
        for kind in ("mnt", "net", "pid", "user", "uts", "ipc"):
            assert len(set(table.column(f"{kind}_namespace").tolist()) - {0}) > 1, kind


def test_credentials(lab_each: LabGuest) -> None:
    def mine(row: Any) -> dict[str, str]:
        return {
            "Uid": f"{row.uid}\t{row.euid}\t{row.suid}\t{row.fsuid}",
            "Gid": f"{row.gid}\t{row.egid}\t{row.sgid}\t{row.fsgid}",
            "Groups": row.groups.replace(",", " "),
            "CapInh": f"{row.inheritable_mask:016x}",
            "CapPrm": f"{row.permitted_mask:016x}",
            "CapEff": f"{row.effective_mask:016x}",
            "CapBnd": f"{row.bounding_mask:016x}",
            "CapAmb": f"{row.ambient_mask:016x}",
            "NoNewPrivs": str(int(row.no_new_privs)),
            "Seccomp": str(("disabled", "strict", "filter").index(row.seccomp)),
            "Seccomp_filters": str(row.seccomp_filters),
        }

    with lab_each.attach() as seen:

        def differences() -> dict[Any, object]:
            told = status(lab_each)
            more = {name: lines(lab_each, name) for name in ("attr/current", "loginuid", "sessionid")}
            wrong: dict[Any, object] = {}
            table = whole(seen.process_credentials())
            assert len(told.keys() & set(table.pid.tolist())) > 250
            for row in table:
                if row.pid not in told:
                    continue
                for name, value in mine(row).items():
                    if told[row.pid].get(name, value) != value:  # 5.10 does not count filters
                        wrong[row.pid, name] = (value, told[row.pid][name])
                for name, value in (("loginuid", row.loginuid), ("sessionid", row.sessionid)):
                    if more[name].get(row.pid) != str(value % (1 << 32)):
                        wrong[row.pid, name] = (value, more[name].get(row.pid))
                if more["attr/current"].get(row.pid, "") != row.label:
                    wrong[row.pid, "label"] = (row.label, more["attr/current"].get(row.pid))
            return wrong

        assert lasting(lab_each, differences) == {}
        rows = {row.name: row for row in seen.process_credentials()}
        some = rows["some-caps"]
        assert (some.inheritable, some.ambient) == ("cap_chown,cap_net_raw", "cap_net_raw")
        assert some.effective == "cap_chown"
        assert some.permitted == "cap_chown,cap_net_bind_service,cap_net_raw,cap_syslog"
        assert set(CAPABILITIES) - {each.removeprefix("cap_") for each in some.bounding.split(",")} == {
            "sys_admin", "audit_read",
        }  # fmt: skip
        assert rows["secure-bits"].securebits == "noroot,noroot_locked,no_cap_ambient_raise"
        assert (rows["two-filters"].seccomp, rows["two-filters"].seccomp_filters) == ("filter", 2)
        assert rows["strict"].seccomp == "strict"
        assert rows["no-new-privs"].no_new_privs
        assert rows["logged-in"].loginuid == 1234
        assert rows["ids"].groups == "4001,4002,4003"
        assert capability(99) == "99"


def test_limits(lab_each: LabGuest) -> None:
    def inside() -> dict[tuple[int, str], tuple[int, int, str]]:
        told = lab_each.ask("cd /proc; grep -aH ^Max [0-9]*/limits 2>/dev/null; true", timeout=120)
        found = {}
        for line in told.splitlines():
            head, _, rest = line.partition(":")
            pid, name = int(head.split("/")[0]), rest[:25].rstrip()
            soft, hard, *unit = rest[25:].split()
            number = [UNLIMITED if each == "unlimited" else int(each) for each in (soft, hard)]
            found[pid, name] = (number[0], number[1], unit[0] if unit else "")
        return found

    with lab_each.attach() as seen:

        def differences() -> dict[Any, object]:
            told = inside()
            outside = {(row.pid, row.resource): (row.soft, row.hard, row.unit) for row in whole(seen.process_limits())}
            assert len(told.keys() & outside.keys()) > 4000
            return {key: (told.get(key), outside.get(key)) for key in told | outside
                    if told.get(key) != outside.get(key)}  # fmt: skip

        assert lasting(lab_each, differences) == {}
        table = seen.process_limits()
        mine = {row.resource: (row.soft, row.hard) for row in table.where(table.name == "limited")}
        assert mine["Max open files"] == (77, 88)
        assert mine["Max core file size"] == (UNLIMITED, UNLIMITED)


def test_signals(lab_each: LabGuest) -> None:
    names = {"SigPnd": "pending", "ShdPnd": "shared", "SigBlk": "blocked", "SigIgn": "ignored", "SigCgt": "caught"}
    with lab_each.attach() as seen:

        def differences() -> dict[Any, object]:
            told = status(lab_each)
            table = whole(seen.process_signals())
            assert len(told.keys() & set(table.pid.tolist())) > 250
            wrong: dict[Any, object] = {}
            for row in table:
                if row.pid not in told:
                    continue
                for name, column in names.items():
                    mask = getattr(row, f"{column}_mask")
                    if told[row.pid][name] != f"{mask:016x}":
                        wrong[row.pid, name] = (f"{mask:016x}", told[row.pid][name])
                    bits = [signal_name(bit + 1) for bit in range(64) if mask >> bit & 1]
                    assert getattr(row, column) == ",".join(bits)
                if int(told[row.pid]["TracerPid"]) != row.tracer:
                    wrong[row.pid, "tracer"] = (row.tracer, told[row.pid]["TracerPid"])
            return wrong

        assert lasting(lab_each, differences) == {}
        rows = {row.name: row for row in seen.process_signals()}
        one = rows["signals"]
        assert (one.pending, one.shared, one.blocked) == ("RTMIN+3", "USR1", "USR1,RTMIN+3")
        assert {"HUP", "PIPE", "TERM", "RTMIN+1"} <= set(one.ignored.split(","))
        assert {"INT", "USR2", "RTMIN+30"} <= set(one.caught.split(","))
        assert (rows["stopped"].stop_signal, rows["stopped-tstp"].stop_signal) == ("STOP", "TSTP")
        tracee, tracer = rows["tracee"], rows["tracer"]
        assert (tracee.stop_signal, tracee.tracer, tracee.ptrace) == ("STOP", tracer.pid, "")
        assert tracer.tracees == str(tracee.pid)
        seized, seizer = rows["seized"], rows["seizer"]
        assert (seized.tracer, seizer.tracees) == (seizer.pid, str(seized.pid))
        assert seized.ptrace == "tracesysgood,tracefork,seized,exitkill"
        assert {row.name for row in rows.values() if row.stop_signal} == {"stopped", "stopped-tstp", "tracee"}
