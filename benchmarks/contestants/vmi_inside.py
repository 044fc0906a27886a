"""vmi-inside itself, by its library and its command."""

from __future__ import annotations

import sys
from typing import Any, Final

from benchmarks.scene import KIB, MIB, SYMBOLS, Scene

_COMMANDS: Final = {"processes": "ps", "sockets": "ss", "open files": "lsof", "modules": "lsmod"}


class Contestant:
    """See `benchmarks.contestants`."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def attach(self) -> None:
        import vmi_inside

        self.guest = vmi_inside.attach(self.scene.domain, connect=self.scene.uri)

    def processes(self) -> Any:
        return self.guest.processes(columns=("pid", "parent", "name", "uid", "state"))

    def sockets(self) -> Any:
        return self.guest.process_open_sockets()

    def files(self) -> Any:
        return self.guest.process_open_files()

    def modules(self) -> Any:
        return self.guest.kernel_modules(columns=("name", "address"))

    def symbols(self) -> Any:
        return [self.guest.kernel.symbol(name) for name in SYMBOLS]

    def read_page(self) -> Any:
        return self.guest.kernel.space.read(self.scene.next(), 4 * KIB)

    def read_bulk(self) -> Any:
        return self.guest.kernel.space.read(self.scene.next(), MIB)

    def plain(self, question: str, answer: Any) -> Any:
        if question == "processes":
            return {row.pid: (row.parent, row.name) for row in answer}
        if question == "sockets":
            return {row.local_port for row in answer if row.protocol == "tcp" and row.state == "LISTEN"}
        if question == "open files":
            found: dict[int, int] = {}
            for pid in answer.pid[answer.fd >= 0].tolist():
                found[pid] = found.get(pid, 0) + 1
            return found
        if question == "modules":
            return {row.name for row in answer}
        return dict(zip(SYMBOLS, answer, strict=True)) if question == "5 symbols" else bytes(answer)

    @staticmethod
    def command(scene: Scene, question: str) -> list[str] | None:
        return [sys.executable, "-m", "vmi_inside.cli", _COMMANDS[question], scene.domain, "--connect", scene.uri]
