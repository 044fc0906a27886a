"""Made-up guests that can be gated: padding, functions with NOPs, and all that gates need to know of structs."""

from __future__ import annotations

from bisect import bisect_right

from tests.synthetic.guest import IMAGE, IMAGE_PA
from tests.synthetic.layout import Layout, SyntheticProfile
from tests.synthetic.linux import LinuxGuest
from tests.synthetic.ram import LARGE, PRESENT, WRITE
from tests.synthetic.structs import NEWER
from vmi_inside.control.gates import layout
from vmi_inside.control.gates.layout import Rule, Scope, State
from vmi_inside.control.gates.operations import OPERATIONS
from vmi_inside.linux.symbols.gated import AREA_SIZE

MORE = """
task_thread 64
    sp 24 u64
css 200
    sibling 16 list_head
    children 32 list_head
    flags 60 u32
    serial_nr 88 u64
cgroup 2000
    self 0 css
    level 208 i32
    kn 0x108 *kernfs_node
    ancestors 1792 u64[16]
cgroup_root 6000
    cgrp 64 cgroup
kid 4
    val 0 u32
sock_common 136
    skc_daddr 0 u32
    skc_family 16 u16
    skc_v6_daddr 56 u8[16]
sock 760
    __sk_common 0 sock_common
    sk_protocol 516 u16
socket 128
    type 4 i16
    sk 24 *sock
msghdr 96
    msg_name 0 *void
    msg_namelen 8 i32
dentry 192
    d_hash 8 bl_node
    d_parent 24 *dentry
    d_name 32 qstr
    d_inode 48 *inode
    d_child 128 list_head
    d_subdirs 144 list_head
inode 616
    i_mode 0 u16
    i_sb 40 *super_block
    i_ino 64 u64
    i_link 200 *char
    i_generation 592 u32
file_system_type 72
    name 0 *char
super_block 1024
    s_dev 16 u32
    s_type 40 *file_system_type
mount 320
    mnt_parent 16 *mount
    mnt_mountpoint 24 *dentry
    mnt 32 vfsmount
    mnt_mounts 96 list_head
    mnt_child 112 list_head
holed 64
    first 0 u32
    second 16 u64
    third 24 u8
    fourth 40 u64
ftrace_page 32
    next 0 *ftrace_page
    records 8 *dyn_ftrace
    index 16 i32
dyn_ftrace 16
    ip 0 u64
    flags 8 u64
thread_union 16384
    stack 0 u64[2048]
user_namespace 128
    first 0 u64
    last 120 u64
"""
STARTS = IMAGE + (2 << 20) - (1 << 20)
BASE = IMAGE + (2 << 20) - AREA_SIZE
CURRENT = 0x8000


class Profile(SyntheticProfile):
    """A profile that can tell what is close to an address, and what enumerators are worth."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.enumerators.update(READING_MODULE=2, LOADING_MODULE=3, FTRACE_FL_DISABLED=1 << 25, CSS_ONLINE=2)

    def symbol_at(self, address: int, *, first: bool = False) -> tuple[str, int] | None:
        ordered = sorted((value, name) for name, value in self.symbols.items())
        at = bisect_right(ordered, (address, "~")) - 1
        return (ordered[at][1], address - ordered[at][0]) if at >= 0 else None

    def global_type(self, name: str) -> object:
        return self.struct({"init_user_ns": "user_namespace"}.get(name, name))


class GatedGuest(LinuxGuest):
    """A guest whose image has padding up to 2 MiB, functions with NOPs, and all that gates need to know."""

    def __init__(self, **kind: bool) -> None:
        super().__init__(**kind)
        text = NEWER.replace("    cgroups 0xc20 *css_set\n", "    cgroups 0xc20 *css_set\n    stack 0x20 *void\n"
                             "    thread 0x1200 task_thread\n    cred 0xb10 *cred\n"
                             "    group_leader 0x9b0 *task_struct\n")  # fmt: skip
        old = self.profile
        self.profile = Profile(Layout(text, MORE))
        self.profile.symbols.update(old.symbols)
        self.kernel.profile = self.profile  # type: ignore[assignment]
        self._path.clear()
        self.profile.symbols.update({"__entry_text_end": STARTS, "_etext": IMAGE + (3 << 20), "_stext": IMAGE,
                                     "current_task": CURRENT})  # fmt: skip
        self.global_("init_user_ns", 128)
        self.map_image(WRITE | LARGE | PRESENT)
        self.write(STARTS, b"\xcc" * (IMAGE + (2 << 20) - STARTS))
        at = IMAGE + (2 << 20) + 0x1000
        for operation in OPERATIONS.values():
            for hooked in operation.hooks:
                self.profile.symbols[hooked.symbols[0]] = at
                self.write(at, b"\x0f\x1f\x44\0\0\x55")
                at += 0x100

    def map_image(self, flags: int) -> None:
        for offset in range(0, 4 << 20, 2 << 20):
            self.tables.put(IMAGE + offset, 2, IMAGE_PA + offset | flags)

    def place(self, state: State) -> None:
        for at, piece in layout.encode(BASE, state).items():
            self.write(BASE + at, piece)

    def run(self, *addresses: int) -> None:
        """Which task each CPU runs."""
        for base, task in zip(self.percpu, addresses, strict=True):
            self.word(base - 0x1000 + CURRENT, task)


def guest_idle(guest: GatedGuest) -> int:
    """An idle task, which no table knows."""
    return guest.new("task_struct", comm=b"swapper/0")


def rule(**more: object) -> Rule:
    said: dict[str, object] = {
        "operations": 1, "scope": Scope.PROCESS, "families": 1 << 2, "errno": 13, "number": 4242, "first": 777,
        "pid": 4242, "name": "curl", "time": 1_764_000_000, "entry": "7",
    }  # fmt: skip
    return Rule(**{**said, **more})  # type: ignore[arg-type]
