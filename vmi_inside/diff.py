"""What came, went and changed between two snapshots.

Knows, of each table, what tells a row from the others and which columns change of themselves. Where snapshots come from
is left to `guest` and `saved`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from vmi_inside.errors import Unsupported
from vmi_inside.snapshot import Snapshot
from vmi_inside.table import Table, Text, text

#: Columns that change while nothing happens.
_RESTLESS: Final = frozenset({
    "user_time", "system_time", "resident_size", "total_size", "state", "rx_queue", "tx_queue", "offset", "fault",
    "uptime", "processor", "start_time", "wchan",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Identity:
    """Which columns make a row this row and no other, and which tell people what it is."""

    key: tuple[str, ...]
    shown: tuple[str, ...] = ()
    restless: tuple[str, ...] = ()


#: Rows of other tables are compared whole, but for what is restless.
_IDENTITIES: Final = {
    "processes": _Identity(("pid", "address"), ("name", "path", "uid"), ("threads",)),
    "threads": _Identity(("tid", "address"), ("pid", "name")),
    "process_open_sockets": _Identity(
        ("address", "pid", "fd"),
        ("protocol", "local_address", "local_port", "remote_address", "remote_port", "path", "name"),
    ),
    "process_open_files": _Identity(("pid", "descriptor", "path", "inode"), ("name",), ("size",)),
    "process_memory_map": _Identity(("pid", "start", "end", "path"), ("permissions",)),
    "kernel_modules": _Identity(("name", "base"), ("size",), ("references",)),
    "kernel_log": _Identity(("sequence",), ("text",)),
    "mounts": _Identity(("mnt_namespace", "id"), ("path", "device")),
    "block_devices": _Identity(("name",)),
    "kernel_keys": _Identity(("serial_number", "address"), ("type", "description")),
    "timers": _Identity(("address",), ("function",), ("remaining", "expires")),
    "cgroups": _Identity(("hierarchy", "path", "id"), (), ("processes", "threads")),
    "process_envs": _Identity(("pid", "key"), ("name",)),
    "process_limits": _Identity(("pid", "resource"), ("name",)),
    "process_credentials": _Identity(("pid",), ("name",)),
    "process_namespaces": _Identity(("pid",), ("name",)),
    "interface_details": _Identity(
        ("net_namespace", "interface"), (), ("ipackets", "opackets", "ibytes", "obytes", "ierrors", "oerrors")
    ),
}
ADDED: Final = "added"
REMOVED: Final = "removed"
CHANGED: Final = "changed"


class Changes(Table):
    """One row for each row that came or went, and for each column of a row that changed."""

    table_name: Text
    change: Text  # added, removed, changed
    row: Text  # which: `pid=812 name=nginx`
    column_name: Text  # what changed; empty for a row that came or went
    before: Text
    after: Text


def diff(before: Snapshot, after: Snapshot, tables: Iterable[str] = ()) -> Changes:
    """The changes from one snapshot to the other, in these tables or in all that both hold.

    What changes of itself (times, sizes, queues, states) is left out. Raises `Unsupported` for a table that one of
    the two does not hold.
    """
    names = tuple(tables) or tuple(name for name in before.tables if name in after.tables)
    for name in names:
        for one in (before, after):
            if name not in one.tables:
                raise Unsupported(f"{one.name}: this snapshot holds no {name}; it has {', '.join(one.tables)}")
    rows = [(name, *found) for name in names for found in _compare(name, before.tables[name], after.tables[name])]
    columns = {
        column: text(row[at] for row in rows)
        for at, column in enumerate(("table_name", "change", "row", "column_name", "before", "after"))
    }
    notes = [
        f"{one.name}: {name}: {note}" for one in (before, after) for name in names for note in one.tables[name].notes
    ]
    return Changes({**columns, "fault": text("" for _ in rows)}, notes)


def _compare(name: str, before: Table, after: Table) -> Iterator[tuple[str, str, str, str, str]]:
    common = [column for column in before.columns if column in after.columns]
    identity = _IDENTITIES.get(name) or _Identity(tuple(column for column in common if column not in _RESTLESS))
    key = [column for column in identity.key if column in common]
    shown = [column for column in (*identity.key, *identity.shown) if column in common and column != "address"]
    watched = [column for column in common if column not in {*key, *_RESTLESS, *identity.restless}]
    old, new = _keyed(before, key, common), _keyed(after, key, common)
    for found in old:
        if found not in new:
            yield REMOVED, _words(old[found], shown), "", "", ""
    for found, row in new.items():
        if found not in old:
            yield ADDED, _words(row, shown), "", "", ""
            continue
        for column in watched:
            if not _alike(old[found][column], row[column]):
                yield CHANGED, _words(row, shown), column, str(old[found][column]), str(row[column])


def _keyed(table: Table, key: list[str], columns: list[str]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows by what tells them apart; rows that nothing tells apart are numbered."""
    seen: Counter[tuple[Any, ...]] = Counter()
    out = {}
    for row in table.select(*columns).to_dicts():
        identity = tuple(row[column] for column in key)
        seen[identity] += 1
        out[(*identity, seen[identity])] = row
    return out


def _alike(before: Any, after: Any) -> bool:
    """Whether a value did not change; a worker of the kernel says behind its name what it is at."""
    worker = "kworker/"
    if isinstance(before, str) and before.startswith(worker) and str(after).startswith(worker):
        before, after = before.replace("+", "-").partition("-")[0], after.replace("+", "-").partition("-")[0]
    return bool(before == after)


def _words(row: dict[str, Any], shown: list[str]) -> str:
    return " ".join(f"{column}={row[column]}" for column in shown if row[column] not in ("", -1))
