"""What goes wrong: each fault happens to a guest, its host or its controller at one moment, and ends some time later.

Knows how each is brought about. When, and what must hold afterwards, is `campaign`'s.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import libvirt

from tests.faults.world import World


@dataclass(frozen=True)
class Fault:
    """One: `happen(world, pid of the controller)` gives what ends it, which is called when the command has ended.

    `fatal` says that the guest does not live through it, `silent` that the controller does not, and need say nothing.
    """

    name: str
    happen: Callable[[World, int], Callable[[], None] | None]
    fatal: bool = False
    silent: bool = False


def _quiet(work: Callable[[], Any]) -> None:
    with suppress(libvirt.libvirtError):
        work()


def _own(world: World) -> Any:
    """The domain by a connection of somebody else's."""
    return libvirt.open(world.daemon.uri).lookupByName(world.lab.name)


def _kill_qemu(world: World, _: int) -> None:
    os.kill(world.lab.pid, signal.SIGKILL)


def _destroyed(world: World, _: int) -> None:
    _quiet(_own(world).destroy)


def _reset(world: World, _: int) -> None:
    _quiet(_own(world).reset)


def _panic(world: World, _: int) -> None:
    """It comes when the guest runs."""
    threading.Thread(target=_ask, args=(world, "echo c >/proc/sysrq-trigger"), daemon=True).start()
    time.sleep(0.05)


def _ask(world: World, command: str) -> None:
    with suppress(Exception):  # nobody will answer
        world.lab.ask(command, timeout=3)


def _suspended(world: World, _: int) -> Callable[[], None]:
    domain = _own(world)
    _quiet(domain.suspend)
    return lambda: _quiet(domain.resume)


def _resumed(world: World, _: int) -> None:
    _quiet(_own(world).resume)


def _saved(world: World, _: int) -> None:
    """It lasts: the command goes on meanwhile."""
    domain = _own(world)
    threading.Thread(target=lambda: _quiet(lambda: domain.save(str(world.folder / "away"))), daemon=True).start()
    time.sleep(0.1)


def _daemon_restarted(world: World, _: int) -> None:
    world.restart_daemon()


def _daemon_hangs(seconds: float) -> Callable[[World, int], Callable[[], None]]:
    def happen(world: World, _: int) -> Callable[[], None]:
        pid = world.daemon.pid
        os.kill(pid, signal.SIGSTOP)
        if seconds < 5:
            threading.Timer(seconds, os.kill, (pid, signal.SIGCONT)).start()
        return lambda: os.kill(pid, signal.SIGCONT)

    return happen


def _disk_full(world: World, _: int) -> Callable[[], None]:
    """The state folder is a small file system of its own; see `campaign`."""
    filler = world.state / "filler"
    with suppress(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return filler.unlink


def _signalled(number: int) -> Callable[[World, int], None]:
    def happen(_: World, controller: int) -> None:
        os.kill(controller, number)

    return happen


FAULTS: Final = {
    fault.name: fault
    for fault in (
        Fault("QEMU is killed", _kill_qemu, fatal=True),
        Fault("destroyed", _destroyed, fatal=True),
        Fault("reset", _reset, fatal=True),
        Fault("panics", _panic, fatal=True),
        Fault("saved", _saved, fatal=True),
        Fault("paused by another", _suspended),
        Fault("resumed by another", _resumed),
        Fault("libvirtd restarts", _daemon_restarted),
        Fault("libvirtd hangs 1 s", _daemon_hangs(1)),
        Fault("libvirtd hangs", _daemon_hangs(60)),
        Fault("disk full", _disk_full),
        Fault("SIGTERM", _signalled(signal.SIGTERM), silent=True),
        Fault("SIGINT", _signalled(signal.SIGINT), silent=True),
        Fault("SIGKILL", _signalled(signal.SIGKILL), silent=True),
    )
}


def small_file_system(folder: Path) -> Callable[[], None]:
    """A file system of 256 KiB at that folder; gives what takes it away."""
    import subprocess

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", str(folder)], check=True)
    return lambda: subprocess.run(["umount", "-l", str(folder)], check=True) and None
