"""Control groups of all hierarchies: what is in them, and which of them are frozen or dying.

Knows `cgroup_root`, `cgroup`, `css_set` and `cgrp_cset_link` (include/linux/cgroup-defs.h, kernel/cgroup/). What group
a process is in is a column of the processes; what the controllers measure and limit is left to others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.errors import ProfileError, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.tasks import PIDTYPE_PID, PIDTYPE_TGID, pids
from vmi_inside.linux.trees import Tree, descend
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask


class ControlGroups(Table):
    """One row for each group, those of each hierarchy together, each before those in it."""

    hierarchy: Text  # unified (v2); of v1 its controllers, or name=...
    path: Text  # from the root of its hierarchy
    id: I64  # the inode number of its directory
    processes: I64  # in it, not in those below
    threads: I64  # the same
    descendants: I64  # groups below it
    controllers: Text  # that may be used in it, as cgroup.controllers says
    frozen: Text  # of v2: yes no; and wanted, when it is to be, and is not yet
    dying: Mask  # removed, and kept in memory by what was charged to it
    address: U64  # of struct cgroup


ROOT_LIMIT: Final = 1 << 10
CONTROLLER_LIMIT: Final = 64
_NAME_LIMIT: Final = 256
#: CSS_ONLINE of `cgroup_subsys_state.flags`.
_ONLINE: Final = 1 << 1
_UNIFIED: Final = "unified"
_WORDS: Final = text(("no", "yes", "wanted"))


def cgroups(kernel: Kernel, columns: Iterable[str] | None = None) -> ControlGroups:
    """All groups. `columns` asks for some columns only. Raises `Unsupported` where the kernel has none."""
    wanted = list(ControlGroups.schema if columns is None else columns)
    ControlGroups.check(wanted)
    if kernel.find_struct("cgroup_root") is None or kernel.profile.find_symbol("cgroup_roots") is None:
        raise Unsupported("this kernel has no control groups (it is built without CONFIG_CGROUPS)")
    with kernel.operation():
        roots, tree, notes = _tree(kernel)
        groups = kernel.structs("cgroup", tree.address).fetch(
            "self.flags", "flags", "nr_descendants", "kn", "root", "subtree_control", "freezer.freeze"
        )  # fmt: skip
        faults = Faults(len(groups))
        faults.mark(groups.fault, "group unreadable")
        faults.mark(~groups.fault & ~np.isin(groups.pointer("root"), roots.address), "of no known hierarchy")
        names = _Names(kernel, roots)
        nodes = groups.follow("kn").fetch("id", "name")
        faults.mark(nodes.fault, "directory unreadable")
        hierarchy = text(names.hierarchy(root) for root in groups.pointer("root").tolist())
        bits = groups.unsigned("flags")
        frozen = bits >> np.uint64(kernel.profile.enumerator("CGRP_FROZEN") or 0) & np.uint64(1) != 0
        asked = (groups.unsigned("freezer.freeze") != 0) & ~frozen
        data: dict[str, Column] = {
            "hierarchy": hierarchy,
            "id": nodes.number("id"),
            "descendants": groups.number("nr_descendants"),
            "frozen": np.where(hierarchy == _UNIFIED, _WORDS[frozen + 2 * asked], ""),
            "dying": (groups.unsigned("self.flags") & np.uint64(_ONLINE) == 0) & ~groups.fault,
            "address": groups.address,
        }
        if "path" in wanted:
            data["path"] = _paths(kernel, tree, nodes, faults)
        if "controllers" in wanted:
            data["controllers"] = _controllers(groups, tree, names)
        if {"processes", "threads"} & set(wanted):
            data["processes"], data["threads"], more = _counts(kernel, groups.address)
            notes += more
        data["fault"] = faults.column()
    return ControlGroups({name: data[name] for name in dict.fromkeys((*wanted, "fault"))}, notes)


def _tree(kernel: Kernel) -> tuple[Structs, Tree, tuple[str, ...]]:
    """The hierarchies, by their numbers, and their groups."""
    root, group = kernel.struct("cgroup_root"), kernel.struct("cgroup")
    listed = walk.serial(kernel.space, kernel.symbol("cgroup_roots"), what="cgroup_roots", limit=ROOT_LIMIT)
    roots = kernel.structs(root, listed.address - np.uint64(root.member("root_list").offset))
    roots.fetch("hierarchy_id", "subsys_mask", "name")
    roots = roots.select(np.argsort(roots.number("hierarchy_id"), kind="stable"))
    head, link = (group.member(f"self.{name}").offset for name in ("children", "sibling"))

    def children(above: U64) -> walk.Walk:
        heads = above + np.uint64(head)
        first = kernel.structs("list_head", heads).pointer("next")
        found = walk.chains(kernel.space, first, end=heads, what="control groups")
        return walk.Walk(found.address - np.uint64(link), found.owner, found.faults)

    tree = descend(roots.at("cgrp"), children, "control groups")
    return roots, tree, (*listed.faults, *tree.faults)


class _Names:
    """Names of hierarchies and of controllers."""

    def __init__(self, kernel: Kernel, roots: Structs) -> None:
        count = min(kernel.profile.enumerator("CGROUP_SUBSYS_COUNT") or 0, CONTROLLER_LIMIT)
        table = np.uint64(kernel.symbol("cgroup_subsys")) + 8 * np.arange(count, dtype=np.uint64)
        raw, _ = kernel.space.gather(table, 8)
        systems = kernel.structs("cgroup_subsys", raw.view("<u8")[:, 0]).fetch("name", "legacy_name")
        self._new, _ = kernel.strings(systems.pointer("name"), _NAME_LIMIT)
        self._old, _ = kernel.strings(systems.pointer("legacy_name"), _NAME_LIMIT)
        self._mask: dict[int, int] = dict(
            zip(roots.address.tolist(), roots.unsigned("subsys_mask").tolist(), strict=True)
        )
        self._name = dict(zip(roots.address.tolist(), roots.text("name"), strict=True))
        self.default = kernel.symbol("cgrp_dfl_root")
        width = kernel.struct("cgroup").member("subtree_control").size
        self._hidden = 0
        for symbol in ("cgrp_dfl_inhibit_ss_mask", "cgrp_dfl_implicit_ss_mask"):
            try:
                self._hidden |= kernel.number(width, symbol)
            except ProfileError:
                continue

    def controllers(self, mask: int, root: int) -> list[str]:
        """Names of the controllers of a mask, as the hierarchy calls them."""
        names = self._new if root == self.default else self._old
        return [name for bit, name in enumerate(names) if mask >> bit & 1]

    def all_of(self, root: int) -> int:
        """The controllers that its root group has."""
        return self._mask.get(root, 0) & ~(self._hidden if root == self.default else 0)

    def hierarchy(self, root: int) -> str:
        """What the hierarchy is called."""
        if root == self.default:
            return _UNIFIED
        named = [f"name={self._name[root]}"] if self._name.get(root) else []
        return ",".join(self.controllers(self.all_of(root), root) + named)


def _paths(kernel: Kernel, tree: Tree, nodes: Structs, faults: Faults) -> Text:
    names, ok = kernel.strings(nodes.pointer("name"), _NAME_LIMIT)
    faults.mark(~ok, "name unreadable")
    out: list[str] = []
    for name, parent in zip(names, tree.parent.tolist(), strict=True):
        above = out[parent] if parent >= 0 else ""
        out.append(f"{above.rstrip('/')}/{name}" if parent >= 0 else "/")
    return text(out)


def _controllers(groups: Structs, tree: Tree, names: _Names) -> Text:
    """What the group above gives to those below it; to a root, and in v1, all that there are."""
    root, given = groups.pointer("root").tolist(), groups.unsigned("subtree_control").tolist()
    out = []
    for row, above in enumerate(tree.parent.tolist()):
        mask = names.all_of(root[row]) if above < 0 or root[row] != names.default else given[above]
        out.append(" ".join(names.controllers(mask, root[row])))
    return text(out)


def _counts(kernel: Kernel, group: U64) -> tuple[I64, I64, tuple[str, ...]]:
    """Processes and threads (n,) in each group: those that live, as cgroup.procs and cgroup.threads list them."""
    every = pids(kernel)
    counted = []
    sets = np.empty(0, dtype=np.uint64)
    for kind in (PIDTYPE_TGID, PIDTYPE_PID):
        _, _, tasks = every.tasks(kernel, kind)
        tasks.fetch("cgroups", "exit_state", "signal")
        alive = tasks.number("exit_state") == 0
        if kind == PIDTYPE_TGID:  # a process lives as long as one of its threads
            alive |= tasks.follow("signal").number("live.counter") > 0
        mine = tasks.pointer("cgroups")[alive & ~tasks.fault]
        counted.append(mine)
        sets = np.union1d(sets, mine)
    heads = kernel.structs("css_set", sets).at("cgrp_links")
    link = kernel.struct("cgrp_cset_link")
    first = kernel.structs("list_head", heads).pointer("next")
    found = walk.chains(kernel.space, first, end=heads, what="groups of a task")
    within = kernel.structs(link, found.address - np.uint64(link.member("cgrp_link").offset)).pointer("cgrp")
    order = np.argsort(group)
    out = []
    for mine in counted:
        many = np.bincount(np.searchsorted(sets, mine), minlength=len(sets))
        total = np.zeros(len(group), dtype=np.int64)
        if len(group):
            at = np.minimum(np.searchsorted(group[order], within), len(group) - 1)
            known = group[order][at] == within
            np.add.at(total, order[at[known]], many[found.owner[known]])
        out.append(total)
    return out[0], out[1], (*every.faults, *found.faults)
