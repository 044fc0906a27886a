"""A guest that is measured: what every contestant is told of it, and what the guest says of itself.

Everything that a peer needs and cannot make (a dump, a symbol table, debug information) is made before the clock runs,
and how long that took is kept beside the figures.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.lab.guest import LabGuest, Shape

KIB, MIB = 1 << 10, 1 << 20
#: Where the kernel's text is read from, and how much of it.
READ: Final = "_text"
#: Symbols that are looked up, a round.
SYMBOLS: Final = ("init_task", "tcp_hashinfo", "security_socket_connect", "modules", "init_net")


@dataclass(slots=True)
class Scene:
    """One guest, as a contestant's process gets it (JSON). Paths are strings; empty when there is no such thing."""

    label: str
    domain: str
    uri: str
    qemu: int
    ram: str = ""  # the file that is the guest's RAM, from physical address 0 on; empty where a file is not that
    segments: list[tuple[int, int, int]] = field(default_factory=list)  # physical address, size, offset in `ram_file`
    ram_file: str = ""
    vmcoreinfo: str = ""
    vmlinux: str = ""  # with debug information
    symbols: str = ""  # folder of volatility3's symbol tables
    libvmi: str = ""  # an entry for libvmi.conf
    folder: str = ""
    text: int = 0  # the virtual address of `READ`
    text_physical: int = 0
    turn: int = 0  # how often it was read

    def next(self) -> int:
        """An address to read at, another one each time: what a tool keeps shall not help it."""
        self.turn = self.turn % 1000 + 1
        return self.text + self.turn * 4 * KIB

    def save(self) -> Path:
        """Where it was written."""
        path = Path(self.folder) / "scene.json"
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def load(cls, path: Path) -> Scene:
        """What `save` wrote."""
        return cls(**json.loads(path.read_text()))


def prepare(label: str, guest: LabGuest, folder: Path, vmlinux: Path | None) -> tuple[Scene, dict[str, float]]:
    """The scene of a guest, and seconds that making things for peers took."""
    folder.mkdir(parents=True)
    scene = Scene(label, guest.name, guest.uri or "", guest.pid, folder=str(folder))
    took: dict[str, float] = {}
    with guest.attach() as seen:
        from vmi_inside.bridges.drgn_parts import vmcoreinfo

        (folder / "vmcoreinfo").write_bytes(vmcoreinfo(seen))
        scene.vmcoreinfo = str(folder / "vmcoreinfo")
        runs = [(int(run.start), int(run.size)) for run in seen.memory.runs]
        scene.text = seen.kernel.symbol(READ)
        scene.text_physical = seen.kernel.space.translate_one(scene.text)
    scene.ram_file = ram_file(guest.pid)
    if scene.ram_file:
        scene.segments = segments(runs, Path(scene.ram_file).stat().st_size)
        if all(start == offset for start, _, offset in scene.segments):
            scene.ram = scene.ram_file
    (folder / "symbols" / "linux").mkdir(parents=True)
    begin = time.perf_counter()
    export(guest, "isf", folder / "symbols" / "linux" / "guest.json.xz")
    took["volatility3's symbol table, by vmi-inside"] = time.perf_counter() - begin
    scene.symbols = str(folder / "symbols")
    export(guest, "libvmi", folder / "libvmi.conf")
    scene.libvmi = str(folder / "libvmi.conf")
    scene.vmlinux = str(vmlinux or "")
    scene.save()
    return scene, took


def export(guest: LabGuest, form: str, path: Path) -> None:
    """`vmi-inside profile export`."""
    command = [sys.executable, "-m", "vmi_inside.cli", "profile", "export", guest.target, "--connect", guest.uri or ""]
    subprocess.run([*command, "--as", form, "-o", str(path)], check=True, capture_output=True)


def ram_file(pid: int) -> str:
    """The open file of a QEMU process that is its guest's RAM; empty where RAM is private memory."""
    for file in Path(f"/proc/{pid}/fd").iterdir():
        if "memory-backend" in str(file.readlink()) or "/ram/" in str(file.readlink()):
            return str(file)
    return ""


def segments(runs: list[tuple[int, int]], total: int) -> list[tuple[int, int, int]]:
    """Physical address, size and offset in the file of RAM below and above 4 GiB, which follow each other there."""
    low = max((start + size for start, size in runs if start < 1 << 32), default=0)
    if total <= low:
        return [(0, total, 0)]
    return [(0, low, 0), (1 << 32, total - low, low)]


def truth(guest: LabGuest) -> dict[str, Any]:
    """What the guest says of itself now."""
    processes = {}
    for line in guest.ask("cat /proc/[0-9]*/stat 2>/dev/null; true", 300).splitlines():
        pid, rest = line.split(" ", 1)
        name, after = rest[1:].rsplit(")", 1)
        processes[int(pid)] = (int(after.split()[1]), name)
    listening = set()
    for line in guest.ask("cat /proc/net/tcp").splitlines()[1:]:
        parts = line.split()
        if parts[3] == "0A":
            listening.add(int(parts[1].split(":")[1], 16))
    files: dict[int, int] = {}
    for line in guest.ask("find /proc/[0-9]*/fd -type l 2>/dev/null; true", 300).splitlines():
        pid = line.split("/")[2]
        files[int(pid)] = files.get(int(pid), 0) + 1
    asking = {int(guest.ask("echo $$; echo $PPID").split()[1])}  # its files are those of the question
    wanted = "|".join(SYMBOLS)
    lines = guest.ask(f"grep -E ' ({wanted})$' /proc/kallsyms").splitlines()
    return {
        "processes": processes,
        "sockets": listening,
        "open files": files,
        "asking": asking,
        "modules": {line.split()[0] for line in guest.ask("cat /proc/modules").splitlines()},
        "5 symbols": {line.split()[2]: int(line.split()[0], 16) for line in lines},
    }


def clean(folder: Path) -> None:
    """Take the folder away."""
    shutil.rmtree(folder, ignore_errors=True)


SHAPES: Final = {
    "256 MiB, 50 processes": Shape(memory=256, cpu="la57-off", backing="memfd", workload="sockets=100"),
    "1 GiB, 1,000 processes": Shape(memory=1024, cpu="la57-off", backing="memfd", workload="sleepers=1000,sockets=200"),
    "2 GiB, 10,000 processes": Shape(
        memory=2048, cpu="la57-off", backing="memfd", workload="sleepers=10000,sockets=200"
    ),
    "8 GiB, 50 processes": Shape(memory=8192, cpu="la57-off", backing="memfd", workload="sockets=100"),
    "256 MiB, 50 processes, private RAM": Shape(memory=256, cpu="la57-off", workload="sockets=100"),
    "256 MiB, 50 processes, 5-level paging": Shape(memory=256, backing="memfd", workload="sockets=100"),
}
