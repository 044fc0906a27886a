"""A libvirt daemon of the lab's own, and domains in it.

The daemon runs in a mount namespace where a scratch folder lies over libvirt's own (`/etc/libvirt`, `/run/libvirt`,
`/var/lib/libvirt` ...): it is a true `qemu:///system`, and a libvirt of the system's is neither seen nor touched. What
boots in a domain is left to `kernels` and `initramfs`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

import libvirt

from tests.lab import LabError
from tests.lab.guest import WITHOUT, BootFailed, LabGuest, Shape, alive
from tests.lab.initramfs import initramfs
from tests.lab.kernels import kernel

_COVERED: Final = ("/etc/libvirt", "/run/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
_LIBVIRTD_CONF: Final = """\
listen_tls = 0
listen_tcp = 0
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_dir = "{root}/sock"
unix_sock_rw_perms = "0700"
"""
_QEMU_CONF: Final = """\
user = "root"
group = "root"
dynamic_ownership = 0
security_driver = "none"
security_default_confined = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
memory_backing_dir = "{root}/ram"
"""
_START_TIMEOUT: Final = 60.0


class Daemon:
    """One private libvirtd. `root` is a short path (its sockets' must fit into 107 bytes) that goes when it stops."""

    def __init__(self, root: Path, pid: int, process: subprocess.Popen[bytes] | None = None) -> None:
        self.root = root
        self.pid = pid
        self._process = process  # where it is a child of this process
        self.uri = f"qemu+unix:///system?socket={root}/sock/libvirt-sock"

    @classmethod
    def start(cls) -> Daemon:
        """Start a daemon and wait until it answers."""
        if os.geteuid() != 0:
            raise LabError("the lab's libvirt daemon needs root (for its mount namespace); run this with sudo")
        program = shutil.which("libvirtd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if program is None:
            raise LabError("no libvirtd: install libvirt-daemon-system (tests/lab/setup.sh does)")
        root = Path(tempfile.mkdtemp(prefix="vmi-lab-"))
        for folder in ("sock", "ram", "guests", *(path.strip("/") for path in _COVERED)):
            (root / folder).mkdir(parents=True)
        (root / "libvirtd.conf").write_text(_LIBVIRTD_CONF.format(root=root))
        (root / "etc/libvirt/qemu.conf").write_text(_QEMU_CONF.format(root=root))
        cover = "\n".join(f'mkdir -p {path} && mount --bind "$0/{path.strip("/")}" {path}' for path in _COVERED)
        with open(root / "libvirtd.log", "wb") as log:
            process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-ec",
                 f'{cover}\nexec {program} -f "$0/libvirtd.conf" -p "$0/libvirtd.pid"', str(root)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        daemon = cls(root, process.pid, process)
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline and process.poll() is None:
            if (root / "sock/libvirt-sock").exists():
                with suppress(LabError), daemon.connection():
                    return daemon
            time.sleep(0.05)
        said = (root / "libvirtd.log").read_text(errors="replace")[-4000:]
        daemon.stop()
        raise LabError(f"libvirtd did not come up; it said:\n{said}")

    def keep(self) -> Daemon:
        """The same, to live on when this process ends."""
        if self._process is not None:
            self._process.returncode = 0  # else Python warns of a child that it leaves behind
        return Daemon(self.root, self.pid)

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """A connection, closed behind you."""
        try:
            connection = libvirt.open(self.uri)
        except libvirt.libvirtError as error:
            raise LabError(f"cannot connect to the lab's libvirtd: {error}") from None
        try:
            yield connection
        finally:
            connection.close()

    def boot(self, shape: Shape, name: str | None = None) -> LabGuest:
        """Boot a guest of that shape and wait until it has set itself up.

        An emulated processor is not quite a real one: newer kernels on it fault now and then while they boot. A guest
        that does not come up is started anew, twice at the most.
        """
        for _ in range(2):
            try:
                return self._boot(shape, name)
            except BootFailed:
                continue
        return self._boot(shape, name)

    def _boot(self, shape: Shape, name: str | None) -> LabGuest:
        chosen = kernel(shape.kernel)
        image = initramfs(chosen)
        connection = libvirt.open(self.uri)
        name = name or f"lab-{shape.kernel}-{secrets.token_hex(2)}"
        home = self.root / "guests" / name
        shutil.rmtree(home, ignore_errors=True)  # of a guest of that name that has ended
        home.mkdir()
        try:
            domain = connection.createXML(domain_xml(name, shape, chosen.vmlinuz, image, home), 0)
        except libvirt.libvirtError as error:
            raise LabError(f"libvirt does not start {name}: {error}") from None

        def destroy() -> None:
            with suppress(libvirt.libvirtError):  # it may be gone already
                domain.destroy()
            with suppress(libvirt.libvirtError):
                connection.close()
            shutil.rmtree(home, ignore_errors=True)

        guest = self._guest(domain, shape, destroy)
        try:
            guest.wait_ready()
        except BaseException:
            destroy()
            raise
        return guest

    def guest(self, name: str) -> LabGuest:
        """A guest that runs already, started by this process or another one."""
        connection = libvirt.open(self.uri)
        try:
            domain = connection.lookupByName(name)
        except libvirt.libvirtError as error:
            raise LabError(f"the lab has no guest {name!r}: {error}") from None
        return self._guest(domain, Shape(), lambda: None)

    def _guest(self, domain: Any, shape: Shape, destroy: Any) -> LabGuest:
        home = self.root / "guests" / domain.name()
        pid = int((self.root / "run/libvirt/qemu" / f"{domain.name()}.pid").read_text())
        return LabGuest(
            domain.name(), shape, target=domain.name(), uri=self.uri, pid=pid, agent=home / "agent",
            console=home / "console.log", destroy=destroy, domain=domain,
        )  # fmt: skip

    def stop(self) -> None:
        """End all guests and the daemon, and remove what it left. Never fails for what is gone already."""
        with suppress(LabError, libvirt.libvirtError), self.connection() as connection:
            for domain in connection.listAllDomains():
                with suppress(libvirt.libvirtError):
                    domain.destroy()
        for pidfile in (self.root / "run/libvirt/qemu").glob("*.pid"):  # a guest whose daemon died before it
            with suppress(ValueError, OSError):
                _end(int(pidfile.read_text()), str(self.root))
        _end(self.pid, str(self.root))
        if self._process is not None:
            self._process.wait()
        shutil.rmtree(self.root, ignore_errors=True)


def domain_xml(name: str, shape: Shape, vmlinuz: Path, image: Path, home: Path) -> str:
    """The domain of that shape, as `virsh create` takes it."""
    without = f"<feature policy='disable' name='{WITHOUT}'/>"
    mode, more = {
        "max": ("mode='maximum'", without),
        "la57-off": ("mode='maximum'", f"{without}<feature policy='disable' name='la57'/>"),
    }.get(
        shape.cpu,
        ("mode='custom' match='exact' check='none'", f"<model fallback='forbid'>{shape.cpu}</model>{without}"),
    )
    backing = {
        "anon": "",
        "memfd": "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",
        "file": "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>",
    }[shape.backing]
    numa = f"<numa>{_cells(shape)}</numa>" if shape.numa else ""
    nic = f"<interface type='user'><model type='{shape.nic}'/></interface>" if shape.nic else ""
    return f"""\
<domain type='qemu'>
  <name>{escape(name)}</name>
  <memory unit='MiB'>{shape.memory}</memory>
  {backing}
  <vcpu>{shape.vcpus}</vcpu>
  <cpu {mode}>{more}{numa}</cpu>
  <os>
    <type arch='x86_64' machine='{shape.machine}'>hvm</type>
    <kernel>{escape(str(vmlinuz))}</kernel>
    <initrd>{escape(str(image))}</initrd>
    <cmdline>{escape(shape.parameters)}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <on_reboot>restart</on_reboot>
  <on_crash>preserve</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{escape(str(home))}/console.log'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='{escape(str(home))}/agent'/><target port='1'/></serial>
    <memballoon model='none'/>
    {nic}
  </devices>
</domain>
"""


def _cells(shape: Shape) -> str:
    """NUMA nodes: memory and vCPUs shared out evenly, the last node takes the rest; a node may have no vCPU."""
    share = shape.memory // shape.numa
    cells = []
    for node in range(shape.numa):
        memory = share if node < shape.numa - 1 else shape.memory - share * (shape.numa - 1)
        cpus = ",".join(str(cpu) for cpu in range(shape.vcpus) if cpu % shape.numa == node)
        on = f" cpus='{cpus}'" if cpus else ""
        access = " memAccess='shared'" if shape.backing != "anon" else ""
        cells.append(f"<cell id='{node}'{on} memory='{memory}' unit='MiB'{access}/>")
    return "".join(cells)


def _end(pid: int, marker: str) -> None:
    """End one process, by its id, if it still is the one whose command line has `marker` in it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 5.0
        try:
            if marker not in Path(f"/proc/{pid}/cmdline").read_text(errors="replace"):
                return
            os.kill(pid, number)
            while time.monotonic() < deadline and alive(pid):
                time.sleep(0.02)
        except (ProcessLookupError, FileNotFoundError):
            return
