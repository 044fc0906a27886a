"""A crash that knows newer kernels than the machine's: Debian 13's 8.0.6, with the libraries that it wants.

Debian 12's 8.0.2 knows neither `struct pid` of 6.1.y (it shows two tasks) nor newer kernels. Nothing is installed: the
packages are unpacked in the cache and run by their own loader.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.lab import CACHE
from tests.lab.kernels import apt_config, locked, run

_SUITE: Final = "trixie"
_LIBRARIES: Final = Path("usr/lib/x86_64-linux-gnu")


def crash(vmlinux: Path, dump: Path, *commands: str) -> str:
    """What crash says to these commands on a dump; `vmlinux` has the debug information. Raises `CalledProcessError`."""
    tree = _tree()
    libraries = tree / _LIBRARIES
    loader = [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries)]
    with tempfile.NamedTemporaryFile("w", suffix=".crash") as script:
        script.write("".join(f"{line}\n" for line in (*commands, "quit")))
        script.flush()
        done = subprocess.run(
            [*loader, str(tree / "usr/bin/crash"), "-s", "-i", script.name, str(vmlinux), str(dump)],
            stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=600,
        )  # fmt: skip
    return done.stdout.decode("utf-8", "replace")


def _tree() -> Path:
    home = CACHE / "crash" / _SUITE
    with locked(home):
        if not home.exists():
            _fetch(home)
    return home


def _fetch(home: Path) -> None:
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".crash.") as scratch:
        work = Path(scratch)
        config = str(apt_config(_SUITE, work / "apt"))
        run("apt-get", "-c", config, "-q", "update")
        # With nothing installed, by this configuration, all that is depended on is fetched, too.
        run(
            "apt-get", "-c", config, "-q", "-y", "--download-only", "--no-install-recommends",
            "-o", "Debug::NoLocking=true", "install", "crash",
        )  # fmt: skip
        kept = work / "kept"
        for archive in sorted((work / "apt" / "cache" / "archives").glob("*.deb")):
            run("dpkg-deb", "-x", str(archive), str(kept))
        kept.rename(home)
