"""Settings of the kernel by the names that sysctl(8) has for them, where setting one is storing a value.

Knows the tree of `struct ctl_dir` (include/linux/sysctl.h, fs/proc/proc_sysctl.c; 3.4 and later): directories are
red-black trees, whose nodes are arrays beside arrays of entries. Settings whose handlers do more than storing are
refused: what they would do beside cannot be done by writing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.control.rehearsal import Changing
from vmi_inside.errors import ControlError, NoMember, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs

_NODE_LIMIT: Final = 16384  # entries in one directory
_DEPTH_LIMIT: Final = 16
_SIZE_LIMIT: Final = 4096
_FORMAT, _DIRECTORY, _LINK = 0o170000, 0o040000, 0o120000

#: Handlers that store numbers and do nothing else: bytes of each, and whether they are signed (kernel/sysctl.c).
_NUMBERS: Final = {
    "proc_dointvec": (4, True),
    "proc_dointvec_minmax": (4, True),
    "proc_douintvec": (4, False),
    "proc_douintvec_minmax": (4, False),
    "proc_dou8vec_minmax": (1, False),
    "proc_dobool": (1, False),
    "proc_doulongvec_minmax": (8, False),
}
_TEXT: Final = "proc_dostring"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: where it is stored, how many bytes, by which handler, and the addresses of its least and most."""

    name: str
    address: int
    size: int
    handler: str
    least: int
    most: int


def find_setting(kernel: Kernel, name: str) -> Setting:
    """The setting of that name (`kernel.panic`, `vm/swappiness`), of the initial network namespace where it matters.

    Raises `ControlError` when there is none, `Unsupported` when setting it is more than storing a value.
    """
    words = name.replace("/", ".").strip(".").split(".")
    if not 1 < len(words) <= _DEPTH_LIMIT:
        raise ControlError(f"{name!r} is no setting like kernel.panic or vm.swappiness")
    entry = None
    with kernel.operation():
        for top in _tops(kernel):
            entry = entry or _find(kernel, top, words)
        if entry is None:
            raise ControlError(
                f"the guest's kernel has no setting {name!r}, or one for each ipc, pid or user namespace only"
            )
        entry.fetch("data", "maxlen", "proc_handler", "extra1", "extra2")
    at = int(entry.pointer("proc_handler")[0])
    handler = next((one for one in (*_NUMBERS, _TEXT) if kernel.profile.find_symbol(one) == at), "")
    if not handler:
        known = kernel.profile.symbol_at(at)
        raise Unsupported(
            f"{name}: the kernel does more than to store a value when it is set ({known[0] if known else hex(at)}); "
            "set it inside the guest"
        )
    size = int(entry.number("maxlen")[0])
    if handler == "proc_dobool":
        size = 1  # whatever `maxlen` says: until 6.4 the size of an int was written there
    address = int(entry.pointer("data")[0])
    if not address or not 0 < size <= _SIZE_LIMIT:
        raise Unsupported(f"{name}: it is stored nowhere that could be written to")
    return Setting(name, address, size, handler, *(int(entry.pointer(which)[0]) for which in ("extra1", "extra2")))


def value(kernel: Kernel, setting: Setting) -> str:
    """What it is set to, as sysctl(8) shows it."""
    raw = kernel.space.read(setting.address, setting.size)
    if setting.handler == _TEXT:
        return raw.partition(b"\0")[0].decode("utf-8", "backslashreplace")
    width, signed = _NUMBERS[setting.handler]
    return "\t".join(
        str(int.from_bytes(raw[at : at + width], "little", signed=signed))
        for at in range(0, max(setting.size - width + 1, 0), width)
    )


def set_value(change: Changing, setting: Setting, text: str) -> None:
    """Set it; within the bounds that the kernel keeps. Raises `ControlError`."""
    old = change.read(setting.address, setting.size)
    if setting.handler == _TEXT:
        new = text.encode()
        if b"\0" in new or len(new) >= setting.size:
            raise ControlError(f"{setting.name}: there is room for {setting.size - 1} bytes, not {len(new)}")
        new += bytes(setting.size - len(new))
    else:
        new = _numbers(change.kernel, setting, text)
    change.write(setting.address, new, expect=old)


def _numbers(kernel: Kernel, setting: Setting, text: str) -> bytes:
    width, signed = _NUMBERS[setting.handler]
    try:
        numbers = [int(word) for word in text.split()]
    except ValueError:
        raise ControlError(f"{setting.name}: {text!r} is no number") from None
    if len(numbers) != setting.size // width:
        raise ControlError(f"{setting.name}: it takes {setting.size // width} numbers, not {len(numbers)}")
    least, most = (-(1 << 31), (1 << 31) - 1) if signed else (0, (1 << 8 * width) - 1)
    if setting.handler == "proc_dobool":
        most = 1
    elif setting.handler.endswith("_minmax"):
        bound = 8 if width == 8 else 4
        for where, take in ((setting.least, max), (setting.most, min)):
            if where:
                limit = int.from_bytes(kernel.space.read(where, bound), "little", signed=signed)
                least, most = (take(least, limit), most) if take is max else (least, take(most, limit))
    for number in numbers:
        if not least <= number <= most:
            raise ControlError(f"{setting.name}: {number} is not between {least} and {most}")
    return b"".join(number.to_bytes(width, "little", signed=signed) for number in numbers)


def _tops(kernel: Kernel) -> Iterator[int]:
    """The top directories: the one of all, then that of the initial network namespace. Raises `Unsupported`."""
    try:
        root = kernel.struct("ctl_table_root").member("default_set.dir")
        yield kernel.symbol("sysctl_table_root") + root.offset
        net = kernel.struct("net").member("sysctls.dir")
    except NoMember as error:
        raise Unsupported(f"settings cannot be found: {error}") from error
    init_net = kernel.profile.find_symbol("init_net")
    if init_net is not None:
        yield init_net + net.offset


def _find(kernel: Kernel, top: int, words: list[str]) -> Structs | None:
    """The entry of these names under a directory, one row."""
    here = top
    for depth, word in enumerate(words):
        found = _entry(kernel, here, word)
        if found is None:
            return None
        entry, header = found
        kind = int(entry.fetch("mode").number("mode")[0]) & _FORMAT
        if depth == len(words) - 1:
            return entry if kind not in (_DIRECTORY, _LINK) else None
        if kind != _DIRECTORY:
            return None
        here = header  # a directory begins with its own header
    return None


def _entry(kernel: Kernel, directory: int, word: str) -> tuple[Structs, int] | None:
    """The entry of that name in a directory, and the header that it belongs to."""
    node_type, entry_type = kernel.struct("ctl_node"), kernel.struct("ctl_table")
    header_type = kernel.struct("ctl_table_header")
    link = node_type.member("node").offset
    level = [int(kernel.structs("ctl_dir", [directory]).fetch("root.rb_node").pointer("root.rb_node")[0])]
    seen: set[int] = set()
    while level and len(seen) < _NODE_LIMIT:
        fresh = [one for one in dict.fromkeys(level) if one and one not in seen]
        seen.update(fresh)
        nodes = kernel.structs(node_type, [one - link for one in fresh])
        nodes.fetch("node.rb_left", "node.rb_right", "header")
        headers = nodes.follow("header", header_type).fetch("ctl_table", "node")
        # Entries and nodes are arrays side by side: what number a node has, its entry has too.
        index = (nodes.address - headers.pointer("node")) // np.uint64(node_type.size)
        entries = kernel.structs(entry_type, headers.pointer("ctl_table") + index * np.uint64(entry_type.size))
        good = ~(nodes.fault | headers.fault) & (index < np.uint64(_NODE_LIMIT))
        names, _ = kernel.strings(entries.fetch("procname").pointer("procname"))
        for row, name in enumerate(names):
            if good[row] and name == word:
                return entries.select(np.array([row], dtype=np.intp)), int(headers.address[row])
        level = nodes.pointer("node.rb_left").tolist() + nodes.pointer("node.rb_right").tolist()
    return None
