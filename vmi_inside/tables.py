"""Which tables a guest has: their names, what each shows, and where it is made.

Knows no table's inside. To add one: a function `kernel, columns -> Table` in a file under `linux/`, and one line here.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, get_type_hints

if TYPE_CHECKING:
    from vmi_inside.linux.cached_files import CachedFiles
    from vmi_inside.linux.memory_map import MemoryMap
    from vmi_inside.linux.modules import KernelModules
    from vmi_inside.linux.open_files import OpenFiles
    from vmi_inside.linux.processes import Processes
    from vmi_inside.linux.sockets import OpenSockets
    from vmi_inside.linux.threads import Threads
    from vmi_inside.table import Table

T = TypeVar("T", bound="Table")
T_co = TypeVar("T_co", bound="Table", covariant=True)

#: All tables by name.
TABLES: Final[dict[str, Reading[Any]]] = {}


class Reader(Protocol):
    """What carries tables: it reads one, and vouches for it."""

    def read(self, reading: Reading[T], columns: Iterable[str] | None, **options: Any) -> T:
        """Read a table."""


class Read(Protocol[T_co]):
    """Reads a table; `columns` asks for some columns only, and only what they need is read."""

    def __call__(self, columns: Iterable[str] | None = None) -> T_co: ...  # noqa: D102


class ReadOfProcesses(Protocol[T_co]):
    """Reads a table; `pids` asks for the rows of these processes only, and what others need is not read."""

    def __call__(self, columns: Iterable[str] | None = None, *, pids: Iterable[int] | None = None) -> T_co: ...  # noqa: D102


class Reading(Generic[T]):
    """One table: where its function is (`module:function`), and what it shows, in words."""

    #: Whether the table can be read of some processes alone.
    by_process = False

    def __init__(self, where: str, words: str) -> None:
        self.where = where
        self.__doc__ = self.words = words
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        TABLES[name] = self

    def __get__(self, guest: Reader, owner: type) -> Read[T]:
        def read(columns: Iterable[str] | None = None) -> T:
            return guest.read(self, columns)

        return read

    @property
    def function(self) -> Any:
        """The function that reads it, imported when first asked for."""
        module, _, name = self.where.partition(":")
        return getattr(import_module(f"vmi_inside.{module}"), name)

    @property
    def table(self) -> type[T]:
        """The table's class, which knows its columns."""
        made: type[T] = get_type_hints(self.function)["return"]
        return made


class ReadingOfProcesses(Reading[T]):
    """A table that can be read of some processes alone: its function takes `pids` too."""

    by_process = True

    def __get__(self, guest: Reader, owner: type) -> ReadOfProcesses[T]:
        def read(columns: Iterable[str] | None = None, *, pids: Iterable[int] | None = None) -> T:
            return guest.read(self, columns, pids=None if pids is None else frozenset(pids))

        return read


class Tables:
    """A guest's tables, each a method: `guest.processes(columns=("pid", "name"))`."""

    processes: Reading[Processes] = Reading("linux.processes:processes", "All processes, containers' too.")
    threads: Reading[Threads] = Reading("linux.threads:threads", "All threads of all processes.")
    process_open_sockets: Reading[OpenSockets] = Reading(
        "linux.sockets:process_open_sockets", "All sockets, and who holds them."
    )
    process_open_files: Reading[OpenFiles] = ReadingOfProcesses(
        "linux.open_files:process_open_files", "All open files, working directories, roots and executables."
    )
    process_memory_map: Reading[MemoryMap] = ReadingOfProcesses(
        "linux.memory_map:process_memory_map", "The regions of all processes' memory."
    )
    kernel_modules: Reading[KernelModules] = Reading("linux.modules:kernel_modules", "Loaded kernel modules.")
    cached_files: Reading[CachedFiles] = Reading(
        "linux.cached_files:cached_files", "Files that the kernel has in memory, and how much of each."
    )
