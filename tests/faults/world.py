"""A guest to which things go wrong: put back to how it was for each round, and looked over after it.

Knows libvirt's saved images, by which a guest is as new within a second or two, and what must be true of guest, journal
and host when a command has ended. What goes wrong is `faults`'.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import libvirt
import numpy as np

import vmi_inside
from tests.kernel_text import kernel_text
from tests.lab import LabError
from tests.lab.guest import LabGuest, alive
from tests.lab.libvirt import Daemon
from vmi_inside.control.gates.standing import Site
from vmi_inside.errors import VmiError

_RUN: Final = Path("/run")
_PATIENCE: Final = 60.0


class World:
    """The guest, its daemon, and a folder for the journals of one round. Takes the guest over: it is saved at once."""

    def __init__(self, daemon: Daemon, lab: LabGuest, folder: Path) -> None:
        self.daemon = daemon
        self.lab = lab
        self.folder = folder
        self.state = folder / "state"
        self._image = str(folder / "image")
        lab.ask("pidof -s sleep >/dev/null || (for i in 1 2 3; do sleep 100000 & done) >/dev/null 2>&1 </dev/null")
        with lab.attach() as guest:
            self.text = kernel_text(guest.kernel)
            found = guest.processes(columns=("pid", "name"))
            self.pids = [row.pid for row in found if row.name == "sleep"][:3]
        self._xml = lab.domain.XMLDesc()
        lab.domain.save(self._image)
        self.restore()

    def fresh(self) -> None:
        """A state folder of its own for the next round; the guest runs."""
        shutil.rmtree(self.state, ignore_errors=True)
        self.state.mkdir()
        if not self.there:
            self.restore()

    @property
    def there(self) -> bool:
        """Whether the guest runs, and is the one that was saved."""
        return alive(self.lab.pid) and self._domain() is not None

    def restore(self) -> None:
        """The guest as it was when it was saved."""
        with suppress(libvirt.libvirtError):
            self._connected().lookupByName(self.lab.name).destroy()
        self._connected().restore(self._image)
        self.lab = self.daemon.guest(self.lab.name)
        with suppress(libvirt.libvirtError):  # it was saved while it ran
            self.lab.domain.resume()

    def environment(self) -> dict[str, str]:
        """For commands."""
        return {**os.environ, "XDG_STATE_HOME": str(self.state)}

    # -- what must be true ------------------------------------------------------------------------------------------

    def left(self, *, guest: bool) -> list[str]:
        """What a command has left that it should not have, in words. With `guest` that still runs, and is looked at."""
        found = [f"{path.name} is left" for path in _RUN.glob("vmi-inside-gdb-*") if _orphan(path)]
        for lock in self.state.glob("vmi-inside/guests/*.lock"):
            with open(lock) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append("the lock is held")
        found += [f"{path.name} is left" for path in self.state.glob("vmi-inside/guests/*~")]
        found += [f"{path.name} is left" for path in self.folder.glob("dump/.*")]
        if not guest:
            return found
        found += [f"{path.name} is left" for path in self.state.glob("vmi-inside/guests/*.held")]
        state, reason = self._connected().lookupByName(self.lab.name).state()
        if state != libvirt.VIR_DOMAIN_RUNNING:
            found.append(f"the guest does not run (state {state}, {reason})")
        with suppress(LabError):
            stub = re.search(r"^gdb: filename=(\S+)", self._hmp("info chardev"), re.M)
            if stub:
                found.append(f"gdb's stub is there: {stub[1]}")
        return found

    def afterwards(self) -> list[str]:
        """What is wrong with the guest once the next command has been at it; everything is taken back."""
        found: list[str] = []
        with suppress(KeyError):
            os.environ["XDG_STATE_HOME"], before = str(self.state), os.environ.get("XDG_STATE_HOME")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with self.lab.attach(writable=True) as guest:
                    guest.recover()
                    found += self._judge(guest)
        except VmiError as error:
            found.append(f"the next command fails: {error}")
        finally:
            if before is None:
                del os.environ["XDG_STATE_HOME"]
            else:
                os.environ["XDG_STATE_HOME"] = before
        if not found:
            try:
                if self.lab.ask("echo yes", timeout=_PATIENCE).strip() != "yes":
                    found.append("the guest answers nonsense")
                said = self.lab.ask("dmesg", timeout=_PATIENCE)
                found += re.findall(r".*(?:WARNING|BUG:|Oops|Call Trace).*", said)[:2]
            except LabError as error:
                found.append(f"the guest does not answer: {error}")
        return found

    def _judge(self, guest: vmi_inside.Guest) -> list[str]:
        found = [f"entry {one.id} is {one.state}" for one in guest.journal() if one.state in ("open", "broken")]
        site = Site(guest.kernel)
        state, _ = site.read()
        if state is not None:
            found += site.broken(state)
        elif not np.array_equal(kernel_text(guest.kernel), self.text):
            found.append("the kernel's text is another without a gate")
        if len(guest.gates()):
            guest.allow()
        with suppress(VmiError):
            guest.undo_all()
        if not np.array_equal(kernel_text(guest.kernel), self.text):
            found.append("the kernel's text is another after all was taken back")
        return found

    # -- libvirt ----------------------------------------------------------------------------------------------------

    def restart_daemon(self) -> None:
        """End libvirt's daemon and start it again; its guests run on. It starts in QEMU's mount namespace."""
        namespace = f"/proc/{self.lab.pid}/ns/mnt"
        os.kill(self.daemon.pid, 15)
        deadline = time.monotonic() + _PATIENCE
        while alive(self.daemon.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        root = self.daemon.root
        with open(root / "libvirtd.log", "ab") as log:
            process = subprocess.Popen(
                ["nsenter", f"--mount={namespace}", "/usr/sbin/libvirtd", "-f", str(root / "libvirtd.conf"),
                 "-p", str(root / "libvirtd.pid")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.daemon.pid, self.daemon._process = process.pid, process
        while time.monotonic() < deadline:
            with suppress(LabError, libvirt.libvirtError), self.daemon.connection() as connection:
                connection.lookupByName(self.lab.name)
                self.lab = self.daemon.guest(self.lab.name)
                return
            time.sleep(0.1)
        raise LabError("libvirt's daemon does not come back")

    def _connected(self) -> Any:
        return libvirt.open(self.daemon.uri)

    def _domain(self) -> Any:
        with suppress(libvirt.libvirtError):
            return self._connected().lookupByName(self.lab.name)
        return None

    def _hmp(self, command: str) -> str:
        import libvirt_qemu

        try:
            return str(libvirt_qemu.qemuMonitorCommand(self._domain(), command, 1))
        except libvirt.libvirtError as error:
            raise LabError(str(error)) from None


def _orphan(folder: Path) -> bool:
    owner = folder.name.removeprefix("vmi-inside-gdb-").partition("-")[0]
    return not os.path.exists(f"/proc/{owner}")
