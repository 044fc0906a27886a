"""What modules hang in: the list, /sys/module, the address tree, the areas of vmalloc; and their own memory."""

from __future__ import annotations

from tests.synthetic.layout import Layout
from tests.synthetic.lists import TasksGuest
from tests.synthetic.ram import PRESENT
from tests.synthetic.structs import NEWER

SPACE = 0xFFFF_FFFF_C010_0000
_MODULES = """
rb_node 24
    rb_right 8 *rb_node
    rb_left 16 *rb_node
rb_root 8
    rb_node 0 *rb_node
kobject 64
    name 0 *char
    entry 8 list_head
module_kobject 96
    kobj 0 kobject
    mod 64 *module
kset 96
    list 0 list_head
latch_tree_node 48
    node 0 rb_node[2]
latch_tree_root 24
    tree 8 rb_root[2]
mod_tree_node 56
    mod 0 *module
    node 8 latch_tree_node
mod_tree_root 40
    root 0 latch_tree_root
module_layout 80
    base 0 *void
    size 8 u32
    text_size 12 u32
    mtn 24 mod_tree_node
module 896
    state 0 u32
    list 8 list_head
    name 24 char[56]
    mkobj 80 module_kobject
    core_layout 0x140 module_layout
    init_layout 0x190 module_layout
btf_module 48
    list 0 list_head
    module 16 *module
vmap_area 64
    va_start 0 u64
    va_end 8 u64
    rb_node 16 rb_node
    vm 56 *vm_struct
vm_struct 64
    size 16 u64
    caller 56 *void
"""


class ModulesGuest(TasksGuest):
    """A guest with modules. Call `link` when they are there."""

    def __init__(self, levels: int = 4, *, seed: int = 1) -> None:
        super().__init__(levels, seed=seed)
        names, whole = Layout(_MODULES).structs, Layout(NEWER, _MODULES)
        self.profile.layout.structs.update({name: whole.structs[name] for name in names})
        self.modules = self.global_("modules", 16)
        self.kset = self.new("kset")
        self.word(self.global_("module_kset", 8), self.kset)
        self.mod_tree = self.global_("mod_tree", 40)
        self.btf_list = self.global_("btf_modules", 16)
        self.area_root = self.global_("vmap_area_root", 8)
        self.loaded: dict[str, int] = {}
        self.areas: list[int] = []
        self._free = SPACE

    def area(self, pages: int, caller: int = 0) -> int:
        """Executable memory among the modules, with an unmapped page behind it."""
        at = self._free
        self._free += (pages + 1) * 4096
        for page in range(at, at + pages * 4096, 4096):
            self._where[page] = self.ram.frames()
            self.tables.put(page, 1, self._where[page] | PRESENT)
        holder = self.new("vm_struct", caller=caller)
        self.areas.append(self.new("vmap_area", va_start=at, va_end=self._free, vm=holder))
        return at

    def module(self, name: str, state: int = 0) -> int:
        base = self.area(3)
        at = base + 4096 + 64
        self.put("module", at, state=state, name=name.encode(), mkobj__mod=at, core_layout__base=base,
                 core_layout__size=3 * 4096, core_layout__text_size=4096, core_layout__mtn__mod=at)  # fmt: skip
        self.loaded[name] = at
        return at

    def inside(self, module: int, path: str) -> int:
        return module + self.offset("module", path)

    def link(self) -> ModulesGuest:
        super().link()
        modules = list(self.loaded.values())
        self.ring(self.modules, [self.inside(at, "list") for at in modules])
        self.ring(self.kset, [self.inside(at, "mkobj.kobj.entry") for at in modules])
        self.ring(self.btf_list, [self.new("btf_module", module=at) for at in modules])
        areas = [at + self.offset("vmap_area", "rb_node") for at in self.areas]
        self.word(self.area_root, areas[0])
        for here, after in zip(areas, [*areas[1:], 0], strict=True):
            self.put("rb_node", here, rb_right=after)
        nodes = [self.inside(at, "core_layout.mtn.node.node[0]") for at in modules]
        self.poke("mod_tree_root", self.mod_tree, "root.tree[0].rb_node", nodes[0] if nodes else 0)
        for here, left, right in zip(nodes, nodes[1:2] + [0] * len(nodes), nodes[2:3] + [0] * len(nodes), strict=False):
            self.put("rb_node", here, rb_left=left, rb_right=right)
        self.memory.reset()
        return self
