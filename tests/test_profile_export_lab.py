"""Profiles for Rekall and LibVMI, and structs as pahole shows them: held against the guest and our own reading."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from libvmi import Libvmi, VMIConfig
from libvmi.libvmi import VMIOS

import vmi_inside
from tests.lab.guest import LabGuest
from vmi_inside import __version__
from vmi_inside.errors import NoMember
from vmi_inside.profile.cache import Cache
from vmi_inside.profile.declare import printed
from vmi_inside.profile.isf import isf
from vmi_inside.profile.plain import plain
from vmi_inside.profile.rekall import libvmi, rekall, system_map
from vmi_inside.profiles import profiles, remove

STRUCTS = ("task_struct", "mm_struct", "file", "sock_common", "module", "cred", "net", "super_block", "inode")
MEMBERS = (("task_struct", "tasks"), ("task_struct", "comm"), ("mm_struct", "pgd"), ("file", "f_pos"), ("cred", "euid"))
SECTIONS = {"$METADATA", "$STRUCTS", "$CONSTANTS", "$FUNCTIONS", "$ENUMS", "$REVENUMS", "$CONSTANT_TYPES"}


def command(guest: LabGuest, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LIBVIRT_DEFAULT_URI": guest.uri or ""}
    return subprocess.run(
        [sys.executable, "-m", "vmi_inside.cli", "profile", *arguments],
        capture_output=True, text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip


def test_rekall_says_what_we_say(lab_guest: LabGuest) -> None:
    with lab_guest.attach() as seen:
        profile = seen.kernel.profile
        made = rekall(isf(profile, __version__), profile.release)
    assert set(made) == SECTIONS
    for name in STRUCTS:
        size, members = made["$STRUCTS"][name]
        ours = profile.struct(name)
        assert size == ours.size
        for member, (offset, _) in members.items():
            assert offset == ours.member(member).offset, f"{name}.{member}"
    assert made["$STRUCTS"]["sock_common"][1]["skc_daddr"] == [0, ["unsigned int", None]]
    assert made["$STRUCTS"]["list_head"][1]["prev"] == [8, ["Pointer", {"target": "list_head"}]]
    kind, told = made["$STRUCTS"]["task_struct"][1]["in_execve"][1]
    assert kind == "BitField"
    assert told["end_bit"] - told["start_bit"] == 1
    assert made["$ENUMS"]["pid_type"]["1"] == "PIDTYPE_TGID"
    assert made["$REVENUMS"]["pid_type"]["PIDTYPE_TGID"] == 1
    assert made["$CONSTANT_TYPES"]["init_task"] == ["task_struct", None]
    assert made["$FUNCTIONS"]["schedule"] + profile.slide == profile.symbol("schedule")
    assert made["$CONSTANTS"]["init_task"] + profile.slide == profile.symbol("init_task")


def test_system_map_and_libvmis_entry(lab_guest: LabGuest) -> None:
    told = lab_guest.ask("awk '$4 == \"\" && ++n % 97 == 0' /proc/kallsyms", timeout=120)
    with lab_guest.attach() as seen:
        profile = seen.kernel.profile
        lines = set(system_map(profile))
        entry = libvmi(profile, seen.kernel.space.root, 'a"} x', "sysmap", "/boot/System.map")
    for line in told.splitlines():
        address, letter, name = line.split()[:3]
        at = int(address, 16)
        assert {f"{at:016x} {letter} {name}", f"{at - profile.slide:016x} {letter} {name}"} & lines, line
    assert entry.splitlines()[1] == "a__ x {"
    task = profile.struct("task_struct")
    assert f"linux_tasks = {task.member('tasks').offset:#x};" in entry
    assert f"linux_kaslr = {profile.slide:#x};" in entry


def test_libvmi_itself_takes_them(lab_boot: Callable[..., LabGuest], tmp_path: Path) -> None:
    """The list of processes by LibVMI's reading, with symbols and offsets that it has from the entry.

    Its FILE driver knows no registers, from which it would learn how pages are translated: that is done by us. Its
    wheel's json-c has no unsigned numbers, so that addresses of symbols are asked for by System.map alone.
    """
    raw = tmp_path / "guest.raw"
    with lab_boot(cpu="la57-off").attach() as seen:
        seen.dump(raw, format="raw")
    with vmi_inside.attach(f"file:{raw}") as image:
        profile, space = image.kernel.profile, image.kernel.space
        names = {row.pid: row.name for row in image.processes(columns=("pid", "name"))}
        map_path = tmp_path / "System.map"
        map_path.write_text("".join(f"{line}\n" for line in system_map(profile)))
        entry = libvmi(profile, space.root, "x", "sysmap", str(map_path))
        with Libvmi(str(raw), config_mode=VMIConfig.STRING, config=entry[entry.index("{") :]) as theirs:
            assert theirs.get_ostype() == VMIOS.LINUX
            for symbol in ("init_task", "linux_banner", "schedule", "_text"):
                assert theirs.translate_ksym2v(symbol) == profile.symbol(symbol)
            tasks, pid, comm = (theirs.get_offset(f"linux_{name}") for name in ("tasks", "pid", "name"))
            head = at = theirs.translate_ksym2v("init_task") + tasks
            found: dict[int, bytes] = {}
            for _ in range(len(names) + 2):
                number = theirs.read_32_pa(space.translate_one(at - tasks + pid))
                found[number] = theirs.read_pa(space.translate_one(at - tasks + comm), 16)[0].partition(b"\0")[0]
                at = theirs.read_64_pa(space.translate_one(at))
                if at == head:
                    break
        assert found.keys() - {0} == names.keys()
        plain = {number: name for number, name in names.items() if name.isidentifier() and len(name) < 16}
        assert len(plain) > 30
        assert {number: found[number].decode() for number in plain} == plain
        hints = " ".join(
            line for line in entry.splitlines() if "init_task" in line or "kaslr" in line or "kpgd" in line
        )
        table = isf(profile, __version__)
        forms = {"rekall_profile": rekall(table, profile.release), "volatility_ist": table}
        for key, told in forms.items():
            path = tmp_path / f"{key}.json"
            path.write_text(json.dumps(told))
            config = f'{{ostype = "Linux"; {key} = "{path}"; {hints}}}'
            with Libvmi(str(raw), config_mode=VMIConfig.STRING, config=config) as theirs:
                for struct, member in MEMBERS:
                    expected = profile.struct(struct).member(member).offset
                    assert theirs.get_kernel_struct_offset(struct, member) == expected, f"{key}: {struct}.{member}"


def test_plain(lab_guest: LabGuest) -> None:
    with lab_guest.attach() as seen:
        profile = seen.kernel.profile
        made = plain(profile)
    assert made["kernel"]["release"] == lab_guest.ask("uname -r").strip()
    assert made["symbols"]["schedule"] == [{"address": profile.symbol("schedule"), "type": "T"}]
    tasks = made["structs"]["task_struct"]["members"]["tasks"]
    assert tasks == {
        "offset": profile.struct("task_struct").member("tasks").offset,
        "size": 16,
        "type": "struct list_head",
    }
    assert made["enums"]["pid_type"]["PIDTYPE_PID"] == 0


def test_structs_are_shown_in_c(lab_guest: LabGuest) -> None:
    with lab_guest.attach() as seen:
        profile = seen.kernel.profile
    lines = list(printed(profile.types, "struct file_operations"))
    assert re.sub(" +", " ", lines[2]) == " loff_t (*llseek)(struct file *, loff_t, int); /* 8 8 */"
    seen_members = 0
    for line in printed(profile.types, "task_struct"):
        found = re.match(r"    \w[^{}]*?(\w+)(?:\[\d+\])*; +/\* +(\d+) +(\d+) \*/$", line)
        if found:
            member = profile.struct("task_struct").member(found[1])
            assert (member.offset, member.size) == (int(found[2]), int(found[3])), line
            seen_members += 1
    assert seen_members > 100
    assert "    PIDTYPE_TGID = 1," in list(printed(profile.types, "pid_type"))
    with pytest.raises(NoMember):
        list(printed(profile.types, "nosuch"))


def test_the_commands(lab_guest: LabGuest, tmp_path: Path) -> None:
    path = tmp_path / "guest.conf"
    assert command(lab_guest, "export", lab_guest.target, "--as", "libvmi").returncode == 2
    done = command(lab_guest, "export", lab_guest.target, "--as", "libvmi", "-o", str(path))
    assert done.returncode == 0, done.stderr
    beside = tmp_path / "guest.conf.System.map"
    assert f'sysmap = "{beside}";' in path.read_text()
    assert " schedule\n" in beside.read_text()
    done = command(lab_guest, "export", lab_guest.target, "--as", "rekall")
    assert set(json.loads(done.stdout)) == SECTIONS
    done = command(lab_guest, "show", lab_guest.target, "list_head")
    assert done.stdout.splitlines()[0] == "struct list_head {"
    assert command(lab_guest, "show", lab_guest.target, "nosuch").returncode == 6


def test_kept_profiles_are_listed_and_removed(lab_guest: LabGuest, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with lab_guest.attach() as seen:
        build = seen.kernel.profile.build
    cache.save(build.banner, build.build_id, build.meta(), build.arrays())
    (cache.folder / "0123-dead.profile").write_bytes(b"x" * 100)
    rows = {row.build_id: row for row in profiles(cache)}
    assert rows[build.build_id].release == build.release
    assert not rows[build.build_id].fault
    assert rows["dead"].fault
    assert [one.build_id for one in remove(build.build_id[:12], cache)] == [build.build_id]
    assert not remove("", cache)
    assert [row.build_id for row in profiles(cache)] == ["dead"]
