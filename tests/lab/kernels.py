"""Debian's kernels, by short name: `6.1-cloud`, `6.1`, `5.10`, `6.12`, `new` ...

Knows Debian's suites, apt, and the few modules that a lab guest loads. The system's own apt configuration is read, for
its mirror and proxy, and never changed: sources, lists and downloads are private to the cache. Packing a kernel and
its modules into a guest is left to `initramfs`.
"""

from __future__ import annotations

import fcntl
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lab import CACHE, LabError

SUITES: Final = {
    "5.10": ("bullseye", "linux-image-amd64"),
    "5.10-cloud": ("bullseye", "linux-image-cloud-amd64"),
    "6.1": ("bookworm", "linux-image-amd64"),
    "6.1-cloud": ("bookworm", "linux-image-cloud-amd64"),
    "6.1-rt": ("bookworm", "linux-image-rt-amd64"),
    "6.12": ("trixie", "linux-image-amd64"),
    "6.12-cloud": ("trixie", "linux-image-cloud-amd64"),
    "new": ("sid", "linux-image-amd64"),
    "new-cloud": ("sid", "linux-image-cloud-amd64"),
}

# What the guests use that is a module in one kernel or another; what is built in, or not there, is passed over.
MODULES: Final = (
    "af_packet", "dummy", "veth", "inet_diag", "tcp_diag", "udp_diag", "unix_diag", "raw_diag", "netlink_diag",
    "vsock", "vsock_loopback", "vsock_diag", "e1000", "virtio_net", "virtio_pci", "loop", "tun",
    "crc32c_generic", "sctp", "af_alg", "xfrm_user",
    "bridge", "nf_tables", "nft_chain_nat", "iptable_filter", "ip6table_filter", "nfnetlink_hook",
)  # fmt: skip

_WANTED: Final = " ".join(MODULES)
_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PART: Final = re.compile(r"^linux-(image|binary|modules)-")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel on disk. `modules` are uncompressed, in an order in which they can be inserted."""

    name: str
    release: str
    vmlinuz: Path
    modules: tuple[Path, ...]


def kernel(name: str) -> Kernel:
    """The kernel of that short name, fetched when it is not in the cache."""
    if name not in SUITES:
        raise LabError(f"no kernel named {name!r}; there are: {', '.join(SUITES)}")
    home = CACHE / "kernels" / name
    with locked(home):
        if not (home / "wanted").exists() or (home / "wanted").read_text() != _WANTED:
            shutil.rmtree(home, ignore_errors=True)
            _fetch(*SUITES[name], home)
    return Kernel(
        name, (home / "release").read_text().strip(), home / "vmlinuz", tuple(sorted((home / "modules").iterdir()))
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that guards `path`: several sessions share one cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fetch(suite: str, package: str, home: Path) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{home.name}.") as scratch:
        work = Path(scratch)
        config = apt_config(suite, work / "apt")
        run("apt-get", "-c", str(config), "-q", "update")
        parts = _parts(config, package)
        run("apt-get", "-c", str(config), "-q", "download", *parts, cwd=work)
        tree = work / "tree"
        for archive in sorted(work.glob("*.deb")):
            run("dpkg-deb", "-x", str(archive), str(tree))
        kept = work / "kept"
        kept.mkdir()
        keep(tree, kept)
        (kept / "wanted").write_text(_WANTED)
        kept.rename(home)


def apt_config(suite: str, root: Path) -> Path:
    """An apt configuration that shares nothing with the system's but its mirror, proxy and network settings."""
    if not _KEYRING.exists():
        raise LabError(f"{_KEYRING} is missing: install debian-archive-keyring (tests/lab/setup.sh does)")
    for folder in ("lists/partial", "cache/archives/partial"):
        (root / folder).mkdir(parents=True)
    (root / "status").touch()
    (root / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {_mirror()} {suite} main\n")
    config = root / "apt.conf"
    config.write_text(
        "#clear APT::Update;\n#clear DPkg::Post-Invoke;\n"
        f'Dir::Etc::sourcelist "{root}/sources.list";\nDir::Etc::sourceparts "-";\n'
        f'Dir::State::lists "{root}/lists";\nDir::State::status "{root}/status";\nDir::Cache "{root}/cache";\n'
        'APT::Architecture "amd64";\nAPT::Architectures { "amd64"; };\nAPT::Sandbox::User "root";\n'
        'Acquire::Languages "none";\nAcquire::Retries "3";\n'
    )
    return config


def _mirror() -> str:
    """The Debian mirror that this machine is set up to use."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True, check=False
    )
    for uri in listed.stdout.split():
        if uri.rstrip("/").endswith("/debian"):
            return uri.rstrip("/")
    raise LabError(
        "the system's apt sources name no mirror of Debian's to fetch kernels from; add one that ends in /debian"
    )


def _parts(config: Path, package: str) -> list[str]:
    """The packages that hold the kernel itself: one up to 6.x, binary and modules apart in newer ones."""
    names: list[str] = []
    todo = [package]
    while todo and len(names) < 16:
        name = todo.pop()
        names.append(name)
        shown = run("apt-cache", "-c", str(config), "depends", "--no-recommends", "--no-suggests", name)
        for found in re.findall(r"^\s*\|?Depends: (\S+)$", shown, re.MULTILINE):
            if _PART.match(found) and found not in names and found not in todo:
                todo.append(found)
    return names[1:]


def keep(tree: Path, kept: Path) -> None:
    """Keep vmlinuz and the modules wanted, out of packages of either layout (`/lib` or `/usr/lib`, `/boot` or not)."""
    images = [path for path in tree.rglob("vmlinuz*") if path.is_file()]
    releases = {path.parts[-2] for path in tree.rglob("modules/*/kernel")}
    if len(images) != 1 or len(releases) != 1:
        raise LabError(f"the kernel packages do not look as expected: {images or 'no vmlinuz'}, {releases}")
    shutil.copyfile(images[0], kept / "vmlinuz")
    (kept / "release").write_text(releases.pop() + "\n")
    there = {module_name(path): path for path in tree.rglob("*.ko*") if path.is_file()}
    (kept / "modules").mkdir()
    order: dict[str, bytes] = {}
    for name in MODULES:
        load_order(name, there, order)
    for number, (name, image) in enumerate(order.items()):
        (kept / "modules" / f"{number:02}-{name}.ko").write_bytes(image)


def load_order(name: str, there: dict[str, Path], order: dict[str, bytes]) -> None:
    """Append `name` to `order`, after what it depends on (`depends=` in its .modinfo)."""
    if name in order or name not in there:
        return
    image = there[name].read_bytes()
    if there[name].suffix == ".xz":
        image = lzma.decompress(image)
    depends = re.search(rb"\0depends=([^\0]*)\0", image)
    for needed in depends.group(1).decode().split(",") if depends else ():
        load_order(needed.replace("-", "_"), there, order)
    order[name] = image


def module_name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise LabError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
