"""What `LinuxGuest` leaves out of files and memory: inodes, file systems, working directories, regions of memory."""

from __future__ import annotations

from tests.synthetic.guest import SyntheticGuest
from tests.synthetic.layout import Layout
from tests.synthetic.linux import LinuxGuest, Task
from tests.synthetic.structs import NEWER, OLDER
from vmi_inside import maple

_MM = """
mm_struct 1000
    mmap 0x00 *vm_area_struct
    {tree}
    pgd 0x48 *void
    total_vm 0xb8 u64
    brk 0x108 u64
    start_brk 0x100 u64
    start_stack 0x110 u64
    arg_start 0x120 u64
    arg_end 0x128 u64
    env_start 0x130 u64
    env_end 0x138 u64
    rss_stat 0x290 {counters}
    exe_file 0x370 *file
    context 0x390 mm_context
"""
_FILES = """
file 256
    f_mode 4 u32
    f_path 0x10 path
    f_inode 0x20 *inode
    f_flags 0x40 u32
    f_pos 0x50 i64
    f_op 0xb0 *void
    private_data 0xc8 *void
backing_file 272
    file 0 file
    user_path 256 path
dentry 192
    d_hash 8 bl_node
    d_parent 24 *dentry
    d_name 32 qstr
    d_inode 48 *inode
    d_op 96 *dentry_operations
    d_sb 104 *super_block
dentry_operations 128
    d_dname 72 *void
vfsmount 32
    mnt_root 0 *dentry
    mnt_sb 8 *super_block
inode 616
    i_mode 0 u16
    i_sb 40 *super_block
    i_ino 64 u64
    i_size 80 i64
    i_private 600 *void
super_block 1000
    s_dev 16 u32
    s_type 40 *file_system_type
file_system_type 72
    name 0 *char
ns_common 24
    ops 8 *proc_ns_operations
    inum 16 u32
proc_ns_operations 72
    name 0 *char
fdtable 56
    max_fds 0 u32
    fd 8 *void
    close_on_exec 16 *void
range64 256
    pivot 8 u64[15]
    slot 128 *void[16]
arange64 256
    pivot 8 u64[9]
    slot 80 *void[10]
maple_node 256
    slot 8 *void[31]
    mr64 0 range64
    ma64 0 arange64
maple_tree 16
    ma_root 8 *void
mm_context 16
    flags 0 u64
vm_special_mapping 32
    name 0 *char
anon_vma_name 4
    name 4 char[0]
vm_area_struct 200
    vm_start 0 u64
    vm_end 8 u64
    vm_mm 16 *mm_struct
    vm_flags 32 u64
    vm_next 40 *vm_area_struct
    vm_ops 72 *void
    vm_pgoff 80 u64
    vm_file 88 *file
    vm_private_data 96 *void
    anon_name 104 *anon_vma_name
    shared {shared} *void
"""


class FilesGuest(LinuxGuest):
    """A guest whose files have inodes, whose tasks have working directories and regions of memory."""

    def __init__(self, levels: int = 4, *, older: bool = False, scattered: bool = False, seed: int = 1) -> None:
        super().__init__(levels, older=older, scattered=scattered, seed=seed)
        base = (NEWER, OLDER) if older else (NEWER,)
        tree, counters = ("", "mm_rss_stat") if older else ("mm_mt 0x08 maple_tree", "percpu_counter[4]")
        more = (
            _FILES.format(shared=104 if older else 120),
            _MM.format(tree=tree, counters=counters),
        )
        names = Layout(*more).structs
        whole = Layout(*base, *more)
        self.profile.layout.structs.update({name: whole.structs[name] for name in names})
        self._systems: dict[str, tuple[int, int]] = {}
        self._made = self.new("dentry_operations", d_dname=self.other_file_ops)
        self.special_ops = self.global_("special_mapping_vmops", 128)
        self.put("vfsmount", self.root_mount + self.offset("mount", "mnt"), mnt_sb=self.system("ext4")[0])
        self.put("dentry", self.root_dentry, d_inode=self.inode("ext4", 0o40755, 2), d_sb=self.system("ext4")[0])

    def system(self, name: str) -> tuple[int, int]:
        """The super block of the one file system of that type, and a mount of it."""
        if name not in self._systems:
            kind = self.new("file_system_type", name=self.string(name))
            block = self.new("super_block", s_type=kind, s_dev=8 << 20 | 1 + len(self._systems))
            root = self.dentry(0, "/")
            mount = self.new("mount", mnt__mnt_root=root, mnt__mnt_sb=block)
            self.put("mount", mount, mnt_parent=mount, mnt_mountpoint=root)
            self._systems[name] = block, mount + self.offset("mount", "mnt")
        return self._systems[name]

    def inode(self, system: str, mode: int, number: int, size: int = 0, private: int = 0) -> int:
        return self.new(
            "inode", i_sb=self.system(system)[0], i_mode=mode, i_ino=number, i_size=size, i_private=private
        )  # fmt: skip

    def regular(self, *names: str, number: int = 7, size: int = 100, deleted: bool = False, **members: int) -> int:
        """A file with a path."""
        file = self.file(*names, deleted=deleted)
        inode = self.inode("ext4", 0o100644, number, size)
        self.put("dentry", self.space.read_u64(file + self.offset("file", "f_path.dentry")), d_inode=inode)
        self.put("file", file, f_inode=inode, **members)
        return file

    def made(self, system: str, name: str, number: int, mode: int = 0o600, private: int = 0, **members: int) -> int:
        """A file without a path, whose name is made for /proc."""
        block, mount = self.system(system)
        inode = self.inode(system, mode, number, private=private)
        dentry = self.new(
            "dentry", d_name__len=len(name.encode()), d_name__name=self.string(name), d_op=self._made, d_inode=inode,
            d_sb=block,
        )  # fmt: skip
        self.put("dentry", dentry, d_parent=dentry)
        return self.new("file", f_path__mnt=mount, f_path__dentry=dentry, f_inode=inode, **members)

    def place(self, of: Task) -> None:
        """Give a task the root directory as root and working directory."""
        mount = self.root_mount + self.offset("mount", "mnt")
        ends = {"mnt": mount, "dentry": self.root_dentry}
        both = {f"{name}__{end}": at for name in ("root", "pwd") for end, at in ends.items()}
        self.put("task_struct", of.task, fs=self.new("fs_struct", **both))

    def region(self, of: Task, start: int, end: int, flags: int = 3, **members: int) -> int:
        return self.new("vm_area_struct", vm_start=start, vm_end=end, vm_flags=flags, vm_mm=of.mm, **members)

    def map(self, of: Task, regions: list[int]) -> None:
        """Give a task's memory these regions, ascending: as a list, or as a tree of leaves under one node."""
        if self.older:
            self.chain(of.mm + self.offset("mm_struct", "mmap"), [])
            self.word(of.mm + self.offset("mm_struct", "mmap"), regions[0] if regions else 0)
            for here, after in zip(regions, [*regions[1:], 0], strict=True):
                self.put("vm_area_struct", here, vm_next=after)
            return
        assert len(regions) <= 70, "one node above the leaves has room for ten"
        leaves: list[tuple[int, int]] = []
        low = 0
        for number in range(0, len(regions), 7):
            parts: list[tuple[int, int]] = []
            for vma in regions[number : number + 7]:
                start, end = self.space.read_u64(vma), self.space.read_u64(vma + 8)
                parts += [(start - 1, 0)] * (start > low) + [(end - 1, vma)]
                low = end
            last = low - 1 if number + 7 < len(regions) else (1 << 64) - 1
            leaves.append((last, self._node(maple.LEAF, 128, [*parts, (last, 0)] if last >= low else parts)))
        root = self._node(maple.ARANGE, 80, leaves) | 2 if leaves else 0
        self.poke("mm_struct", of.mm, "mm_mt.ma_root", root)

    def _node(self: SyntheticGuest, kind: int, slots: int, parts: list[tuple[int, int]]) -> int:
        at = self.alloc(512, "maple") + 255 & ~255
        pivots = (slots - 8) // 8
        for number, (last, value) in enumerate(parts):
            self.word(at + slots + 8 * number, value)
            if number < pivots:
                self.word(at + 8 + 8 * number, last)
        return at | kind << 3 | 4
