"""The disk and the initrd of dom0, built when their parts changed.

Knows how the host's root file system is laid out. What it is made of is `parts`, how it boots `host`.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lab import CACHE, CHECKOUT
from tests.lab.initramfs import busybox, cpio, initramfs, workload
from tests.lab.kernels import locked, run
from tests.lab.xen.parts import Parts, Recipe, parts

_HERE: Final = Path(__file__).parent
_INSIDE: Final = _HERE / "inside"
_SIZE: Final = "900M"
_FOLDERS: Final = (
    "dev",
    "proc",
    "sys",
    "run",
    "tmp",
    "root",
    "lab",
    "var/log/xen",
    "var/lib/xen",
    "var/run",
    "etc/xen",
)


@dataclass(frozen=True, slots=True)
class Image:
    """What a Xen host boots from; the disk is not to be changed."""

    xen: Path
    vmlinux: Path
    initrd: Path
    disk: Path


def image(recipe: Recipe) -> Image:
    """The image for the sources as they are now."""
    made = parts(recipe)
    guest = initramfs(made.guest)
    inside = {path.name: path.read_bytes() for path in sorted(_INSIDE.iterdir()) if path.is_file()}
    content = hashlib.sha256(b"\0".join((str(made.tree).encode(), guest.name.encode(), *inside.values())))
    for path in (busybox(), workload(), Path(__file__), *_project()):
        content.update(path.read_bytes())
    kind = f"xen-{recipe.xen}{'-hvm' if recipe.device_model else ''}"
    home = CACHE / "built" / f"{kind}-{content.hexdigest()[:16]}"
    with locked(home):
        if not home.exists():
            for old in home.parent.glob(f"{kind}-" + "?" * 16):  # one of them is large
                shutil.rmtree(old, ignore_errors=True)
            _build(recipe, made, guest, inside, home)
    return Image(made.xen, made.vmlinux, home / "initrd.gz", home / "disk")


def _project() -> list[Path]:
    found = [*(CHECKOUT / "vmi_inside").rglob("*.py"), *(CHECKOUT / "profiles").rglob("*.json")]
    return sorted(path for path in found if path.is_file())


def _build(recipe: Recipe, made: Parts, guest: Path, inside: dict[str, bytes], home: Path) -> None:
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{home.name}.") as scratch:
        work = Path(scratch)
        kept, root = work / "kept", work / "root"
        kept.mkdir()
        shutil.copytree(made.tree, root, symlinks=True, copy_function=_link)
        for folder in _FOLDERS:
            (root / folder).mkdir(parents=True, exist_ok=True)
        shutil.copytree(made.wheels, root / "lab/site", symlinks=True, copy_function=_link)
        for path in _project():
            place = root / "lab/site" / path.relative_to(CHECKOUT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        for name, data in inside.items():
            (root / "lab" / name).write_bytes(data)
            (root / "lab" / name).chmod(0o755)
        shutil.copyfile(made.vmlinux, root / "lab/vmlinux")
        if recipe.device_model:  # which boots no ELF files
            shutil.copyfile(made.vmlinuz, root / "lab/vmlinuz")
        (root / "lab/initramfs").write_bytes(gzip.compress(guest.read_bytes(), 1))
        shutil.copyfile(workload(), root / "bin/workload")
        (root / "bin/workload").chmod(0o755)
        run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", str(root), str(kept / "disk"), _SIZE)
        files = {f"modules/{path.name}": path.read_bytes() for path in made.modules}
        files |= {"bin/busybox": busybox().read_bytes(), "init": inside["initrd"]}
        (kept / "initrd.gz").write_bytes(gzip.compress(cpio(files), 6))
        kept.rename(home)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # the cache is on another disk, or the file system has no such thing
        shutil.copy2(source, target)
    return target
