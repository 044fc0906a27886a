"""What others say who have the kernel's debug package: its DWARF and System.map, and crash on our dumps.

Opt-in, by `--debug-package`: the packages are fetched once, and weigh more than all else here.
"""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import drgn
import pytest

import vmi_inside
from tests.lab.crash import crash
from tests.lab.debuginfo import debug_vmlinux
from tests.lab.guest import LabGuest
from vmi_inside.profile import btf
from vmi_inside.profile.isf import isf
from vmi_inside.profile.profile import LINKED_AT, Profile
from vmi_inside.profile.rekall import system_map

pytestmark = [pytest.mark.lab, pytest.mark.debug_package]

#: By name: size, and each member's first bit and, of bit fields, their number.
Layout = tuple[int, dict[str, tuple[int, int | None]]]


def of_isf(types: dict[str, Any], struct: dict[str, Any], at: int = 0) -> Iterator[tuple[str, tuple[int, int | None]]]:
    for name, field in struct["fields"].items():
        kind = field["type"]
        if field.get("anonymous"):
            yield from of_isf(types, types[kind["name"]], at + field["offset"])
        else:
            yield name, (8 * (at + field["offset"]) + kind.get("bit_position", 0), kind.get("bit_length"))


def of_dwarf(struct: drgn.Type, at: int = 0) -> Iterator[tuple[str, tuple[int, int | None]]]:
    for member in struct.members:
        if member.name is None:
            yield from of_dwarf(member.type, at + member.bit_offset)
        else:
            yield member.name, (at + member.bit_offset, member.bit_field_size)


@pytest.fixture(scope="module")
def core(lab_boot: Callable[..., LabGuest], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dump") / "core"
    with lab_boot().attach() as seen:
        seen.dump(path)
    return path


@pytest.fixture(scope="module")
def learned(core: Path) -> Profile:
    with vmi_inside.attach(f"file:{core}") as image:
        return image.kernel.profile


def test_all_structs_are_as_dwarf_has_them(core: Path, learned: Profile) -> None:
    program = drgn.Program()
    program.set_core_dump(core)
    program.load_debug_info([debug_vmlinux("6.1-cloud")])
    types = isf(learned, "test")["user_types"]
    members, differing = 0, {}
    for name, one in types.items():
        try:
            theirs = program.type(f"{one['kind']} {name}")
        except LookupError:  # nameless, a local name's second, or of an assembler's file
            continue
        ours: Layout = one["size"], dict(of_isf(types, one))
        layout: Layout = theirs.size, dict(of_dwarf(theirs))
        if ours == layout:
            members += len(ours[1])
        else:
            differing[name] = layout
    assert members > 45_000
    # Builds have several structs of one name, local to their files: drgn gives another of them than we call so.
    assert len(differing) < 10
    for name, layout in differing.items():
        every = [*learned.types.ids(name, btf.STRUCT, btf.UNION)]
        assert len(every) > 1, f"{name} is another in DWARF"
        others = [types[label] for one in every for label in (name, f"{name}_{one:x}") if label in types]
        assert layout in [(one["size"], dict(of_isf(types, one))) for one in others], name


def test_all_symbols_are_where_system_map_has_them(learned: Profile) -> None:
    ours, theirs = defaultdict(set), defaultdict(set)
    told = debug_vmlinux("6.1-cloud").with_name("System.map").read_text().splitlines()
    for into, lines in ((ours, system_map(learned)), (theirs, told)):
        for line in lines:
            address, _, name = line.split()
            into[name].add(int(address, 16))
    both = ours.keys() & theirs.keys()
    assert len(both) > 80_000
    assert {name for name in both if ours[name] != theirs[name]} == set()
    assert ours.keys() <= theirs.keys()
    assert learned.symbol("_text") - learned.slide == LINKED_AT


@pytest.mark.parametrize("shape", [{}, {"cpu": "la57-off"}], ids=["la57", "la57-off"])
@pytest.mark.parametrize("pause", [False, True], ids=["live", "paused"])
def test_crash_opens_a_core(
    lab_boot: Callable[..., LabGuest], shape: dict[str, str], pause: bool, tmp_path: Path
) -> None:
    """Not the cloud kernel: crash fails on kernels without machine checks, on QEMU's own dumps as well."""
    guest = lab_boot(kernel="6.1", **shape)
    core, small = tmp_path / "core", tmp_path / "small"
    with guest.attach(pausing=pause) as seen:
        seen.dump(core, pause=pause)
    with vmi_inside.attach(f"file:{core}") as image:
        tasks = {row.tid for row in image.threads(columns=("tid",))}
        modules = {row.name: row.address for row in image.kernel_modules()}
    vmlinux = debug_vmlinux("6.1")
    said = crash(vmlinux, core, "ps", "mod", "bt 1", "bt -c 0")
    rows = [line.lstrip(">").split() for line in said.splitlines()]
    theirs = {int(row[0]) for row in rows if len(row) >= 8 and row[0].isdigit() and row[3].startswith("ff")} - {0}
    assert theirs == tasks
    assert {row[1]: int(row[0], 16) for row in rows if len(row) > 4 and row[2].startswith("ffffffffc")} == modules
    assert "entry_SYSCALL_64_after_hwframe" in said
    assert not pause or "exception RIP" in said
    if pause:
        subprocess.run(["makedumpfile", "-l", "-d", "31", core, small], check=True, capture_output=True)
        again = crash(vmlinux, small, "ps", "mod")
        assert again.count("\n") > len(tasks)
