"""Targets over real guests: a reading is done once to see what it asks for, that is damaged, and it is done again."""

from __future__ import annotations

from random import Random
from typing import Final

from tests.fuzz.damage import Damage
from tests.fuzz.image import Image, WatchedMemory
from tests.fuzz.readings import READINGS, Reading, well_formed
from tests.fuzz.watch import Violation
from vmi_inside.errors import VmiError
from vmi_inside.table import Table

#: Rounds of reading and bytes that a damaged guest may cost, beside what the whole one does, times this: a chain may
#: have 16,384 rounds (`walk.ROUND_LIMIT`), a gather 64 MiB (`ragged.TOTAL_LIMIT`), and a table has several.
TIMES: Final = 4
ROUNDS: Final = 200_000
BYTES: Final = 2 << 30


class DamagedGuest:
    """One reading of one guest, with damage to what it reads.

    `lost` counts, for readings that gave a table without a note, an error or a mark, cases with fewer than half the
    rows: what is not said. `errors` counts cases that ended in an error, by its type.
    """

    def __init__(self, image: Image, name: str, reading: Reading, seed: int) -> None:
        self.name = f"{image.name}:{name}"
        self.image = image
        self.reading = reading
        self.seed = seed
        watched = WatchedMemory(image.memory, keep=True)
        kernel = image.kernel(watched)
        guest = image.guest()
        guest.kernel = kernel
        self.whole = reading(guest)
        self.rounds, self.moved = watched.rounds, watched.moved
        self.asked = watched.asked or []
        self.direct = image.kernel().number(8, "page_offset_base")
        self.errors: dict[str, list[int]] = {}
        self.lost: list[int] = []
        self.most_rounds = self.most_moved = 0

    def case(self, number: int) -> None:
        """Damage, read, look at what came, repair."""
        random = Random(f"{self.seed} {self.name} {number}")
        watched = WatchedMemory(self.image.memory)
        watched.round_limit = TIMES * self.rounds + ROUNDS
        watched.byte_limit = TIMES * self.moved + BYTES
        try:
            Damage(self.image, self.direct, random).some(self.asked)
            guest = self.image.guest()
            guest.kernel = self.image.kernel(watched)
            made = self.reading(guest)
            if isinstance(made, Table) and isinstance(self.whole, Table):
                self._compare(made, self.whole, number)
        except VmiError as error:
            self.errors.setdefault(type(error).__name__, []).append(number)
        finally:
            self.image.repair()
            self.most_rounds = max(self.most_rounds, watched.rounds)
            self.most_moved = max(self.most_moved, watched.moved)

    def _compare(self, made: Table, whole: Table, number: int) -> None:
        if len(made) * 2 < len(whole) and not made.notes and not any(made.fault.tolist()):
            self.lost.append(number)

    def again(self) -> None:
        """The repaired image reads as it did: nothing of what was damaged is remembered."""
        guest = self.image.guest()
        made = self.reading(guest)
        if isinstance(made, Table) and isinstance(self.whole, Table):
            well_formed(made)
            if made.to_dicts() != self.whole.to_dicts():
                raise Violation("the repaired guest reads differently")


def targets(image: Image, seed: int) -> list[DamagedGuest]:
    """All readings of that guest."""
    return [DamagedGuest(image, name, reading, seed) for name, reading in READINGS.items()]
