"""Which tables a guest has: their names, what each shows, and where it is made.

Knows no table's inside. To add one: a function `kernel, columns -> Table` in a file under `linux/`, and one line here.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, get_type_hints

if TYPE_CHECKING:
    from vmi_inside.control.gates.listing import Gates
    from vmi_inside.linux.files.block_devices import BlockDevices
    from vmi_inside.linux.files.cached_files import CachedFiles
    from vmi_inside.linux.files.mounts import Mounts
    from vmi_inside.linux.kernel_info import KernelInfo
    from vmi_inside.linux.kernel_keys import KernelKeys
    from vmi_inside.linux.kernel_log import KernelLog
    from vmi_inside.linux.memory.buddy_info import BuddyInfo
    from vmi_inside.linux.memory.memory_info import MemoryInfo
    from vmi_inside.linux.memory.memory_map import MemoryMap
    from vmi_inside.linux.memory.process_memory import ProcessMemory
    from vmi_inside.linux.memory.slab_caches import SlabCaches
    from vmi_inside.linux.memory.swaps import Swaps
    from vmi_inside.linux.memory.vm_counters import VmCounters
    from vmi_inside.linux.network.addresses import InterfaceAddresses
    from vmi_inside.linux.network.hooks import NetfilterHooks
    from vmi_inside.linux.network.interfaces import InterfaceDetails
    from vmi_inside.linux.network.neighbours import ArpCache
    from vmi_inside.linux.network.nftables import Nftables
    from vmi_inside.linux.network.nftables_sets import NftablesSets
    from vmi_inside.linux.network.routes import Routes
    from vmi_inside.linux.network.xtables import Xtables
    from vmi_inside.linux.processes.containers import Containers
    from vmi_inside.linux.processes.control_groups import ControlGroups
    from vmi_inside.linux.processes.credentials import ProcessCredentials
    from vmi_inside.linux.processes.environments import ProcessEnvs
    from vmi_inside.linux.processes.limits import ProcessLimits
    from vmi_inside.linux.processes.namespaces import ProcessNamespaces
    from vmi_inside.linux.processes.open_files import OpenFiles
    from vmi_inside.linux.processes.processes import Processes
    from vmi_inside.linux.processes.signals import ProcessSignals
    from vmi_inside.linux.processes.stacks import ProcessStack
    from vmi_inside.linux.processes.threads import Threads
    from vmi_inside.linux.resources import Resources
    from vmi_inside.linux.sockets import OpenSockets
    from vmi_inside.linux.symbols.modules import KernelModules
    from vmi_inside.linux.timers import Timers
    from vmi_inside.linux.tracing.bpf_attachments import BpfAttachments
    from vmi_inside.linux.tracing.bpf_links import BpfLinks
    from vmi_inside.linux.tracing.bpf_maps import BpfMaps
    from vmi_inside.linux.tracing.bpf_programs import BpfPrograms
    from vmi_inside.linux.tracing.ftrace_functions import FtraceFunctions
    from vmi_inside.linux.tracing.ftrace_ops import FtraceOps
    from vmi_inside.linux.tracing.kprobes import Kprobes
    from vmi_inside.linux.tracing.perf_events import PerfEvents
    from vmi_inside.linux.tracing.tracepoints import Tracepoints
    from vmi_inside.linux.tracing.uprobes import Uprobes
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


class ReadOfRecords(Protocol[T_co]):
    """Reads a table of numbered records; `after` asks for those with a higher `sequence` only."""

    def __call__(self, columns: Iterable[str] | None = None, *, after: int | None = None) -> T_co: ...  # noqa: D102


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


class ReadingOfRecords(Reading[T]):
    """A table of numbered records, of which the newer ones can be read alone: its function takes `after` too."""

    def __get__(self, guest: Reader, owner: type) -> ReadOfRecords[T]:
        def read(columns: Iterable[str] | None = None, *, after: int | None = None) -> T:
            return guest.read(self, columns, after=after)

        return read


class Tables:
    """A guest's tables, each a method: `guest.processes(columns=("pid", "name"))`."""

    processes: Reading[Processes] = Reading("linux.processes.processes:processes", "All processes, containers' too.")
    threads: Reading[Threads] = Reading("linux.processes.threads:threads", "All threads of all processes.")
    process_open_sockets: Reading[OpenSockets] = Reading(
        "linux.sockets:process_open_sockets", "All sockets, and who holds them."
    )
    process_open_files: ReadingOfProcesses[OpenFiles] = ReadingOfProcesses(
        "linux.processes.open_files:process_open_files", "All open files, working directories, roots and executables."
    )
    process_memory_map: ReadingOfProcesses[MemoryMap] = ReadingOfProcesses(
        "linux.memory.memory_map:process_memory_map", "The regions of all processes' memory."
    )
    process_envs: ReadingOfProcesses[ProcessEnvs] = ReadingOfProcesses(
        "linux.processes.environments:process_envs", "All processes' environment variables."
    )
    process_namespaces: ReadingOfProcesses[ProcessNamespaces] = ReadingOfProcesses(
        "linux.processes.namespaces:process_namespaces", "The namespaces of all processes."
    )
    process_credentials: ReadingOfProcesses[ProcessCredentials] = ReadingOfProcesses(
        "linux.processes.credentials:process_credentials", "All processes' ids, groups, capabilities and confinement."
    )
    process_limits: ReadingOfProcesses[ProcessLimits] = ReadingOfProcesses(
        "linux.processes.limits:process_limits", "The resource limits of all processes."
    )
    process_signals: ReadingOfProcesses[ProcessSignals] = ReadingOfProcesses(
        "linux.processes.signals:process_signals", "Signals of all processes, and who traces whom."
    )
    process_stack: ReadingOfProcesses[ProcessStack] = ReadingOfProcesses(
        "linux.processes.stacks:process_stack", "The kernel stacks of all threads that do not run."
    )
    containers: Reading[Containers] = Reading(
        "linux.processes.containers:containers", "Containers, by control groups and namespaces."
    )
    kernel_modules: Reading[KernelModules] = Reading("linux.symbols.modules:kernel_modules", "Loaded kernel modules.")
    kernel_info: Reading[KernelInfo] = Reading("linux.kernel_info:kernel_info", "The kernel that runs: one row.")
    kernel_log: ReadingOfRecords[KernelLog] = ReadingOfRecords("linux.kernel_log:kernel_log", "The kernel's log.")
    mounts: Reading[Mounts] = Reading("linux.files.mounts:mounts", "Mounts of all mount namespaces.")
    block_devices: Reading[BlockDevices] = Reading("linux.files.block_devices:block_devices", "Disks and partitions.")
    iomem: Reading[Resources] = Reading("linux.resources:iomem", "Ranges of physical addresses, and what they are.")
    ioports: Reading[Resources] = Reading("linux.resources:ioports", "Ranges of ports, and what they are.")
    kernel_keys: Reading[KernelKeys] = Reading("linux.kernel_keys:kernel_keys", "The kernel's keys and keyrings.")
    interface_details: Reading[InterfaceDetails] = Reading(
        "linux.network.interfaces:interface_details", "Network interfaces of all network namespaces."
    )
    interface_addresses: Reading[InterfaceAddresses] = Reading(
        "linux.network.addresses:interface_addresses", "IP addresses of all interfaces of all network namespaces."
    )
    routes: Reading[Routes] = Reading(
        "linux.network.routes:routes", "Routes of all routing tables of all network namespaces."
    )
    arp_cache: Reading[ArpCache] = Reading(
        "linux.network.neighbours:arp_cache", "Neighbours on the link: ARP's and IPv6's, of all network namespaces."
    )
    netfilter_hooks: Reading[NetfilterHooks] = Reading(
        "linux.network.hooks:netfilter_hooks", "Functions on netfilter's hooks, of all network namespaces."
    )
    memory_info: Reading[MemoryInfo] = Reading(
        "linux.memory.memory_info:memory_info", "What the system's memory is used for."
    )
    slab_caches: Reading[SlabCaches] = Reading("linux.memory.slab_caches:slab_caches", "The kernel's slab caches.")
    process_memory: ReadingOfProcesses[ProcessMemory] = ReadingOfProcesses(
        "linux.memory.process_memory:process_memory", "What each process's memory consists of."
    )
    bpf_programs: Reading[BpfPrograms] = Reading("linux.tracing.bpf_programs:bpf_programs", "Loaded eBPF programs.")
    bpf_maps: Reading[BpfMaps] = Reading("linux.tracing.bpf_maps:bpf_maps", "eBPF maps.")
    bpf_links: Reading[BpfLinks] = Reading("linux.tracing.bpf_links:bpf_links", "What eBPF programs are attached to.")
    bpf_attachments: Reading[BpfAttachments] = Reading(
        "linux.tracing.bpf_attachments:bpf_attachments",
        "eBPF programs at control groups and devices, without a link too.",
    )
    kprobes: Reading[Kprobes] = Reading("linux.tracing.kprobes:kprobes", "Where the kernel is probed, and by whom.")
    ftrace_ops: Reading[FtraceOps] = Reading("linux.tracing.ftrace_ops:ftrace_ops", "Who uses ftrace.")
    ftrace_functions: Reading[FtraceFunctions] = Reading(
        "linux.tracing.ftrace_functions:ftrace_functions", "Functions that are traced, and by whom."
    )
    tracepoints: Reading[Tracepoints] = Reading(
        "linux.tracing.tracepoints:tracepoints", "Functions that are called at tracepoints."
    )
    gates: Reading[Gates] = Reading("control.gates.listing:gates", "What is denied to whom, and how often it was.")
    timers: Reading[Timers] = Reading("linux.timers:timers", "Timers that wait, of all CPUs.")
    cgroups: Reading[ControlGroups] = Reading(
        "linux.processes.control_groups:cgroups", "Control groups of all hierarchies."
    )
    nftables: Reading[Nftables] = Reading(
        "linux.network.nftables:nftables", "Tables and chains of nftables, of all network namespaces."
    )
    nftables_sets: Reading[NftablesSets] = Reading(
        "linux.network.nftables_sets:nftables_sets", "Sets and maps of nftables, of all network namespaces."
    )
    xtables: Reading[Xtables] = Reading(
        "linux.network.xtables:xtables", "Tables of legacy iptables, of all network namespaces."
    )
    uprobes: Reading[Uprobes] = Reading("linux.tracing.uprobes:uprobes", "Where programs are probed, and by whom.")
    buddy_info: Reading[BuddyInfo] = Reading(
        "linux.memory.buddy_info:buddy_info", "Free memory by the size of its pieces."
    )
    swaps: Reading[Swaps] = Reading("linux.memory.swaps:swaps", "Where memory is swapped to.")
    perf_events: Reading[PerfEvents] = Reading(
        "linux.tracing.perf_events:perf_events", "Perf events that processes opened."
    )
    vm_counters: Reading[VmCounters] = Reading(
        "linux.memory.vm_counters:vm_counters", "Counters of memory, and of what was done with it."
    )
    cached_files: Reading[CachedFiles] = Reading(
        "linux.files.cached_files:cached_files", "Files that the kernel has in memory, and how much of each."
    )
