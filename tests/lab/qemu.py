"""A guest in a QEMU of its own, without libvirt: what a `qmp:` target attaches to.

Knows QEMU's command line. Shapes, consoles and the agent are `guest`'s.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.lab import LabError
from tests.lab.guest import WITHOUT, LabGuest, Shape
from tests.lab.initramfs import initramfs
from tests.lab.kernels import kernel


def boot(shape: Shape) -> LabGuest:
    """Boot a guest and wait until it has set itself up; its QMP socket is in its `target`."""
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        raise LabError("no qemu-system-x86_64: install qemu-system-x86 (tests/lab/setup.sh does)")
    chosen = kernel(shape.kernel)
    image = initramfs(chosen)
    home = Path(tempfile.mkdtemp(prefix="vmi-lab-"))
    with open(home / "qemu.log", "wb") as log:
        process = subprocess.Popen(
            [program, *_arguments(home, shape), "-kernel", chosen.vmlinuz, "-initrd", image],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def destroy() -> None:
        process.kill()
        process.wait()
        shutil.rmtree(home, ignore_errors=True)

    guest = LabGuest(
        home.name, shape, target=f"qmp:{home}/qmp", uri=None, pid=process.pid, agent=home / "agent",
        console=home / "console.log", destroy=destroy,
    )  # fmt: skip
    try:
        guest.wait_ready()
    except LabError as error:
        said = (home / "qemu.log").read_text(errors="replace")
        destroy()
        raise LabError(f"{error}\nQEMU said: {said}") from None
    except BaseException:
        destroy()
        raise
    return guest


def _arguments(home: Path, shape: Shape) -> list[str]:
    if shape.numa:
        raise LabError("a bare QEMU has no NUMA nodes here; boot it under libvirt")
    size = f"size={shape.memory}M"
    backing = {
        "anon": f"memory-backend-ram,id=ram,{size}",
        "memfd": f"memory-backend-memfd,id=ram,share=on,{size}",
        "file": f"memory-backend-file,id=ram,share=on,mem-path={home}/ram,{size}",
    }[shape.backing]
    cpu = f"{'max,la57=off' if shape.cpu == 'la57-off' else shape.cpu},-{WITHOUT}"
    return [
        "-name", home.name, "-nodefaults", "-no-user-config", "-display", "none", "-cpu", cpu,
        "-machine", f"{shape.machine},accel=tcg,memory-backend=ram", "-object", backing,
        "-m", str(shape.memory), "-smp", str(shape.vcpus), "-append", shape.parameters,
        "-serial", f"file:{home}/console.log", "-serial", f"unix:{home}/agent,server=on,wait=off",
        "-qmp", f"unix:{home}/qmp,server=on,wait=off",
    ]  # fmt: skip
