"""What a Xen host is made of: Debian's packages, unpacked; a generic kernel; Python's packages for its Python.

Knows names of packages and files. How they become a disk is left to `image`.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lab import CACHE, LabError
from tests.lab.kernels import MODULES, Kernel, apt_config, keep, load_order, locked, module_name, run

_PACKAGES: Final = ("python3", "libstdc++6", "busybox-static", "libvirt-daemon", "libvirt-daemon-driver-xen",
                    "python3-libvirt")  # fmt: skip
_DEVICE_MODEL: Final = ("qemu-system-xen", "qemu-system-data", "seabios")
_KERNEL: Final = "linux-image-amd64"
_WHEELS: Final = ("numpy>=2", "click>=8.1", "rich>=13", "platformdirs>=4")
# What dom0 needs of modules: its disk, the host's serial port, and the hypervisor's devices.
_MODULES: Final = (
    "virtio_pci", "virtio_blk", "virtio_console", "ext4", "crc32c_generic",
    "xen_privcmd", "xen_evtchn", "xen_gntdev", "xen_gntalloc", "xenfs",
)  # fmt: skip
# Left out of the disk: what nobody reads in a machine without people.
_SKIPPED: Final = (
    "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/i18n", "usr/share/zoneinfo", "usr/share/perl",
    "usr/lib/x86_64-linux-gnu/perl-base", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/udev",
    "lib/udev", "lib/modules", "boot", "usr/share/python3", "usr/lib/debug", "usr/share/bash-completion",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which Xen, of which of Debian's suites, with which Python; `device_model`: with QEMU, for HVM guests."""

    suite: str = "bookworm"
    xen: str = "4.17"
    python: str = "3.11"
    wheels: tuple[str, ...] = ("libvmi>=3.7",)
    device_model: bool = False

    @property
    def packages(self) -> tuple[str, ...]:
        """Debian's packages, without what these depend on."""
        return (
            f"xen-hypervisor-{self.xen}-amd64", f"xen-utils-{self.xen}", *_PACKAGES,
            *(_DEVICE_MODEL if self.device_model else ()),
        )  # fmt: skip


#: By the version of Xen: what there is of it in Debian. LibVMI has no wheel for trixie's Python.
XEN_HOSTS: Final = {
    "4.17": Recipe(),
    "4.20": Recipe(suite="trixie", xen="4.20", python="3.13", wheels=()),
}


@dataclass(frozen=True, slots=True)
class Parts:
    """Files of one Xen host: `tree` is the root file system, `modules` in an order in which they can be inserted."""

    tree: Path
    wheels: Path
    xen: Path
    vmlinux: Path
    vmlinuz: Path
    modules: tuple[Path, ...]
    guest: Kernel  # the same kernel, with the modules of the lab's guests


def parts(recipe: Recipe) -> Parts:
    """All of it, fetched when it is not in the cache."""
    wanted = " ".join((repr(recipe), *recipe.packages, *MODULES, _KERNEL, *_WHEELS, *_MODULES, *_SKIPPED))
    home = CACHE / "xen" / hashlib.sha256(wanted.encode()).hexdigest()[:16]
    with locked(home):
        if not home.exists():
            _fetch(recipe, home)
    guest = home / "guest"
    return Parts(
        home / "tree", home / "wheels", home / "xen", home / "vmlinux", guest / "vmlinuz", _modules(home),
        Kernel("xen", (guest / "release").read_text().strip(), home / "vmlinux", _modules(guest)),
    )  # fmt: skip


def _modules(home: Path) -> tuple[Path, ...]:
    return tuple(sorted((home / "modules").iterdir()))


def _fetch(recipe: Recipe, home: Path) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{home.name}.") as scratch:
        work = Path(scratch)
        config = apt_config(recipe.suite, work / "apt")
        run("apt-get", "-c", str(config), "-q", "update")
        # With nothing installed, by this configuration, all that is depended on is fetched, too.
        run(
            "apt-get", "-c", str(config), "-q", "-y", "--download-only", "--no-install-recommends",
            "-o", "Debug::NoLocking=true", "install", *recipe.packages,
        )  # fmt: skip
        kernel = re.search(r"Depends: (linux-image-\S+)", run("apt-cache", "-c", str(config), "depends", _KERNEL))
        if kernel is None:
            raise LabError(f"{_KERNEL} names no kernel")
        (work / "kernel").mkdir()
        run("apt-get", "-c", str(config), "-q", "download", kernel[1], cwd=work / "kernel")
        kept = work / "kept"
        tree = kept / "tree"
        tree.mkdir(parents=True)
        for archive in sorted((work / "apt" / "cache" / "archives").glob("*.deb")):
            run("dpkg-deb", "-x", str(archive), str(tree))
        (xen,) = (tree / "boot").glob("xen-*-amd64.gz")
        (kept / "xen").write_bytes(gzip.decompress(xen.read_bytes()))
        for path in (*_SKIPPED, f"usr/lib/python{recipe.python}/test"):
            shutil.rmtree(tree / path, ignore_errors=True)
        _kernel(work, kept)
        run(
            sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary", ":all:",
            "--python-version", recipe.python, "--implementation", "cp", "--platform", "manylinux_2_28_x86_64",
            "--platform", "manylinux2014_x86_64", "--target", str(kept / "wheels"), *_WHEELS, *recipe.wheels,
        )  # fmt: skip
        for folder in kept.glob("wheels/**/tests"):
            shutil.rmtree(folder, ignore_errors=True)
        kept.rename(home)


def _kernel(work: Path, kept: Path) -> None:
    (archive,) = (work / "kernel").glob("*.deb")
    run("dpkg-deb", "-x", str(archive), str(work / "unpacked"))
    (kept / "guest").mkdir()
    keep(work / "unpacked", kept / "guest")
    (kept / "vmlinux").write_bytes(unpacked((kept / "guest" / "vmlinuz").read_bytes()))
    there = {module_name(path): path for path in (work / "unpacked").rglob("*.ko*")}
    order: dict[str, bytes] = {}
    for name in _MODULES:
        load_order(name, there, order)
    (kept / "modules").mkdir()
    for number, (name, module) in enumerate(order.items()):
        (kept / "modules" / f"{number:02}-{name}.ko").write_bytes(module)


def unpacked(vmlinuz: bytes) -> bytes:
    """The ELF image in a bzImage that is packed by xz or zstd (Documentation/arch/x86/boot.rst): Xen takes no other."""
    setup = (vmlinuz[0x1F1] or 4) + 1  # sectors, of which the kernel proper follows
    offset, length = struct.unpack_from("<II", vmlinuz, 0x248)
    packed = vmlinuz[setup * 512 + offset :][:length]
    if packed.startswith(b"\xfd7zXZ\0"):
        image = lzma.LZMADecompressor().decompress(packed)
    elif packed.startswith(b"\x28\xb5\x2f\xfd"):
        image = _zstd(packed[:-4])  # behind it stands the size of what it holds
    else:
        raise LabError("a kernel that is packed neither by xz nor by zstd")
    if not image.startswith(b"\x7fELF"):
        raise LabError("a kernel whose image is no ELF file")
    return image


def _zstd(packed: bytes) -> bytes:
    program = shutil.which("zstd")
    if program is None:
        raise LabError("no zstd, by which this kernel is packed: install zstd")
    return subprocess.run([program, "-dcq"], input=packed, capture_output=True, check=True).stdout
