"""The initramfs of a lab guest: busybox, the workload, the kernel's modules.

Knows the newc cpio format and how to compile the workload. Which kernel, and how to boot it, are left to others.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.lab import CACHE, LabError
from tests.lab.kernels import Kernel, locked

_HERE: Final = Path(__file__).parent
_BUSYBOX: Final = ("/bin/busybox", "/usr/bin/busybox")
_CFLAGS: Final = ("-O1", "-static", "-pthread", "-s", "-Wall", "-Wextra", "-Werror")
_FOLDERS: Final = ("bin", "dev", "lab", "lab/box", "modules", "proc", "root", "run", "sys", "tmp")


def initramfs(kernel: Kernel) -> Path:
    """The initramfs for that kernel, built when its parts changed."""
    files = {
        "bin/busybox": busybox().read_bytes(),
        "bin/workload": workload().read_bytes(),
        "init": (_HERE / "init").read_bytes(),
        **{f"modules/{path.name}": path.read_bytes() for path in kernel.modules},
    }
    image = cpio(files)
    path = CACHE / "built" / f"initramfs-{kernel.name}-{hashlib.sha256(image).hexdigest()[:16]}.cpio"
    with locked(path):
        if not path.exists():
            _publish(path, image)
    return path


def busybox() -> Path:
    """Debian's static busybox: a dynamic one would not start in an initramfs without libraries."""
    for path in map(Path, _BUSYBOX):
        if path.exists() and b"/lib64/ld-linux" not in path.read_bytes():
            return path
    raise LabError("no static busybox: install busybox-static (tests/lab/setup.sh does)")


def workload() -> Path:
    """The guest's program, compiled when its source changed."""
    sources = sorted((_HERE / "workload").glob("*.[ch]"))
    content = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    path = CACHE / "built" / f"workload-{content[:16]}"
    with locked(path):
        if not path.exists():
            compiler = shutil.which("gcc") or shutil.which("cc")
            if compiler is None:
                raise LabError("no C compiler: install gcc and libc6-dev (tests/lab/setup.sh does)")
            scratch = path.with_suffix(".new")
            files = [source for source in sources if source.suffix == ".c"]
            done = subprocess.run(
                [compiler, *_CFLAGS, "-o", scratch, *files], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise LabError(f"the workload does not compile:\n{done.stderr}")
            scratch.rename(path)
    return path


def _publish(path: Path, image: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".new")
    scratch.write_bytes(image)
    scratch.rename(path)


def cpio(files: dict[str, bytes]) -> bytes:
    """A newc archive: folders, a console for process 1, and `files`, all executable and root's."""
    entries = [(name, 0o040755, b"", 0) for name in _FOLDERS]
    entries.append(("dev/console", 0o020600, b"", os.makedev(5, 1)))
    entries += [(name, 0o100755, data, 0) for name, data in files.items()]
    entries.append(("TRAILER!!!", 0, b"", 0))
    out = bytearray()
    for inode, (name, mode, data, device) in enumerate(entries, 1):
        encoded = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, os.major(device), os.minor(device), len(encoded), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)
