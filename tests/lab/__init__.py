"""The lab: real Linux kernels in real QEMU guests, and a shell inside each to ask for the truth.

`python -m tests.lab` is the way in for people; `tests/conftest.py` for tests.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = CHECKOUT / ".cache" / "lab"
"""Downloads and things built, named by what went into them. May be deleted at any time."""


class LabError(RuntimeError):
    """The lab could not do what it was asked; the message says what failed and what to do about it."""


_PROGRAMS: Final = ("qemu-system-x86_64", "libvirtd", "busybox", "gcc", "apt-get", "dpkg-deb", "unshare", "mkfs.ext4")


def missing_prerequisites() -> str:
    """What must be there before any guest can boot, and is not; "" when all is well."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [program for program in _PROGRAMS if shutil.which(program, path=path) is None]
    if importlib.util.find_spec("libvirt") is None:
        missing.append("libvirt-python")
    if os.geteuid() != 0:
        missing.append("root's rights")
    return f"no {', no '.join(missing)} (tests/lab/setup.sh installs what is needed)" if missing else ""
