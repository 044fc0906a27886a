"""Rounds of a command with a fault in the middle of it, and what came of them, as a table.

Knows the order of a round and what a command owes its user: to end, in one line, with a documented exit code.
"""

from __future__ import annotations

import os
import random
import re
import select
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from tests.faults.faults import FAULTS, Fault, small_file_system
from tests.faults.world import World
from tests.lab import CHECKOUT, LabError
from vmi_inside.cli.exits import EXITS

#: A command by a word, as the campaign chooses among them: the arguments, of the world.
COMMANDS: Final[dict[str, Callable[[World], list[str]]]] = {
    "deny": lambda world: ["deny", *target(world), "network", "--pid", str(world.pids[0])],
    "deny children": lambda world: ["deny", *target(world), "network", "--pid", str(world.pids[0]), "--children"],
    "allow": lambda world: ["allow", *target(world), "network", "--pid", str(world.pids[0])],
    "kill": lambda world: ["kill", *target(world), *map(str, world.pids), "--signal", "CONT"],
    "nice": lambda world: ["nice", *target(world), str(world.pids[1]), "--to", "3"],
    "limit": lambda world: ["limit", *target(world), str(world.pids[1]), "nofile=77"],
    "write": lambda world: ["write", *target(world), "init_uts_ns.name.nodename", "--text", "changed"],
    "regs": lambda world: ["regs", *target(world)],
    "dump": lambda world: ["dump", *target(world), str(world.folder / "dump" / "core"), "--pause"],
    "snapshot": lambda world: ["snapshot", *target(world), "--pause", "-O", str(world.folder / "dump" / "shot")],
}
#: Commands that need another one done before.
BEFORE: Final = {"allow": "deny"}
_HANGS: Final = 90.0
#: SIGTERM ends a command that holds nothing as it ends any other.
_CODES: Final = {one.code for one in EXITS} | {128 + 15, -15, -9}


def target(world: World) -> list[str]:
    """The guest, as a command takes it."""
    return [world.lab.name, "--connect", world.daemon.uri]


@dataclass(slots=True)
class Round:
    """One round: what was done, what happened before which step, how the command ended, what was wrong afterwards."""

    command: str
    fault: str
    step: str
    code: int | None
    said: str
    wrong: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """In a word or two, for counting."""
        return "WRONG" if self.wrong else f"exit {self.code}"


class Campaign:
    """Rounds in one world. `seed` chooses them."""

    def __init__(self, world: World, seed: int, say: Callable[[str], None] = lambda _: None) -> None:
        self.world = world
        self.rounds: list[Round] = []
        self._random = random.Random(seed)
        self._steps: dict[str, int] = {}
        self._say = say
        (world.folder / "dump").mkdir(exist_ok=True)

    def run(self, seconds: float, rounds: int, commands: Iterable[str] = (), faults: Iterable[str] = ()) -> None:
        """Rounds until the time is over, or so many were done."""
        deadline = time.monotonic() + seconds
        names, every = tuple(commands) or tuple(COMMANDS), tuple(faults) or tuple(FAULTS)
        while len(self.rounds) < rounds and time.monotonic() < deadline:
            one = self.round(self._random.choice(names), FAULTS[self._random.choice(every)])
            self.rounds.append(one)
            wrong = f" -- {one.wrong}" if one.wrong else ""
            self._say(f"{one.command} / {one.fault} / {one.step}: {one.outcome} {one.said[-200:]!r}{wrong}")

    def table(self) -> str:
        """Outcomes by fault, as Markdown."""
        by: dict[str, Counter[str]] = defaultdict(Counter)
        for one in self.rounds:
            by[one.fault][one.outcome] += 1
        lines = ["| Fault | Rounds | Outcomes |", "|---|---|---|"]
        for name, counts in sorted(by.items()):
            told = ", ".join(f"{outcome}: {count}" for outcome, count in counts.most_common())
            lines.append(f"| {name} | {counts.total()} | {told} |")
        return "\n".join(lines)

    def round(self, command: str, fault: Fault) -> Round:
        """One round of that command with that fault."""
        world = self.world
        self._calibrate(command)
        self._prepare()
        away = small_file_system(world.state) if fault.name == "disk full" else None
        try:
            if command in BEFORE:
                self._act(COMMANDS[BEFORE[command]](world), 0, None)
            chosen = self._random.randint(1, max(self._steps[command], 1))
            made = self._faulty(command, fault, chosen)
        finally:
            if away is not None:
                away()
        return made

    def _prepare(self) -> None:
        self.world.fresh()
        for path in (self.world.folder / "dump").iterdir():
            path.unlink()

    def _calibrate(self, command: str) -> None:
        """Learn how many steps a command has when nothing happens."""
        if command in self._steps:
            return
        self._prepare()
        if command in BEFORE:
            self._act(COMMANDS[BEFORE[command]](self.world), 0, None)
        code, said, steps, _, _ = self._act(COMMANDS[command](self.world), 0, None)
        wrong = self.world.afterwards()
        if code or wrong:
            raise LabError(f"{command} fails without any fault: {said} {wrong}")
        self._steps[command] = steps

    def _faulty(self, command: str, fault: Fault, chosen: int) -> Round:
        world = self.world
        code, said, _, step, end = self._act(COMMANDS[command](world), chosen, fault)
        one = Round(command, fault.name, step, code, said.strip()[-300:])
        if code is None:
            one.wrong.append("the command hangs")
        elif code not in _CODES:
            one.wrong.append(f"exit code {code}")
        if "Traceback" in said or (code and not fault.silent and not _one_line(said)):
            one.wrong.append(f"not one line: {said[-1500:]}")
        with suppress(OSError):
            if end is not None:
                end()
        self._wait_for_rescue()
        if fault.fatal and step:
            if fault.name == "saved":
                self._wait_until(lambda: not world.there)
            one.wrong += world.left(guest=False)
            world.restore()
            return one
        one.wrong += world.left(guest=True)
        one.wrong += world.afterwards()
        if one.wrong:
            world.restore()
        return one

    def _act(
        self, arguments: list[str], chosen: int, fault: Fault | None
    ) -> tuple[int | None, str, int, str, Callable[[], None] | None]:
        """Exit code (None when it had to be killed), stderr, steps, the step of the fault, and what ends that."""
        out, told = os.pipe()
        into, go = os.pipe()
        with subprocess.Popen(
            [sys.executable, "-m", "tests.faults.actor", str(chosen), str(told), str(into), *arguments],
            cwd=CHECKOUT, env=self.world.environment(), pass_fds=(told, into), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        ) as actor:  # fmt: skip
            os.close(told)
            os.close(into)
            step, steps, end = "", 0, None
            deadline = time.monotonic() + _HANGS
            try:
                line = _line(out, deadline)
                if line.startswith("at ") and fault is not None:
                    step = line.removeprefix("at ")
                    end = fault.happen(self.world, actor.pid)
                    with suppress(BrokenPipeError):
                        os.write(go, b"g")
                    line = _line(out, deadline)
                if line.startswith("steps "):
                    steps = int(line.split()[1])
                try:
                    _, said = actor.communicate(timeout=max(deadline - time.monotonic(), 1))
                    return actor.returncode, said, steps, step, end
                except subprocess.TimeoutExpired:
                    actor.kill()
                    return None, actor.communicate()[1], steps, step, end
            finally:
                os.close(out)
                os.close(go)

    def _wait_for_rescue(self) -> None:
        """Those who watch over controllers have ended."""
        self._wait_until(lambda: not _rescuers(self.world.lab.name))

    def _wait_until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _HANGS
        while not true() and time.monotonic() < deadline:
            time.sleep(0.05)


def _rescuers(name: str) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        with suppress(OSError), open(f"/proc/{entry.name}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
            if len(words) > 3 and b"vmi_inside.rescue" in words[2] and words[3] == name.encode():
                found.append(int(entry.name))
    return found


def _line(fd: int, deadline: float) -> str:
    """The next line of a pipe, empty when there is none any more, or none in time."""
    raw = b""
    while not raw.endswith(b"\n"):
        ready, _, _ = select.select([fd], [], [], max(deadline - time.monotonic(), 0))
        part = os.read(fd, 1) if ready else b""
        if not part:
            return ""
        raw += part
    return raw.decode().strip()


def _one_line(said: str) -> bool:
    """Whether an error is said in one line; notices are others."""
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if not re.search(r"tainted|older kernel|was let go by its debugger", line)]
    return len(errors) <= 1 <= len(lines)
