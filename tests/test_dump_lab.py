"""Dumps that a real QEMU wrote of one stopped guest: every format tells the same bytes at the same address.

A guest without a disk is enough: its firmware fills enough of memory, and QEMU's `loader` device plants the rest.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from vmi_inside.drivers.dump import open_dump, splits
from vmi_inside.errors import BadDump

QEMU = "qemu-system-x86_64"
GIB = 1 << 30

pytestmark = [pytest.mark.lab, pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")]

Execute = Callable[..., object]


@contextmanager
def stopped(folder: Path, *arguments: str) -> Iterator[Execute]:
    """A QEMU, stopped when its firmware has run; gives what executes a QMP command."""
    path = folder / "qmp"
    base = [QEMU, "-accel", "tcg", "-display", "none", "-nodefaults", "-qmp", f"unix:{path},server=on,wait=off"]
    with subprocess.Popen([*base, *arguments]) as process, socket.socket(socket.AF_UNIX) as connection:
        try:
            for _ in range(200):
                if path.exists():
                    break
                time.sleep(0.05)
            connection.connect(str(path))
            connection.settimeout(60)
            stream = connection.makefile("rw")
            stream.readline()

            def execute(command: str, **arguments: object) -> object:
                stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
                stream.flush()
                while True:
                    answer = json.loads(stream.readline())
                    if "event" not in answer:
                        assert "return" in answer, answer
                        return answer["return"]

            execute("qmp_capabilities")
            time.sleep(1)
            execute("stop")
            yield execute
        finally:
            process.kill()


def plant(*addresses: int) -> list[str]:
    return [
        word
        for address in addresses
        for word in ("-device", f"loader,addr={address:#x},data={planted(address):#x},data-len=8")
    ]


def planted(address: int) -> int:
    return 0x1122334455660000 | address >> 20


def test_all_formats_agree(tmp_path: Path) -> None:
    size = 64 << 20
    with stopped(tmp_path, "-M", "pc", "-m", "64", *plant(0x200000, size // 2)) as execute:
        execute("dump-guest-memory", paging=False, protocol=f"file:{tmp_path}/elf")
        execute("dump-guest-memory", paging=True, protocol=f"file:{tmp_path}/paging")
        execute("dump-guest-memory", paging=False, protocol=f"file:{tmp_path}/kdump", format="kdump-zlib")
        execute("pmemsave", val=0, size=size, filename=f"{tmp_path}/raw")
        cr3 = str(execute("human-monitor-command", **{"command-line": "info registers"})).split("CR3=")[1].split()[0]
        execute("migrate", uri=f"exec:cat > {tmp_path}/stream")
        while (state := execute("query-migrate")).get("status") != "completed":  # type: ignore[attr-defined]
            assert state.get("status") != "failed"  # type: ignore[attr-defined]
            time.sleep(0.05)

    truth = np.fromfile(tmp_path / "raw", np.uint8).reshape(-1, 4096)
    assert truth.any(axis=1).sum() > 20
    pa = np.arange(0, size, 4096, dtype=np.uint64)
    for name in ("raw", "elf", "paging", "kdump"):
        memory = open_dump(tmp_path / name)
        assert splits(tmp_path / name) == (None,)
        out = np.empty_like(truth)
        assert memory.gather(pa, out).all(), name
        assert (out == truth).all(), name
        assert memory.read(size - 4, 4) == truth.tobytes()[-4:], name
        assert memory.read(size - 4, 5) is None, name
        assert name == "raw" or [state["cr3"] for state in memory.notes.registers] == [int(cr3, 16)]
        memory.close()
    with pytest.raises(BadDump, match="migration stream"):
        open_dump(tmp_path / "stream")


@pytest.mark.parametrize(("machine", "below"), [("q35", 2 * GIB), ("pc", 3 * GIB)])
def test_the_hole_below_4_gib(tmp_path: Path, machine: str, below: int) -> None:
    """A guest of 4 GiB, never written, costs the host nothing; its RAM file is what a joined raw dump is."""
    ram = tmp_path / "ram"
    where = (0x200000, below - (64 << 20), 4 * GIB, 8 * GIB - below - 8)  # firmware tables end the low RAM
    backend = f"memory-backend-file,id=ram,size=4G,mem-path={ram},share=on"
    with stopped(
        tmp_path, "-M", f"{machine},memory-backend=ram", "-m", "4G", "-object", backend, *plant(*where)
    ) as execute:
        execute("dump-guest-memory", paging=False, protocol=f"file:{tmp_path}/kdump", format="kdump-zlib")
        execute("pmemsave", val=0, size=8 << 20, filename=f"{tmp_path}/start")

    assert below in splits(ram)
    start = (tmp_path / "start").read_bytes()
    for memory in (open_dump(tmp_path / "kdump"), open_dump(ram, raw_split=below)):
        assert (memory.runs[0].start, memory.runs[0].end) == (0, below)
        assert (memory.runs[-1].end, memory.read(below, 1)) == (8 * GIB - below, None)
        for address in where:
            found = memory.read(address, 8)
            assert found is not None
            assert int.from_bytes(found, "little") == planted(address), hex(address)
        assert bytes(memory.read(1 << 20, 7 << 20) or b"") == start[1 << 20 :]
        memory.close()
