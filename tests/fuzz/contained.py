"""What lies outside a damaged structure is still read: one process's struct becomes noise, all others' rows stay."""

from __future__ import annotations

from random import Random
from typing import Any, Final

import numpy as np

from tests.fuzz.image import Image
from tests.fuzz.watch import Violation
from vmi_inside.tables import TABLES

#: Members of a task that lead to what is its own alone, unless it is shared.
_OWN: Final = ("real_cred", "mm", "signal", "files", "fs")
_TABLES: Final = (
    "processes", "process_open_files", "process_open_sockets", "process_credentials", "process_envs",
    "process_memory_map",
)  # fmt: skip


class Contained:
    """One structure of one process is overwritten with noise, and all that is told of other processes stays."""

    def __init__(self, image: Image, seed: int) -> None:
        self.name = f"{image.name}:contained"
        self.image = image
        self.seed = seed
        guest = image.guest()
        kernel = guest.kernel
        table = guest.processes(("pid", "address"))
        tasks = kernel.structs("task_struct", table.address).fetch(*_OWN)
        self.places: list[tuple[int, int, int]] = []  # pid, address, size
        for name in _OWN:
            pointer = tasks.pointer(name)
            value, first, count = np.unique(pointer, return_index=True, return_counts=True)
            size = tasks.type.member(name).type.target.size
            alone = (count == 1) & (value != 0)
            self.places += [
                (int(table.pid[row]), int(pointer[row]), size) for row in first[alone].tolist()
            ]  # fmt: skip
        self.space = image.kernel().space
        self.before = {name: self._rows(name) for name in _TABLES}

    def _rows(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.image.guest().read(TABLES[name]).to_dicts()
        return found

    def case(self, number: int) -> None:
        """Overwrite one structure, read a table, compare, repair."""
        random = Random(f"{self.seed} {self.name} {number}")
        pid, address, size = random.choice(self.places)
        name = random.choice(_TABLES)
        fill = random.choice((b"", b"", b"\0", b"\xff", b"A"))
        noise = fill * size if fill else random.randbytes(size)
        try:
            for start in range(address & ~4095, address + size, 4096):
                low, high = max(start, address), min(start + 4096, address + size)
                self.image.damage(self.space.translate_one(low), noise[low - address : high - address])
            after = self._rows(name)
        finally:
            self.image.repair()
        expected, got = (_others(rows, pid) for rows in (self.before[name], after))
        if expected != got:
            lost = [row for row in expected if row not in got]
            raise Violation(f"{name}: noise at {address:#x} of process {pid} changed rows of others: {lost[:2]}")


def _others(rows: list[dict[str, Any]], pid: int) -> list[dict[str, Any]]:
    """Rows of other processes; what is held by none (-1) may have become so."""
    return sorted((row for row in rows if row["pid"] not in (pid, -1)), key=repr)
