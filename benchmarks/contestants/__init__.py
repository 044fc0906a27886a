"""Who takes part. Each is one module here with a class `Contestant`, and one line in `CONTESTANTS`.

A contestant runs in a process of its own (`benchmarks.worker`). It imports its tool and attaches in `attach`, which is
timed; each method named in `QUESTIONS` that it has answers that question in the form that its tool gives, and is timed
too. `plain` turns an answer into plain values to be held against the truth; it is not timed.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from benchmarks.scene import Scene

#: Name → module. `vmi-inside` comes first: others are measured against it.
CONTESTANTS: Final = {
    "vmi-inside": "benchmarks.contestants.vmi_inside",
    "drgn": "benchmarks.contestants.drgn",
    "volatility3": "benchmarks.contestants.volatility3",
    "LibVMI": "benchmarks.contestants.libvmi",
}

#: What is asked, and the method that answers.
QUESTIONS: Final = {
    "processes": "processes",
    "sockets": "sockets",
    "open files": "files",
    "modules": "modules",
    "5 symbols": "symbols",
    "read 4 KiB": "read_page",
    "read 1 MiB": "read_bulk",
}

#: Of these the whole command is timed, too.
COMMANDS: Final = ("processes", "sockets", "open files", "modules")


class Contestant(Protocol):
    """One tool on one guest."""

    def __init__(self, scene: Scene) -> None:
        """Raises `Absent` when it cannot take part on this guest."""

    def attach(self) -> None:
        """Ready to answer."""

    def plain(self, question: str, answer: Any) -> Any:
        """An answer as values that can be compared.

        processes: {pid: (parent, name)}; sockets: {listening TCP ports}; open files: {pid: number}; modules: {names};
        symbols: {name: address}; reads: bytes.
        """

    @staticmethod
    def command(scene: Scene, question: str) -> list[str] | None:
        """The whole command that a user would type; None for a script of the contestant's own."""


class Absent(Exception):
    """This contestant cannot take part, and why."""
