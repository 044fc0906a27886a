#!/usr/bin/python3 -IS
"""Guests of this host, for the seer: `start` and `virt` one (by xl, by libvirt), `ask` its shell over its console.

Run by itself, it tells what may have gone wrong.
"""

import glob
import os
import secrets
import select
import signal
import subprocess
import sys
import time
import tty

STX = b"\x02"
CONSOLES: dict[str, int] = {}  # open files, by the guest's name


MEMORY = 160  # MiB
MORE = {  # what a configuration of each kind has beside what all have
    "pv": "",
    "pvh": "",
    "hvm": "vnc=0\nsdl=0\nvga='none'\nusb=0\n",
}
# Without a scan of all PCI buses, each access of which an emulated guest waits long for.
#: Without CMPXCHG16B (141), which QEMU before 8.0 gets wrong.
COMMAND_LINE = (
    "console=hvc0 pci=noearly loglevel=4 panic=-1 cryptomgr.notests clearcpuid=141 lab_agent=/dev/hvc0 lab_workload="
)


def start(kind: str, workload: str, vcpus: int) -> None:
    hang_up(kind)
    with open(f"/tmp/{kind}.cfg", "w") as config:
        config.write(
            f"name='{kind}'\ntype='{kind}'\nkernel='/lab/vmlin{'uz' if kind == 'hvm' else 'ux'}'\n"
            f"ramdisk='/lab/initramfs'\nmemory={MEMORY}\nvcpus={vcpus}\ntsc_mode='native'\n"
            f"on_crash='destroy'\non_reboot='destroy'\n{MORE[kind]}extra='{COMMAND_LINE}{workload}'\n"
        )
    done = subprocess.run(["xl", "create", f"/tmp/{kind}.cfg"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"xl create: {done.stdout}{done.stderr}")


def virt(kind: str, workload: str, vcpus: int) -> None:
    hang_up(kind)
    machine, named = {"pv": ("xenpv", "linux"), "pvh": ("xenpvh", "xenpvh")}[kind]
    subprocess.run(["/lab/virt"], check=True)
    if "/usr/lib/python3/dist-packages" not in sys.path:
        sys.path.append("/usr/lib/python3/dist-packages")
    import libvirt

    libvirt.open("xen:///system").createXML(
        f"<domain type='xen'><name>{kind}</name><memory unit='MiB'>{MEMORY}</memory><vcpu>{vcpus}</vcpu>"
        f"<os><type arch='x86_64' machine='{machine}'>{named}</type><kernel>/lab/vmlinux</kernel>"
        "<initrd>/lab/initramfs</initrd>"
        f"<cmdline>{COMMAND_LINE}{workload}</cmdline></os>"
        "<clock offset='utc'><timer name='tsc' mode='native'/></clock><on_crash>destroy</on_crash>"
        "<on_reboot>destroy</on_reboot><devices><console type='pty'><target type='xen'/></console></devices></domain>"
    )


def hang_up(kind: str) -> None:
    """Let go of the console of an earlier guest of that name."""
    if kind in CONSOLES:
        os.close(CONSOLES.pop(kind))


def console(kind: str) -> int:
    number = subprocess.check_output(["xl", "domid", kind], text=True).strip()
    for _ in range(100):
        found = subprocess.run(
            ["xenstore-read", f"/local/domain/{number}/console/tty"], capture_output=True, text=True, check=False
        ).stdout.strip()
        if found:
            fd = os.open(found, os.O_RDWR | os.O_NOCTTY)
            tty.setraw(fd)
            return fd
        time.sleep(0.1)
    raise RuntimeError(f"{kind} has no console")


def ask(kind: str, command: str, seconds: float, *, again: bool = False) -> tuple[int, bytes]:
    """The exit status and output. The kernel and its init print to the same console: what is not an answer is told.

    With `again` it is asked more than once, as somebody must be who may not be there yet.
    """
    if kind not in CONSOLES:
        CONSOLES[kind] = console(kind)
    try:
        return exchange(CONSOLES[kind], kind, command.encode(), seconds, again)
    except OSError as error:
        hang_up(kind)
        raise RuntimeError(f"{kind}: its console has ended: {error}") from error


def exchange(fd: int, kind: str, command: bytes, seconds: float, again: bool) -> tuple[int, bytes]:
    token = secrets.token_hex(16).encode()
    request = STX + b"%s %d %d\n" % (token, seconds, len(command)) + command
    wanted, received = STX + token + b" ", bytearray()
    deadline, sent = time.monotonic() + seconds, 0.0
    while time.monotonic() < deadline:
        if not sent or (again and wanted not in received and time.monotonic() - sent > 10):
            os.write(fd, request)
            sent = time.monotonic()
        if not select.select([fd], [], [], 1)[0]:
            continue
        received += os.read(fd, 1 << 16)
        at = received.find(wanted)
        if at >= 0:
            header, newline, body = bytes(received[at + len(wanted) :]).partition(b"\n")
            if newline and len(body) >= int(header.split()[1]):
                return int(header.split()[0]), body[: int(header.split()[1])]
    told = received[-3000:].decode(errors="replace")
    raise RuntimeError(f"{kind}: no answer to {command!r}; its console said:\n{told}")


def report() -> None:
    """Print which guests there are, where the seer is, and the ends of logs: of guests, the hypervisor and libxl."""
    for name in glob.glob("/proc/[0-9]*/cmdline"):
        with open(name, "rb") as line:
            if b"/lab/seer" in line.read().split(b"\0"):
                os.kill(int(name.split("/")[2]), signal.SIGUSR1)
    time.sleep(1)
    subprocess.run(["xl", "list"], check=False)
    for name in sorted(glob.glob("/tmp/console/*.log") + glob.glob("/var/log/xen/*.log") + ["/tmp/seer.log"]):
        with open(name, "rb") as log:
            log.seek(max(0, os.path.getsize(name) - 2500))
            print(f"--- {name}\n{log.read().decode(errors='replace')}", flush=True)


if __name__ == "__main__":
    report()
