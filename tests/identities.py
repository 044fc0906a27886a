"""What a row of each table is known by, and what of it stays while it is the same: to hold two readings together.

A row that was put together of two others has the key of one and something of the other: read again, it differs from
itself.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from vmi_inside.table import Table


@dataclass(frozen=True, slots=True)
class Identity:
    """`key` are columns that no two rows have in common, unless one follows the other; `fixed` those that stay.

    `still`: in a guest in which processes come and go, and nothing else is done, no row of it comes or goes.
    `ending`: what is fixed is taken away, to 0 or nothing, before the row itself is: of a process that exits.
    """

    key: tuple[str, ...]
    fixed: tuple[str, ...]
    still: bool = False
    ending: bool = False

    def same(self, one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
        """Whether two rows of one key can be the same one, now and later."""
        pairs = zip(one, other, strict=True)
        return all(a == b or (self.ending and not (a and b)) for a, b in pairs)


def _one(key: str, fixed: str, *, still: bool = False, ending: bool = False) -> Identity:
    return Identity(tuple(key.split()), tuple(fixed.split()), still, ending)


_NAMESPACES: Final = (
    "cgroup_namespace ipc_namespace mnt_namespace net_namespace pid_namespace user_namespace uts_namespace"
)

#: Of every table.
IDENTITIES: Final = {
    "processes": _one("pid address", "start_time kernel_thread pid_namespace net_namespace root", ending=True),
    "threads": _one("tid address", "pid start_time kernel_thread"),
    "process_open_sockets": _one("address inode pid fd", "family protocol type net_namespace"),
    "process_open_files": _one("pid descriptor fd address inode", "type device"),
    "process_memory_map": _one("pid address start", "inode device path"),
    "process_envs": _one("pid key", "value"),
    "process_namespaces": _one("pid", f"{_NAMESPACES} pid_in_namespace", ending=True),
    "process_credentials": _one("pid", "loginuid sessionid user_namespace label securebits"),
    "process_limits": _one("pid resource", "soft hard unit"),
    "process_signals": _one("pid", "tracer ptrace"),
    "process_stack": _one("tid frame", "pid how"),
    "containers": _one("id pid", "name runtime init hostname cgroup_path mnt_namespace", still=True),
    "kernel_modules": _one("address", "name size base version srcversion", still=True),
    "kernel_info": _one("version", "arguments build machine hostname cpus page_size kaslr_offset", still=True),
    "kernel_log": _one("sequence", "time level facility caller text"),
    "mounts": _one("address mnt_namespace", "device path type flags id parent number", still=True),
    "block_devices": _one("address", "name parent size kind number", still=True),
    "iomem": _one("address", "start end name depth", still=True),
    "ioports": _one("address", "start end name depth", still=True),
    "kernel_keys": _one("serial_number", "uid gid type address"),
    "interface_details": _one("address", "net_namespace interface ifindex kind mac type", still=True),
    "interface_addresses": _one("pointer", "net_namespace interface family address prefix_length", still=True),
    "routes": _one("pointer destination table", "net_namespace family gateway interface type protocol scope"),
    "arp_cache": _one("pointer", "net_namespace family address interface"),
    "netfilter_hooks": _one("pointer hook family priority", "net_namespace function module kind", still=True),
    "memory_info": _one("memory_total", "huge_page_size cma_total swap_total", still=True),
    "slab_caches": _one("address", "name objsize objperslab pagesperslab object_size", still=True),
    "process_memory": _one("pid", "stack", ending=True),
    "bpf_programs": _one("id address", "type name tag load_time", still=True),
    "bpf_maps": _one("id address", "type name key_size value_size max_entries", still=True),
    "bpf_links": _one("id address", "type program_id", still=True),
    "bpf_attachments": _one("program_id attach_type target", "program link_id", still=True),
    "kprobes": _one("address", "symbol type probed handler", still=True),
    "ftrace_ops": _one("address", "callback owner name", still=True),
    "ftrace_functions": _one("probed", "function owner", still=True),
    "tracepoints": _one("address function", "name module owner", still=True),
    "gates": _one("operation address scope", "pid uid cgroup", still=True),
    "timers": _one("address kind expires", "base function owner"),
    "cgroups": _one("address id", "hierarchy path", still=True),
    "nftables": _one("pointer chain", "net_namespace family table type hook priority", still=True),
    "nftables_sets": _one("pointer", "net_namespace family table name flags", still=True),
    "xtables": _one("pointer", "net_namespace family table hooks size", still=True),
    "uprobes": _one("address", "path inode offset", still=True),
    "buddy_info": _one("address", "node zone managed present first_page", still=True),
    "swaps": _one("address", "path type size", still=True),
    "perf_events": _one("address tid", "type config target", still=True),
    "vm_counters": _one("name", "kind", still=True),
    "cached_files": _one("address inode device", "filesystem type"),
}  # fmt: skip


def changed(name: str, before: Table, after: Table) -> tuple[list[str], list[str]]:
    """Unmarked rows that differ from themselves, and those that are in one of two readings alone; as lines of text."""
    identity = IDENTITIES[name]
    first, second = (_rows(identity, table) for table in (before, after))
    differ = [
        f"{name} {key}: {first[key]} became {second[key]}"
        for key in first.keys() & second
        if not identity.same(first[key], second[key])
    ]
    marked = {key for table in (before, after) for key in _keys(identity, table, marked=True)}
    alone = [f"{name} {key}: {first.get(key) or second.get(key)}" for key in (first.keys() ^ second) - marked]
    return differ, alone


def _keys(identity: Identity, table: Table, *, marked: bool) -> list[tuple[Any, ...]]:
    """The keys of those rows that are marked, or that are not."""
    columns = [table.column(name).tolist() for name in (*identity.key, "fault")]
    return [key for *rest, fault in zip(*columns, strict=True) if bool(fault) is marked for key in [tuple(rest)]]


def _rows(identity: Identity, table: Table) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """What is fixed of each unmarked row, by its key. Keys that several have, as where one is 0, tell nothing."""
    keys = _keys(identity, table, marked=False)
    good = table.where(table.column("fault") == "")
    fixed = zip(*(good.column(name).tolist() for name in identity.fixed), strict=True)
    often = Counter(keys)
    return {key: value for key, value in zip(keys, fixed, strict=True) if often[key] == 1}
