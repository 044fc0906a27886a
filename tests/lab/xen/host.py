"""A Xen host that is booted for tests, and asked by a shell in its dom0.

Knows QEMU's and Xen's command lines. What it boots from is `image`; what is asked is up to the test.
"""

from __future__ import annotations

import base64
import math
import os
import pickle
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any, Final

from tests.lab import LabError
from tests.lab.guest import LabGuest, Shape
from tests.lab.xen.image import image
from tests.lab.xen.parts import Recipe

_OUT: Final = 400 << 20  # bytes of the disk by which files are brought out

BOOT_TIMEOUT: Final = 240.0
#: Seconds that a host may live where somebody waits for it (CI); its tests take two and a half minutes on two cores.
LIFETIME: Final = 360.0

# Guests of models with XSAVE or AVX fail now and then in this emulation; these did not in many runs.
_CPU: Final = "qemu64,+svm,+npt,+ssse3,+sse4.1,+sse4.2,+popcnt,-monitor,-smap"
_XEN: Final = (
    "dom0_mem=512M,max:512M dom0_max_vcpus=1 spec-ctrl=no xpti=no console=com1 com1=115200,8n1 loglvl=warning "
    "guest_loglvl=warning noreboot"
)
# No kernel uses CMPXCHG16B here (X86_FEATURE_CX16, arch/x86/include/asm/cpufeatures.h; see `tests.lab.guest.WITHOUT`).
# NumPy in dom0 wants to see that the CPU has it.
_DOM0: Final = "console=hvc0 loglevel=4 panic=-1 cryptomgr.notests clearcpuid=141"
#: What Xen prints of a guest that was in the hypervisor's own code segment.
_LOST: Final = re.compile(r"Triple fault - invoking.*\n(?:\(XEN\).*\n){3}\(XEN\) RIP:\s+e008:")


class Refused(Exception):
    """Code in dom0 ended with an error: `kind` is its type's name, `said` its text."""

    def __init__(self, kind: str, said: str, trace: str) -> None:
        super().__init__(trace)
        self.kind = kind
        self.said = said


class XenHost:
    """A booted host: `ask` a shell in dom0, `python` an interpreter there, `start` guests."""

    def __init__(self, shell: LabGuest) -> None:
        self.shell = shell
        self._jobs = 0
        self._hangs = ""  # the job that does not end: what comes after it would wait for it
        self._end = time.monotonic() + LIFETIME if os.environ.get("CI") else math.inf

    def ask(self, command: str, timeout: float = 120.0, *, check: bool = True) -> str:
        """As `LabGuest.ask`, in dom0."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise LabError(f"{self.shell.name}: the Xen host has had its {LIFETIME:.0f} s")
        return self.shell.ask(command, min(timeout, left), check=check)

    def python(self, code: str, timeout: float = 120.0) -> Any:
        """What the code, run in dom0, put into `out`. Names stay from one to the next. Raises `Refused`."""
        if self._hangs:
            raise LabError(f"{self.shell.name}: the Python in dom0 is not back from:\n{self._hangs}")
        if not self._jobs:
            self.ask("mkdir -p /tmp/seer; setsid seer </dev/null >/tmp/seer.log 2>&1 &")
        stem = f"/tmp/seer/{self._jobs}"
        self._jobs += 1
        sent = base64.b64encode(code.encode()).decode()
        wait = f"until [ -e {stem}.out ]; do sleep 0.05; done; base64 {stem}.out"
        self._hangs = code
        said = self.ask(f"echo {sent} | base64 -d >{stem}.part; mv {stem}.part {stem}.py; {wait}", timeout)
        self._hangs = ""
        answer = pickle.loads(zlib.decompress(base64.b64decode(said)))
        if answer[0] != "ok":
            raise Refused(*answer[1:])
        return answer[1]

    def report(self) -> str:
        """What may tell why something failed: the ends of all consoles, the guests, where the Python in dom0 is."""
        parts = [f"Xen and the host's dom0:\n{self.shell.console_tail()}"]
        try:
            parts.append(self.shell.ask("guests.py", 30, check=False))
        except LabError as error:
            parts.append(str(error))
        return "\n".join(parts)

    def losses(self) -> int:
        """How many guests the emulated machine has lost: what they died with is no state of theirs, but Xen's own.

        QEMU 7.2's SVM does that to them now and then, sooner with more vCPUs, whether they are changed or only read: a
        triple fault with Xen's code segment, instruction and page tables. Other triple faults do not count.
        """
        return len(_LOST.findall(self.shell.console_tail(1 << 22)))

    def start(self, kind: str, workload: str = "full", *, libvirt: bool = False, vcpus: int = 1) -> XenGuest:
        """Start a guest, pv, pvh or hvm, of that name, by xl or by libvirt; see `wait_ready`."""
        self.python(f"lab.{'virt' if libvirt else 'start'}({kind!r}, {workload!r}, {vcpus})", 100)
        return XenGuest(self, kind)

    def bring(self, folder: str, to: Path) -> None:
        """Bring the files in a folder of dom0's out."""
        self.ask(f"tar -C {folder} -cf /dev/vdb . && sync", 200)
        with tarfile.open(self.shell.console.parent / "out") as archive:
            archive.extractall(to, filter="data")

    def destroy(self) -> None:
        """Take the host down, at once."""
        self.shell.destroy()


class XenGuest:
    """A guest of a Xen host, named by its kind; asked for the truth as `LabGuest` is."""

    def __init__(self, host: XenHost, name: str) -> None:
        self.host = host
        self.name = name
        self.target = f"xen:{name}"

    def gone(self) -> bool:
        """Whether the host has no such guest any more."""
        return not self.host.ask(f"xl domid {self.name} 2>/dev/null", check=False).strip()

    def wait_ready(self, timeout: float = 170.0) -> None:
        """Wait until the guest has set itself up."""
        self._ask("until test -e /run/ready; do sleep 0.2; done", timeout, again=True)

    def ask(self, command: str, timeout: float = 60.0, *, check: bool = True) -> str:
        """As `LabGuest.ask`, over the guest's console."""
        status, output = self._ask(command, timeout)
        text = output.decode(errors="surrogateescape")
        if check and status:
            raise LabError(f"{self.name}: {command!r} exited with {status}:\n{text}")
        return text

    def _ask(self, command: str, timeout: float, *, again: bool = False) -> tuple[int, bytes]:
        code = f"out = lab.ask({self.name!r}, {command!r}, {timeout}, again={again})"
        try:
            answer: tuple[int, bytes] = self.host.python(code, timeout + 30)
        except Refused as error:
            raise LabError(error.said) from None
        return answer


def boot(recipe: Recipe = Recipe(), vcpus: int = 2) -> XenHost:  # noqa: B008 - it is frozen
    """Boot a Xen host; it is ready when its daemons run. Raises `LabError`."""
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        raise LabError("no qemu-system-x86_64: install qemu-system-x86 (tests/lab/setup.sh does)")
    made = image(recipe)
    home = Path(tempfile.mkdtemp(prefix="vmi-xen-"))
    with open(home / "out", "wb") as out:
        out.truncate(_OUT)
    with open(home / "qemu.log", "wb") as log:
        process = subprocess.Popen(
            [
                program, "-name", home.name, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                "-machine", "q35,accel=tcg", "-cpu", _CPU, "-m", "1536", "-smp", str(vcpus),
                "-kernel", made.xen, "-append", _XEN, "-initrd", f"{made.vmlinux} {_DOM0},{made.initrd}",
                "-drive", f"file={made.disk},format=raw,if=virtio,snapshot=on",
                "-drive", f"file={home}/out,format=raw,if=virtio",
                "-serial", f"file:{home}/console.log", "-device", "virtio-serial-pci",
                "-chardev", f"socket,id=agent,path={home}/agent,server=on,wait=off",
                "-device", "virtconsole,chardev=agent",
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def destroy() -> None:
        process.kill()
        process.wait()
        shutil.rmtree(home, ignore_errors=True)

    guest = LabGuest(
        home.name, Shape(memory=1536, vcpus=vcpus), target="", uri=None, pid=process.pid, agent=home / "agent",
        console=home / "console.log", destroy=destroy,
    )  # fmt: skip
    try:
        guest.wait_ready(BOOT_TIMEOUT)
    except LabError as error:
        said = (home / "qemu.log").read_text(errors="replace")
        destroy()
        raise type(error)(f"{error}\nQEMU said: {said}") from None
    except BaseException:
        destroy()
        raise
    return XenHost(guest)
