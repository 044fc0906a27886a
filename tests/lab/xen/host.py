"""A Xen host that is booted for tests, and asked by a shell in its dom0.

Knows QEMU's and Xen's command lines. What it boots from is `image`; what is asked is up to the test.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.lab import LabError
from tests.lab.guest import LabGuest, Shape
from tests.lab.xen.image import image

BOOT_TIMEOUT: Final = 240.0

# Guests of models with XSAVE or AVX fail now and then in this emulation; these did not in many runs.
_CPU: Final = "qemu64,+svm,+npt,+ssse3,+sse4.1,+sse4.2,+popcnt,-monitor,-smap"
_XEN: Final = (
    "dom0_mem=512M,max:512M dom0_max_vcpus=1 spec-ctrl=no xpti=no console=com1 com1=115200,8n1 loglvl=warning "
    "guest_loglvl=warning noreboot"
)
_DOM0: Final = "console=hvc0 loglevel=4 panic=-1 cryptomgr.notests"


def boot(vcpus: int = 2) -> LabGuest:
    """Boot a Xen host; it is ready when its daemons run. Raises `LabError`."""
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        raise LabError("no qemu-system-x86_64: install qemu-system-x86 (tests/lab/setup.sh does)")
    made = image()
    home = Path(tempfile.mkdtemp(prefix="vmi-xen-"))
    with open(home / "qemu.log", "wb") as log:
        process = subprocess.Popen(
            [
                program, "-name", home.name, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                "-machine", "q35,accel=tcg", "-cpu", _CPU, "-m", "1536", "-smp", str(vcpus),
                "-kernel", made.xen, "-append", _XEN, "-initrd", f"{made.vmlinux} {_DOM0},{made.initrd}",
                "-drive", f"file={made.disk},format=raw,if=virtio,snapshot=on",
                "-serial", f"file:{home}/console.log", "-device", "virtio-serial-pci",
                "-chardev", f"socket,id=agent,path={home}/agent,server=on,wait=off", "-device", "virtconsole,chardev=agent",
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
    return guest
