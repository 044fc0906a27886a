"""Several tables as one picture: what is read agrees with itself, though the guest goes on.

Knows how to read the same tables again until all that they need was copied at one moment. How pages are copied is
left to `drivers.captured`, how a guest is paused to the caller.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from vmi_inside.drivers.captured import CapturedMemory
from vmi_inside.errors import Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.table import Table, Text, text
from vmi_inside.tables import TABLES, Reading, T, Tables
from vmi_inside.types import I64

if TYPE_CHECKING:
    from vmi_inside.memory import PhysicalMemory

#: What a snapshot holds unless it is told.
USUAL: Final = ("processes", "process_open_sockets", "process_open_files", "kernel_modules")
#: How often the tables are read before it is said that the guest changes too quickly.
_TRIES: Final = 6


class Held(Protocol):
    """A pause: for how many seconds the guest stood still, when it is over."""

    seconds: float


class Contents(Table):
    """One row for each table of a snapshot."""

    table_name: Text
    rows: I64
    marked: I64  # rows that have a fault


class Snapshot(Tables):
    """Tables of one guest at one moment: `snapshot.processes()`, or `tables["processes"]`.

    `taken` is when, in seconds since the epoch by this host's clock; `took` how many seconds copying lasted, which is
    how far apart two things in it can be; `paused` for how many seconds the guest stood still for it, 0.0 when it was
    not asked to. `whole` says whether all comes from that moment; else `notes` says what does not.
    """

    def __init__(
        self,
        name: str,
        tables: Mapping[str, Table],
        *,
        taken: float,
        took: float = 0.0,
        paused: float = 0.0,
        whole: bool = True,
        notes: Iterable[str] = (),
    ) -> None:
        self.name = name
        self.tables = dict(tables)
        self.taken = taken
        self.took = took
        self.paused = paused
        self.whole = whole
        self.notes = tuple(notes)

    def __repr__(self) -> str:
        return f"<Snapshot of {self.name}: {', '.join(self.tables)}>"

    def contents(self) -> Contents:
        """What it holds."""
        marked = [sum(map(bool, table.fault.tolist())) for table in self.tables.values()]
        columns = {
            "table_name": text(self.tables),
            "rows": np.array([len(table) for table in self.tables.values()], dtype=np.int64),
            "marked": np.array(marked, dtype=np.int64),
            "fault": text("" for _ in marked),
        }
        return Contents(columns, self.notes)

    def read(self, reading: Reading[T], columns: Iterable[str] | None = None, **options: Any) -> T:
        """One of its tables, or some columns of it. Raises `Unsupported` for a table that it does not hold."""
        table: Any = self.tables.get(reading.name)
        if table is None:
            raise Unsupported(f"{self.name}: this snapshot holds no {reading.name}; it has {', '.join(self.tables)}")
        if options.get("pids") is not None:
            table = table.where(np.isin(table.pid, list(options["pids"])))
        found: T = table if columns is None else table.select(*dict.fromkeys((*columns, "fault")))
        return found

    def reading(self) -> AbstractContextManager[None]:
        """What `sql.query` asks for: nothing to be done here."""
        return nullcontext()


def wanted(names: Iterable[str]) -> dict[str, Reading[Any]]:
    """The tables of these names, or the usual ones. Raises `Unsupported` for a name that is no table."""
    listed = tuple(names) or USUAL
    for name in listed:
        if name not in TABLES:
            raise Unsupported(f"there is no table {name!r}; there are {', '.join(TABLES)}")
    return {name: TABLES[name] for name in listed}


def take(
    name: str,
    kernel: Kernel,
    memory: PhysicalMemory,
    readings: Mapping[str, Reading[Any]],
    *,
    pause: Callable[[], AbstractContextManager[Held]] | None = None,
    live: bool = True,
) -> Snapshot:
    """A snapshot of these tables of a guest, whose memory is `memory`.

    The tables are read once, to see which pages they need; these are copied in one go, during which the guest stands
    still when `pause` is given; and the tables are read from the copy. What the guest changed in between may need
    pages that were not copied: then all is done again. Of a guest that changes too quickly for that, the tables are
    read while it stands still, with `pause`; without it the snapshot is not `whole`.
    """
    if not live:
        return Snapshot(name, _tables(kernel, readings), taken=time.time())
    captured = CapturedMemory(memory)
    still = Kernel(kernel.space.over(captured), kernel.profile)
    still.modules = kernel.modules
    taken, took, stood = time.time(), 0.0, 0.0
    for _ in range(_TRIES):
        tables = _tables(still, readings)
        if not captured.missed:
            return Snapshot(name, tables, taken=taken, took=took, paused=stood)
        captured.prepare()
        with pause() if pause else nullcontext() as held:
            taken, begin = time.time(), time.perf_counter()
            captured.capture()
            took = time.perf_counter() - begin
        stood += held.seconds if held else 0.0
        captured.settle()
    if pause:
        with pause() as held:
            taken = time.time()
            tables = _tables(kernel, readings)
        return Snapshot(name, tables, taken=taken, paused=stood + held.seconds)
    tables = _tables(still, readings)
    missed = captured.missed
    notes = (f"the guest changes too quickly: {missed} pages were read after the others",) if missed else ()
    return Snapshot(name, tables, taken=taken, took=took, paused=stood, whole=not missed, notes=notes)


def _tables(kernel: Kernel, readings: Mapping[str, Reading[Any]]) -> dict[str, Table]:
    with kernel.operation():
        return {name: reading.function(kernel, None) for name, reading in readings.items()}
