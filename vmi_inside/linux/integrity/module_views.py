"""The ways to the modules of a kernel that do not go through the list `modules`.

Knows `module_kset` (kernel/params.c), `mod_tree` (kernel/module/tree_lookup.c), `btf_modules` (kernel/bpf/btf.c) and
the areas of `vmalloc` (mm/vmalloc.c: one tree until 6.8, several `vmap_nodes` since). A `struct module` lies in the
module's own memory and points at itself: that is how it is found where no list has it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside import ragged, walk
from vmi_inside.kernel import Kernel
from vmi_inside.linux.integrity.trees import tree_nodes
from vmi_inside.linux.integrity.views import View
from vmi_inside.linux.symbols.loaded import MODULE_LIMIT, REGION_LIMIT
from vmi_inside.linux.symbols.modules import STATES
from vmi_inside.profile.ctypes import CType
from vmi_inside.types import I64, PAGE_SIZE, U64, distinct

#: Where modules, eBPF's programs and trampolines are put: MODULES_VADDR at the lowest, and MODULES_END
#: (arch/x86/include/asm/pgtable_64_types.h).
MODULE_SPACE: Final = (0xFFFF_FFFF_A000_0000, 0xFFFF_FFFF_FF00_0000)
#: Other words point at where such a struct would begin, but no name lies there.
_NAME: Final = re.compile(r"[\w.-]{1,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Areas:
    """Areas of vmalloc in the modules' space (n rows): addresses, bytes (its guard page too), who asked for them."""

    start: U64
    size: I64
    caller: U64
    faults: tuple[str, ...]


def kobjects(kernel: Kernel) -> View:
    """What stands in /sys/module; modules that are built in have no struct. Raises `NoSymbol`, `NoMember`."""
    name = "/sys/module"
    holder = kernel.struct("module_kobject")
    entry = np.uint64(holder.member("kobj.entry").offset)
    head = kernel.structs("kset", [kernel.pointer("module_kset")]).at("list")
    found = walk.serial(kernel.space, int(head[0]), what=name, limit=MODULE_LIMIT)
    modules = kernel.structs(holder, found.address - entry).pointer("mod")
    return View(name, modules[modules != 0], found.faults)


def address_tree(kernel: Kernel) -> View:
    """The tree by which the kernel finds whose code an address is. Raises `NoSymbol`, `NoMember`."""
    root = kernel.object("mod_tree_root", "mod_tree").pointer("root.tree[0].rb_node")
    found = tree_nodes(kernel, root, "address tree")
    node = kernel.struct("mod_tree_node")
    holders = kernel.structs(node, found.address - np.uint64(node.member("node.node[0]").offset))
    return View("address tree", distinct(holders.pointer("mod")), found.faults)


def btf(kernel: Kernel) -> View:
    """Modules that brought types along. Raises `NoSymbol`, `NoMember`."""
    ctype = kernel.struct("btf_module")
    found = walk.serial(kernel.space, kernel.symbol("btf_modules"), what="btf_modules", limit=MODULE_LIMIT)
    rows = kernel.structs(ctype, found.address - np.uint64(ctype.member("list").offset))
    return View("btf_modules", rows.pointer("module"), found.faults)


def areas(kernel: Kernel) -> Areas:
    """The areas of vmalloc that lie where modules do. Raises `NoSymbol`, `NoMember`."""
    ctype = kernel.struct("vmap_area")
    found = tree_nodes(kernel, _area_trees(kernel), "vmalloc areas")
    rows = kernel.structs(ctype, found.address - np.uint64(ctype.member("rb_node").offset))
    rows.fetch("va_start", "va_end", "vm")
    start, end = rows.pointer("va_start"), rows.pointer("va_end")
    low, high = MODULE_SPACE
    inside = (start >= np.uint64(low)) & (end <= np.uint64(high)) & (start < end)
    size = np.minimum(end - start, np.uint64(REGION_LIMIT)).astype(np.int64)
    owners = kernel.structs("vm_struct", np.where(inside, rows.pointer("vm"), np.uint64(0)))
    return Areas(start[inside], size[inside], owners.pointer("caller")[inside], found.faults)


def _area_trees(kernel: Kernel) -> U64:
    """The roots of the trees of areas: one until 6.8, that of each `vmap_node` since."""
    if kernel.profile.find_symbol("vmap_area_root") is not None:
        return np.array([kernel.pointer("vmap_area_root")], dtype=np.uint64)
    node: CType = kernel.struct("vmap_node")
    count = min(kernel.number(4, "nr_vmap_nodes"), 1 << 12)
    base = kernel.pointer("vmap_nodes") + node.size * np.arange(count, dtype=np.uint64)
    return kernel.structs(node, base).pointer("busy.root.rb_node")


def in_memory(kernel: Kernel, found: Areas) -> View:
    """Every `struct module` in these areas: a word that points at the start of the struct that it is in."""
    offset = np.uint64(kernel.struct("module").member("mkobj.mod").offset)
    size = np.maximum(found.size - PAGE_SIZE, 0)  # an unmapped page guards each
    got = ragged.gather(kernel.space, found.start, size)
    word, area, index = got.words()
    at = found.start[area] + index.astype(np.uint64) * np.uint64(8)
    rows = kernel.structs("module", word[word == at - offset]).fetch("name", "state")
    named = np.array([_NAME.fullmatch(name) is not None for name in rows.text("name")], dtype=np.bool_)
    return View("memory", rows.address[named & (rows.unsigned("state") < len(STATES))], ())
