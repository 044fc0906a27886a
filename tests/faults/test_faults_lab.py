"""A short campaign of faults in the middle of commands, and a monitor that misbehaves.

`python -m tests.faults` is the long one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.faults.campaign import Campaign
from tests.faults.faults import FAULTS
from tests.faults.monitor import MISDEEDS, Proxy
from tests.faults.world import World
from tests.lab import CHECKOUT
from tests.lab.guest import LabGuest, Shape
from tests.lab.libvirt import Daemon

#: What is tried in each short run, beside what comes by chance: a gate that is being placed.
ALWAYS = ("QEMU is killed", "panics", "SIGKILL")
SECONDS, ROUNDS = 6, 4
#: Those that cost no long waits; all of them with VMI_FAULTS_ALL in the environment.
DEEDS = tuple(MISDEEDS) if os.environ.get("VMI_FAULTS_ALL") else ("late", "rubbish", "a list")


def test_a_short_campaign(lab: Daemon, tmp_path: Path) -> None:
    guest = lab.boot(Shape(workload="none"))
    try:
        campaign = Campaign(World(lab, guest, tmp_path), seed=4)
        wrong = [one for name in ALWAYS if (one := campaign.round("deny", FAULTS[name])).wrong]
        # A daemon that hangs or restarts is the other tests', too; it takes long.
        names = [name for name in FAULTS if "libvirtd" not in name]
        campaign.run(SECONDS, ROUNDS, ("deny", "kill", "limit"), names)
    finally:
        guest.destroy()
    assert not [one for one in (*wrong, *campaign.rounds) if one.wrong]


def test_a_monitor_that_misbehaves(lab_qemu: Callable[..., LabGuest], tmp_path: Path) -> None:
    lab = lab_qemu(workload="none")
    proxy = Proxy(tmp_path / "qmp", Path(lab.target.removeprefix("qmp:")))
    pid = int(lab.ask("sleep 100000 </dev/null >/dev/null 2>&1 & echo $!"))
    try:
        for number, misdeed in enumerate(DEEDS):
            state = tmp_path / str(number)
            code, said = _misled(proxy, lab, misdeed, 10 + 5 * number, pid, state)
            assert code in (0, 1, 10, 12, 15), (misdeed, code, said)
            assert "Traceback" not in said, said
            if code:
                assert len(said.strip().splitlines()) <= 2, said
            # whatever came of it: the next command puts it right
            code, said = _misled(proxy, lab, "", 0, pid, state, "allow")
            assert code in (0, 12), (misdeed, said)
            assert lab.ask("echo yes", timeout=30).strip() == "yes", misdeed
    finally:
        proxy.close()


def _misled(
    proxy: Proxy, lab: LabGuest, misdeed: str, step: int, pid: int, state: Path, command: str = "deny"
) -> tuple[int, str]:
    """Exit code and stderr of a command whose monitor misbehaves from a step on."""
    out, told = os.pipe()
    into, go = os.pipe()
    environment = {**os.environ, "XDG_STATE_HOME": str(state), "FAULTS_QEMU": str(lab.pid)}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.actor", str(step), str(told), str(into),
         command, f"qmp:{proxy.path}", "network", "--pid", str(pid)],
        cwd=CHECKOUT, env=environment, pass_fds=(told, into), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    ) as actor:  # fmt: skip
        os.close(told)
        os.close(into)
        with os.fdopen(out) as lines, os.fdopen(go, "w") as going:
            if lines.readline().startswith("at "):
                proxy.misdeed = misdeed
                going.write("g")
                going.flush()
            _, said = actor.communicate(timeout=120)
    proxy.misdeed = ""
    return actor.returncode, said
