"""Control groups: the paths of a process's groups, in the unified (v2) hierarchy and in the older ones (v1).

Knows `css_set.dfl_cgrp`, `cgrp_cset_link`, `cgroup.kn` and `kernfs_node` (include/linux/cgroup-defs.h,
kernel/cgroup/cgroup-internal.h, include/linux/kernfs.h). What names mean is left to others.
"""

from __future__ import annotations

import numpy as np

from vmi_inside import walk
from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs
from vmi_inside.types import U64, Mask

#: Nesting deeper than the kernel lets anybody make.
DEPTH_LIMIT = 256
#: v1 hierarchies: one for each controller at the most, and some that only have a name.
HIERARCHY_LIMIT = 64
_PARENT = ("__parent", "parent")  # kernfs_node.parent renamed in 6.15


def cgroup_paths(kernel: Kernel, css_set: U64) -> tuple[list[str], Mask]:
    """The v2 paths of `n` css_sets, `/` being the root's, and (n,) bool: which are whole. 0 gives an empty path."""
    unique, back = np.unique(css_set, return_inverse=True)
    sets = kernel.structs("css_set", unique)
    shown, ok = group_paths(kernel, sets.follow("dfl_cgrp"))
    ok &= ~sets.fault
    return [shown[i] for i in back.tolist()], ok[back]


def all_paths(kernel: Kernel, css_set: U64) -> tuple[list[tuple[str, ...]], Mask]:
    """The paths of `n` css_sets in every hierarchy, v2's first, and (n,) bool: which are whole. 0 has none."""
    unique, back = np.unique(css_set, return_inverse=True)
    sets = kernel.structs("css_set", unique)
    found = [list(filter(None, [path])) for path in cgroup_paths(kernel, unique)[0]]
    heads = sets.inside("cgrp_links").fetch("next", "prev")
    walked = walk.chains(kernel.space, heads.pointer("next"), end=heads.address, what="hierarchies of a control group")
    link = kernel.struct("cgrp_cset_link")
    links = kernel.structs(link, walked.address - np.uint64(link.member("cgrp_link").offset))
    groups = links.follow("cgrp")
    shown, good = group_paths(kernel, groups)
    # A list that was walked whole ends with the node that its head has for the last.
    last = heads.address.copy()
    last[walked.owner] = walked.address
    ok = ~(sets.fault | heads.fault) & (last == heads.pointer("prev"))
    ok[walked.owner[links.fault | ~good]] = False
    ok |= unique == 0
    for owner, path in zip(walked.owner.tolist(), shown, strict=True):
        if path and path not in found[owner] and len(found[owner]) < HIERARCHY_LIMIT:
            found[owner].append(path)
    listed = [tuple(each) for each in found]
    return [listed[i] for i in back.tolist()], ok[back]


def group_paths(kernel: Kernel, groups: Structs) -> tuple[list[str], Mask]:
    """Paths of `n` cgroups from the root of their hierarchy down, and (n,) bool: which are whole."""
    nodes = groups.follow("kn")
    shown, ok = node_paths(kernel, nodes)
    return shown, ok & ~groups.fault


def node_paths(kernel: Kernel, nodes: Structs) -> tuple[list[str], Mask]:
    """The paths of `n` kernfs nodes in their hierarchy, and (n,) bool: which are whole. 0 gives an empty path."""
    node = nodes.address.copy()
    ok = np.ones(len(node), dtype=np.bool_)
    parts: list[list[str]] = [[] for _ in range(len(node))]
    row = np.flatnonzero(node)
    for _ in range(DEPTH_LIMIT):
        if not len(row):
            break
        here = kernel.structs(nodes.type, node[row]).fetch(_PARENT, "name")
        parent = here.pointer(_PARENT)
        names, good = kernel.strings(np.where(parent == 0, np.uint64(0), here.pointer("name")))
        ok[row[here.fault | ~good]] = False
        for at, name in zip(row.tolist(), names, strict=True):
            if name:
                parts[at].append(name)
        node[row] = parent
        row = row[(parent != 0) & ~here.fault]
    ok[row] = False
    begun = nodes.address.tolist()
    return ["/" + "/".join(reversed(part)) if address else "" for part, address in zip(parts, begun, strict=True)], ok
