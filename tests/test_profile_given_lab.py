"""Profiles out of files: for a kernel whose memory was robbed of its types and symbols, and refused for another one."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import vmi_inside
from tests.lab.guest import LabGuest
from vmi_inside import __version__, rescue
from vmi_inside.errors import GuestGone, UnknownKernel, WrongProfile
from vmi_inside.guest import Guest, _watch
from vmi_inside.profile.isf import isf
from vmi_inside.profile.rekall import rekall, system_map

STRUCTS = ("task_struct", "mm_struct", "sock_common", "module", "inode", "super_block", "net")
COLUMNS = ("pid", "parent", "name", "uid", "state", "cmdline")
COMMAND = [sys.executable, "-W", "error", "-m", "vmi_inside.cli"]
Robbed = tuple[Path, Path, dict[str, Path], Guest]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)


def wipe(guest: Guest, image: bytearray, first: str, last: str) -> None:
    """Zeros in the image from one symbol to another one."""
    begin, end = guest.kernel.symbol(first), guest.kernel.symbol(last)
    pages, mapped = guest.kernel.space.translate(np.array([begin], dtype=np.uint64))
    assert mapped.all()
    assert 0 < end - begin < 64 << 20
    image[int(pages[0]) : int(pages[0]) + end - begin] = bytes(end - begin)


@pytest.fixture(scope="module")
def robbed(lab_boot: Callable[..., LabGuest], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Robbed]:
    """A dump without BTF, one without kallsyms as well, and profiles of its kernel in every form."""
    folder = tmp_path_factory.mktemp("given")
    lab = lab_boot()
    with lab.attach() as guest:
        image = bytearray(max(run.end for run in guest.memory.runs))
        for run in guest.memory.runs:
            image[run.start : run.end] = guest.memory.read(run.start, run.size) or b""
        profile = guest.kernel.profile
        wipe(guest, image, "__start_BTF", "__stop_BTF")
        (folder / "typeless.raw").write_bytes(image)
        tokens = b"".join(b"%d\0" % digit for digit in range(10))  # as every table of kallsyms' tokens has them
        assert tokens in image
        image = image.replace(tokens, bytes(len(tokens)))
        (folder / "nameless.raw").write_bytes(image)
        table = isf(profile, __version__)
        files = {name: folder / name for name in ("isf.json", "isf.json.xz", "rekall.json", "System.map", "raw.btf")}
        files["isf.json"].write_text(json.dumps(table))
        files["isf.json.xz"].write_bytes(lzma.compress(json.dumps(table).encode(), preset=0))
        files["rekall.json"].write_text(json.dumps(rekall(table, profile.release)))
        files["System.map"].write_text("".join(f"{line}\n" for line in system_map(profile)))
        files["raw.btf"].write_bytes(bytes(profile.types.raw))
        yield folder / "typeless.raw", folder / "nameless.raw", files, guest


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No profile of before helps."""
    monkeypatch.setenv("VMI_INSIDE_CACHE", str(tmp_path))


def test_without_a_profile_it_says_what_is_missing(robbed: Robbed) -> None:
    with pytest.raises(UnknownKernel, match=r"type information \(BTF\) that is damaged"):
        vmi_inside.attach(f"file:{robbed[0]}")


@pytest.mark.parametrize("names", ["isf.json", "isf.json.xz", "rekall.json", "raw.btf", "System.map,raw.btf"])
@pytest.mark.filterwarnings("ignore::vmi_inside.guest.Notice")
def test_every_form_serves(robbed: Robbed, names: str, tmp_path: Path) -> None:
    typeless, nameless, files, guest = robbed
    given = ",".join(str(files[name]) for name in names.split(","))
    known = guest.kernel.profile
    for image in (typeless, nameless) if names != "raw.btf" else (typeless,):
        with vmi_inside.attach(f"file:{image}", profile=given) as seen:
            learned = seen.kernel.profile
            assert (learned.origin, learned.banner, learned.build_id) == (known.origin, known.banner, known.build_id)
            for name in STRUCTS:
                for member in known.struct(name).members:
                    ours, theirs = known.struct(name).member(member), learned.struct(name).member(member)
                    assert (theirs.offset, theirs.bit_size) == (ours.offset, ours.bit_size), f"{name}.{member}"
            rows = {row.pid: row.name for row in seen.processes(columns=COLUMNS)}
            assert rows[1] == "workload"
            assert len(rows) > 50
            assert len(seen.kernel_modules()) > 5
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::vmi_inside.guest.Notice")
def test_questions_and_comparisons_take_one(robbed: Robbed) -> None:
    _, nameless, files, _ = robbed
    image = f"file:{nameless}"
    given = ["--profile", str(files["isf.json"])]
    asked = run("sql", image, "select name from processes where pid = 1", "--format", "csv", *given)
    assert asked.stdout.splitlines()[-1] == "workload", asked.stderr
    compared = run("diff", image, image, "-t", "processes", *given)
    assert (compared.returncode, compared.stderr) == (0, "")
    assert run("sql", image, "select 1 from processes").returncode != 0


def test_who_lets_a_guest_go_has_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is started."""
    monkeypatch.chdir(tmp_path)
    with _watch("qmp:/nowhere", None, False, "a.json,b.json") as watcher:
        words = [b""]
        while words == [b""]:  # it has begun, but not yet as what it is
            words = Path(f"/proc/{watcher.pid}/cmdline").read_bytes().split(b"\0")
        assert f"{tmp_path}/a.json,{tmp_path}/b.json".encode() in words
        assert watcher.stdin is not None
        watcher.stdin.close()
    asked: list[dict[str, object]] = []

    def attach(target: str, **options: object) -> None:
        asked.append({"target": target, **options})
        raise GuestGone(target)

    monkeypatch.setattr("vmi_inside.guest.attach", attach)
    rescue._rescue("qmp:/nowhere", "", "", f"{tmp_path}/a.json")
    assert [one["profile"] for one in asked] == [f"{tmp_path}/a.json"]


def test_another_kernels_is_refused_and_both_are_named(robbed: Robbed, tmp_path: Path) -> None:
    _, nameless, files, guest = robbed
    table = json.loads(files["isf.json"].read_text())
    other = tmp_path / "other.json"
    table["symbols"]["linux_banner"]["constant_data"] = "TGludXggdmVyc2lvbiA1LjQuMC05OSAoeEB5KSAjMQoA"  # 5.4.0-99
    other.write_text(json.dumps(table))
    for image in (robbed[0], nameless):
        with pytest.raises(WrongProfile, match=r"5\.4\.0-99") as refused:
            vmi_inside.attach(f"file:{image}", profile=other)
        assert guest.kernel.profile.release in str(refused.value)
    moved = tmp_path / "System.map"
    moved.write_text(files["System.map"].read_text().replace(" D init_task\n", " D not_it\n", 1))
    text = moved.read_text() + f"{0xFFFFFFFF81000040:016x} D init_task\n"
    moved.write_text(text)
    with pytest.raises(WrongProfile, match="init_task"):
        vmi_inside.attach(f"file:{robbed[0]}", profile=f"{moved},{files['raw.btf']}")
