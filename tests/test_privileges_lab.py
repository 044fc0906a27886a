"""What commands need and may do on the host: as other users, with single privileges, and under strace."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.guest import LabGuest

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else"),
]

NOBODY = 65534
SYS_PTRACE = 19
#: All the capabilities that root has here.
ALL = int(re.search(r"^CapPrm:\t(\w+)", Path("/proc/self/status").read_text(), re.M)[1], 16)  # type: ignore[index]
#: Becomes another user with some capabilities and no others, when all that may be needed was imported: where Python
#: and this project lie may be root's alone.
BECOME = """
import ctypes, importlib, os, pkgutil, sys
import vmi_inside.cli, numpy, rich.console, libvirt, libvirt_qemu, platformdirs
for one in pkgutil.walk_packages(vmi_inside.__path__, "vmi_inside."):
    if not one.name.startswith(("vmi_inside.bridges", "vmi_inside.cli.__main__", "vmi_inside.drivers.libvmi")):
        importlib.import_module(one.name)
from vmi_inside.profile import profile
profile._globals()
user, group, keep = (int(word, 0) for word in sys.argv[1:4])
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
os.setgroups([]); os.setresgid(group, group, group); os.setresuid(user, user, user)
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
data = (ctypes.c_uint32 * 6)(keep & 0xFFFFFFFF, keep & 0xFFFFFFFF, 0, keep >> 32, keep >> 32, 0)
assert libc.capset(header, data) == 0
sys.argv = ["vmi-inside", *sys.argv[4:]]
os.chdir("/")
vmi_inside.cli.main()
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that everybody may enter: pytest's own are root's."""
    made = Path(tempfile.mkdtemp(prefix="vmi-privileges-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def run_as(
    home: Path, *words: object, user: int = NOBODY, keep: int = 0, guest: LabGuest | None = None
) -> subprocess.CompletedProcess[str]:
    """The command as that user, with these capabilities (a mask) and no group but its own."""
    mine = home / f"of-{user}"
    if not mine.exists():
        mine.mkdir(mode=0o700)
        os.chown(mine, user, user)
    environment = {
        **os.environ, "HOME": str(mine), "XDG_STATE_HOME": f"{mine}/state", "VMI_INSIDE_CACHE": f"{mine}/cache",
    }  # fmt: skip
    if guest is not None and guest.uri:
        environment["LIBVIRT_DEFAULT_URI"] = guest.uri
    return subprocess.run(
        [sys.executable, "-c", BECOME, str(user), str(user), hex(keep), *map(str, words)],
        capture_output=True, text=True, env=environment, timeout=120, check=False, umask=0,
    )  # fmt: skip


def test_a_dump_needs_the_right_to_read_its_file(lab_guest: LabGuest, home: Path) -> None:
    core = home / "web.core"
    with lab_guest.attach() as guest:
        guest.dump(core)
    denied = run_as(home, "ps", f"file:{core}")
    assert (denied.returncode, len(denied.stderr.splitlines())) == (5, 1)
    assert "permission denied" in denied.stderr
    core.chmod(0o444)
    done = run_as(home, "ps", f"file:{core}", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert {row["pid"] for row in json.loads(done.stdout)} >= {1, 2}
    # What it made on the way, and whatever a command writes of a guest, is its user's alone, even with umask 0.
    made = [
        (("cat", f"file:{core}", "/init", "-O"), "init"),
        (("read", f"file:{core}", "jiffies_64", 8, "-O"), "bytes"),
        (("memdump", f"file:{core}", 1, "-O"), "memory"),
        (("snapshot", f"file:{core}", "-t", "processes", "-O"), "snapshot"),
        (("extract", f"file:{core}", "/init", "--into"), "files"),
        (("dump", f"file:{core}"), "again.core"),
    ]
    mine = home / f"of-{NOBODY}"
    for words, name in made:
        done = run_as(home, *words, mine / name)
        assert (mine / name).exists(), done.stderr
    kept = [path for path in mine.rglob("*") if path != mine]
    assert {path.name for _, name in made for path in [mine / name]} <= {path.name for path in kept}
    assert any(path.suffix == ".profile" for path in kept)
    for path in kept:
        status = path.stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode) & 0o077) == (NOBODY, 0), path


def test_a_live_guest_needs_ptrace_or_its_user(lab_guest: LabGuest, home: Path) -> None:
    """libvirt told who reads: here only the private daemon's socket, which is opened to all, stands for polkit."""
    assert lab_guest.uri is not None
    folder = Path(re.search(r"socket=([^&]+)", lab_guest.uri)[1]).parent  # type: ignore[index]
    before = [
        (path, stat.S_IMODE(path.stat().st_mode)) for path in (folder.parent, folder, *folder.glob("libvirt-sock*"))
    ]
    try:
        denied = run_as(home, "ps", lab_guest.name, guest=lab_guest)
        assert denied.returncode in (5, 1), denied.stderr
        assert len(denied.stderr.splitlines()) == 1
        for path, mode in before:
            path.chmod(mode | (0o055 if path.is_dir() else 0o066))
        denied = run_as(home, "ps", lab_guest.name, guest=lab_guest)
        assert denied.returncode == 5, denied.stderr
        assert "needs CAP_SYS_PTRACE" in denied.stderr
        done = run_as(home, "ps", lab_guest.name, "--format", "json", keep=1 << SYS_PTRACE, guest=lab_guest)
        assert done.returncode == 0, done.stderr
        assert {row["pid"] for row in json.loads(done.stdout)} >= {1, 2}
    finally:
        for path, mode in before:
            path.chmod(mode)


def test_what_another_user_planted_is_not_believed(lab_guest: LabGuest, home: Path) -> None:
    first = run_as(home, "ps", lab_guest.name, user=0, keep=ALL, guest=lab_guest)
    assert first.returncode == 0, first.stderr
    mine = home / "of-0"
    (profile,) = (mine / "cache").glob("*.profile")
    planted = profile.read_bytes()
    os.chown(profile, NOBODY, NOBODY)
    again = run_as(home, "ps", lab_guest.name, user=0, keep=ALL, guest=lab_guest)
    assert again.returncode == 0
    assert "belongs to another user" in again.stderr
    assert profile.stat().st_uid == 0, "written anew"
    os.chown(mine / "cache", NOBODY, NOBODY)
    profile.write_bytes(planted)
    again = run_as(home, "ps", lab_guest.name, user=0, keep=ALL, guest=lab_guest)
    assert again.returncode == 0
    assert "belongs to another user" in again.stderr
    state = mine / "state" / "vmi-inside" / "guests"
    state.mkdir(parents=True)
    os.chown(state, NOBODY, NOBODY)
    refused = run_as(home, "pause", lab_guest.name, user=0, keep=ALL, guest=lab_guest)
    assert refused.returncode == 12, refused.stderr
    assert "not trusted" in refused.stderr
    assert (
        "running"
        in subprocess.run(
            ["virsh", "-c", str(lab_guest.uri), "domstate", lab_guest.name], capture_output=True, text=True, check=True
        ).stdout
    )


#: System calls that could change a guest, its files, or start something.
CALLS = (
    "execve,open,openat,creat,connect,process_vm_writev,ptrace,kill,tgkill,pwrite64,pwritev,truncate,ftruncate,unlink,"
    "unlinkat,rename,renameat,renameat2,mkdir,mkdirat,link,linkat,symlink,symlinkat,chmod,fchmod,fchmodat,chown,fchownat"
)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("backing", ["anon", "memfd"])
def test_reading_opens_nothing_of_a_guest_for_writing(lab_boot: object, backing: str, home: Path) -> None:
    guest: LabGuest = lab_boot(backing=backing)  # type: ignore[operator]
    traced = home / "strace"
    commands = ("ps", "ss", "check")
    environment = {**os.environ, "LIBVIRT_DEFAULT_URI": str(guest.uri), "VMI_INSIDE_CACHE": str(home / "cache"),
                   "XDG_STATE_HOME": str(home / "state"), "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    for command in commands:
        words = ["strace", "-f", "-qq", "-o", str(traced), "-e", f"trace={CALLS}", sys.executable, "-m",
                 "vmi_inside.cli", command, guest.name]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300, check=False)
        assert done.returncode in (0, 11), done.stderr
        lines = [line.partition(" ")[2].strip() for line in traced.read_text().splitlines()]
        assert any(f"/proc/{guest.pid}/" in line for line in lines), "nothing of QEMU was looked at"
        programs = [line for line in lines if line.startswith("execve(")]
        assert len(programs) == 1, programs
        for line in lines:
            name = line.partition("(")[0]
            if name in ("open", "openat", "creat"):
                writing = re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC|APPEND)", line) is not None
                assert not writing or str(home) in line or "/dev/null" in line, line
            elif name == "connect":
                assert "libvirt-sock" in line or "AF_UNIX" not in line or "ENOENT" in line, line
            elif name not in ("execve", "+++", "---"):
                assert str(home) in line or line.startswith(("+++", "---", "<...")), line
    assert not (home / "state").exists(), "reading keeps no journal"
