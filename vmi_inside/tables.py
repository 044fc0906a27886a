"""Which tables a guest has: their names, what each shows, and where it is made.

Knows no table's inside. To add one: a function `kernel, columns -> Table` in a file under `linux/`, and one line here.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, get_type_hints

if TYPE_CHECKING:
    from vmi_inside.linux.bpf_attachments import BpfAttachments
    from vmi_inside.linux.bpf_links import BpfLinks
    from vmi_inside.linux.bpf_maps import BpfMaps
    from vmi_inside.linux.bpf_programs import BpfPrograms
    from vmi_inside.linux.buddy_info import BuddyInfo
    from vmi_inside.linux.ftrace_functions import FtraceFunctions
    from vmi_inside.linux.ftrace_ops import FtraceOps
    from vmi_inside.linux.kprobes import Kprobes
    from vmi_inside.linux.memory_info import MemoryInfo
    from vmi_inside.linux.memory_map import MemoryMap
    from vmi_inside.linux.modules import KernelModules
    from vmi_inside.linux.open_files import OpenFiles
    from vmi_inside.linux.perf_events import PerfEvents
    from vmi_inside.linux.process_memory import ProcessMemory
    from vmi_inside.linux.processes import Processes
    from vmi_inside.linux.slab_caches import SlabCaches
    from vmi_inside.linux.sockets import OpenSockets
    from vmi_inside.linux.swaps import Swaps
    from vmi_inside.linux.threads import Threads
    from vmi_inside.linux.tracepoints import Tracepoints
    from vmi_inside.linux.uprobes import Uprobes
    from vmi_inside.linux.vm_counters import VmCounters
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
    memory_info: Reading[MemoryInfo] = Reading("linux.memory_info:memory_info", "What the system's memory is used for.")
    slab_caches: Reading[SlabCaches] = Reading("linux.slab_caches:slab_caches", "The kernel's slab caches.")
    process_memory: Reading[ProcessMemory] = ReadingOfProcesses(
        "linux.process_memory:process_memory", "What each process's memory consists of."
    )
    bpf_programs: Reading[BpfPrograms] = Reading("linux.bpf_programs:bpf_programs", "Loaded eBPF programs.")
    bpf_maps: Reading[BpfMaps] = Reading("linux.bpf_maps:bpf_maps", "eBPF maps.")
    bpf_links: Reading[BpfLinks] = Reading("linux.bpf_links:bpf_links", "What eBPF programs are attached to.")
    bpf_attachments: Reading[BpfAttachments] = Reading(
        "linux.bpf_attachments:bpf_attachments", "eBPF programs at control groups and devices, without a link too."
    )
    kprobes: Reading[Kprobes] = Reading("linux.kprobes:kprobes", "Where the kernel is probed, and by whom.")
    ftrace_ops: Reading[FtraceOps] = Reading("linux.ftrace_ops:ftrace_ops", "Who uses ftrace.")
    ftrace_functions: Reading[FtraceFunctions] = Reading(
        "linux.ftrace_functions:ftrace_functions", "Functions that are traced, and by whom."
    )
    tracepoints: Reading[Tracepoints] = Reading(
        "linux.tracepoints:tracepoints", "Functions that are called at tracepoints."
    )
    uprobes: Reading[Uprobes] = Reading("linux.uprobes:uprobes", "Where programs are probed, and by whom.")
    buddy_info: Reading[BuddyInfo] = Reading("linux.buddy_info:buddy_info", "Free memory by the size of its pieces.")
    swaps: Reading[Swaps] = Reading("linux.swaps:swaps", "Where memory is swapped to.")
    perf_events: Reading[PerfEvents] = Reading("linux.perf_events:perf_events", "Perf events that processes opened.")
    vm_counters: Reading[VmCounters] = Reading(
        "linux.vm_counters:vm_counters", "Counters of memory, and of what was done with it."
    )
