"""The debug information of a lab kernel: `vmlinux` and System.map of Debian's debug package.

280 MB to fetch for a cloud kernel, 850 MB for another.

For comparisons with tools that need it; nothing of the project does.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.lab import CACHE, LabError
from tests.lab.kernels import SUITES, apt_config, kernel, locked, run

_FILES: Final = ("vmlinux", "System.map")


def debug_vmlinux(name: str) -> Path:
    """The kernel's ELF with DWARF; `System.map` stands beside it. Fetched when it is not in the cache."""
    release = kernel(name).release
    home = CACHE / "debug" / release
    with locked(home):
        if not home.exists():
            _fetch(SUITES[name][0], release, home)
    return home / "vmlinux"


def _fetch(suite: str, release: str, home: Path) -> None:
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".debug.") as scratch:
        work = Path(scratch)
        config = str(apt_config(suite, work / "apt"))
        run("apt-get", "-c", config, "-q", "update")
        run("apt-get", "-c", config, "-q", "download", f"linux-image-{release}-dbg", cwd=work)
        (archive,) = work.glob("*.deb")
        _unpack(archive, work / "tree")
        kept = work / "kept"
        kept.mkdir()
        for file in _FILES:
            found = sorted((work / "tree").rglob(f"boot/{file}-{release}"))
            if not found:
                raise LabError(f"the debug package of {release} has no {file}")
            shutil.move(found[0], kept / file)
        kept.rename(home)


def _unpack(archive: Path, into: Path) -> None:
    """The kernel's own files of the package alone: its modules' are several gigabytes."""
    into.mkdir()
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as whole:
        picked = ["tar", "-x", "-C", str(into), "--wildcards", *(f"*/boot/{file}-*" for file in _FILES)]
        subprocess.run(picked, stdin=whole.stdout, check=True)
    if whole.returncode:
        raise LabError(f"{archive.name} cannot be unpacked")
