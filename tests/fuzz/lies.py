"""Targets over made-up guests, which need no image: the same damage, in trees, lists and tables that were planted."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

import numpy as np

from tests import test_memory_map_synthetic, test_open_files_synthetic, test_processes_synthetic
from tests.fuzz.damage import Damage
from tests.fuzz.image import WatchedMemory
from tests.fuzz.readings import well_formed
from tests.fuzz.rendering import render
from tests.synthetic import LinuxGuest
from tests.synthetic.files import FilesGuest
from tests.synthetic.guest import DIRECT
from vmi_inside.kernel import Kernel
from vmi_inside.table import Table
from vmi_inside.tables import TABLES

#: Rounds and bytes that no reading of so small a guest may need; see `guests`.
ROUNDS: Final = 100_000
BYTES: Final = 1 << 30

_KINDS: Final[dict[str, dict[str, Any]]] = {
    "newer": {}, "older": {"older": True}, "scattered": {"levels": 5, "scattered": True},
}  # fmt: skip


def _processes(kind: dict[str, Any]) -> LinuxGuest:
    return test_processes_synthetic.populate(LinuxGuest(**kind))


def _files(kind: dict[str, Any]) -> LinuxGuest:
    guest = FilesGuest(**kind)
    test_open_files_synthetic.populate(guest)
    return guest.finish()


def _maps(kind: dict[str, Any]) -> LinuxGuest:
    guest = FilesGuest(**kind)
    test_memory_map_synthetic.populate(guest)
    return guest.finish()


_GUESTS: Final[dict[str, tuple[Callable[[dict[str, Any]], LinuxGuest], tuple[str, ...]]]] = {
    "processes": (_processes, ("processes", "threads", "process_envs", "process_open_sockets")),
    "files": (_files, ("process_open_files",)),
    "maps": (_maps, ("process_memory_map",)),
}


class MadeUp:
    """One table of one made-up guest, with damage to what it reads; its page tables are read, too."""

    def __init__(self, name: str, guest: LinuxGuest, table: str, seed: int) -> None:
        self.name = f"made-up:{name}:{table}"
        self.guest = guest
        self.table = table
        self.seed = seed
        self.memory = guest.ram.memory
        self._before: list[tuple[np.ndarray[Any, Any], bytes]] = []
        watched = WatchedMemory(self.memory, keep=True)
        self.whole = self._read(watched)
        self.asked = watched.asked or []

    def _read(self, memory: WatchedMemory) -> Table:
        kernel = Kernel(self.guest.space.over(memory), self.guest.kernel.profile)
        made: Table = TABLES[self.table].function(kernel, None)
        well_formed(made)
        return made

    def damage(self, pa: int, data: bytes) -> None:
        """See `Image.damage`."""
        for run, array in zip(self.guest.ram.runs, self.guest.ram.arrays, strict=True):
            if run.start <= pa < run.end:
                place = array[pa - run.start : pa - run.start + len(data)]
                self._before.append((place, place.tobytes()))
                place[:] = np.frombuffer(data, np.uint8)[: len(place)]
                return

    def case(self, number: int) -> None:
        """Damage, read, write in every format, repair."""
        random = Random(f"{self.seed} {self.name} {number}")
        watched = WatchedMemory(self.memory)
        watched.round_limit, watched.byte_limit = ROUNDS, BYTES
        try:
            Damage(self, DIRECT, random).some(self.asked)
            render(self._read(watched))
        finally:
            while self._before:
                place, data = self._before.pop()
                place[:] = np.frombuffer(data, np.uint8)


def targets(seed: int) -> list[MadeUp]:
    """All tables of all these guests."""
    return [
        MadeUp(f"{name}-{kind}", make(options), table, seed)
        for name, (make, tables) in _GUESTS.items()
        for kind, options in _KINDS.items()
        for table in tables
    ]
