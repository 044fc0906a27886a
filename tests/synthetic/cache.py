"""What `FilesGuest` leaves out of the page cache: pages and their structs, inodes on lists, file systems mounted."""

from __future__ import annotations

from tests.synthetic.files import FilesGuest
from tests.synthetic.guest import DIRECT
from tests.synthetic.layout import Layout
from tests.synthetic.linux import Task
from tests.synthetic.ram import PRESENT, PageTables

VMEMMAP = 0xFFFF_EA00_0000_0000
PAGE = 64

_CACHE = """
xa_node 576
    shift 0 u8
    slots 40 *void[64]
    marks 552 marks[3]
marks 8
    word 0 u64
page 64
    flags 0 u64
    mapping 24 *address_space
    index 32 u64
address_space 160
    host 0 *inode
    i_pages 8 pages
    nrpages 88 u64
pages 16
    xa_flags 4 u32
    xa_head 8 *void
time 16
    tv_sec 0 i64
inode 616
    i_mode 0 u16
    i_uid 4 kuid
    i_gid 8 kuid
    i_sb 40 *super_block
    i_mapping 48 *address_space
    i_ino 64 u64
    i_size 80 i64
    i_mtime 88 time
    i_sb_list 120 list_head
    i_dentry 136 hlist_head
    i_data 200 address_space
    i_link 590 *char
    i_private 600 *void
super_block 1000
    s_list 0 list_head
    s_dev 16 u32
    s_type 40 *file_system_type
    s_flags 80 u64
    s_root 104 *dentry
    s_mounts 208 list_head
    s_inodes 240 list_head
mount 320
    mnt_parent 16 *mount
    mnt_mountpoint 24 *dentry
    mnt 32 vfsmount
    mnt_instance 112 list_head
    mnt_ns 224 *mnt_namespace
    mnt_id 280 i32
mnt_namespace 64
    ns 0 ns_common
nsproxy 64
    net_ns 0x28 *net
    mnt_ns 0x18 *mnt_namespace
dentry 192
    d_hash 8 bl_node
    d_parent 24 *dentry
    d_name 32 qstr
    d_inode 48 *inode
    d_op 96 *dentry_operations
    d_sb 104 *super_block
    d_u 176 alias
alias 16
    d_alias 0 hlist_node
file 256
    f_mode 4 u32
    f_path 0x10 path
    f_inode 0x20 *inode
    f_flags 0x40 u32
    f_mapping 0x48 *address_space
    f_pos 0x50 i64
    f_op 0xb0 *void
    private_data 0xc8 *void
"""


class CacheGuest(FilesGuest):
    """A guest whose files are in the page cache, and whose processes' page tables map what is given.

    `link` strings the lists when all inodes are there; call it before `finish`.
    """

    def __init__(self, levels: int = 4, *, older: bool = False, scattered: bool = False, seed: int = 1) -> None:
        super().__init__(levels, older=older, scattered=scattered, seed=seed)
        layout = Layout(_CACHE)
        # Types are looked up by name when they are first asked for: the new ones see the old ones, too.
        for name, made in self.profile.layout.structs.items():
            layout.structs.setdefault(name, made)
        self.profile.layout.structs = layout.structs
        self._path.clear()
        self.word(self.global_("vmemmap_base", 8), VMEMMAP)
        self.word(self.global_("page_offset_base", 8), DIRECT)
        self._mapped: set[int] = set()
        self.blocks: dict[str, int] = {}
        self.inodes_of: dict[str, list[int]] = {}
        self.root_ns = self.new("mnt_namespace", ns__inum=0xF0000000)
        self.put("nsproxy", self.global_("init_nsproxy", self.size("nsproxy")), mnt_ns=self.root_ns)
        self.super_blocks = self.global_("super_blocks", 16)

    def page(self, pa: int, mapping: int = 0) -> int:
        """The `struct page` of a frame, mapped into the kernel's array; it says that it is that mapping's."""
        at = VMEMMAP + (pa >> 12) * PAGE
        if at & ~4095 not in self._mapped:
            frame = self.ram.frames()
            self.tables.map(at & ~4095, frame)
            self._where[at & ~4095] = frame
            self._mapped.add(at & ~4095)
        where = self._where[at & ~4095] + (at & 4095)
        self.ram.write(where + 24, mapping.to_bytes(8, "little"))
        return at

    def frame(self, data: bytes) -> int:
        """A page of RAM with these bytes."""
        pa = self.ram.frames()
        self.ram.write(pa, data.ljust(4096, b"\0"))
        return pa

    def cache(self, inode: int, pages: dict[int, bytes | int]) -> dict[int, int]:
        """Put pages into a file's page cache: bytes, or an entry as it is to stand there. Gives the frames."""
        mapping = inode + self.offset("inode", "i_data")
        frames, entries = {}, {}
        for index, data in pages.items():
            if isinstance(data, bytes):
                frames[index] = self.frame(data)
                entries[index] = self.page(frames[index], mapping)
            else:
                entries[index] = data
        self.put("address_space", mapping, nrpages=len(frames), i_pages__xa_head=self.xarray(entries), host=inode)
        self.put("inode", inode, i_mapping=mapping)
        return frames

    def on_disk(
        self, system: str, number: int, size: int, mode: int = 0o100644, names: tuple[str, ...] = (), **members: int
    ) -> int:
        """An inode on its file system's list, with these names in the root directory."""
        inode = self.inode(system, mode, number, size)
        self.put("inode", inode, **members)
        self.inodes_of.setdefault(system, []).append(inode)
        aliases = []
        for name in names:
            dentry = self.dentry(self.root_dentry, name)
            self.put("dentry", dentry, d_inode=inode, d_sb=self.system(system)[0])
            aliases.append(dentry + self.offset("dentry", "d_u.d_alias"))
        self.chain(inode + self.offset("inode", "i_dentry"), aliases)
        return inode

    def link(self) -> None:
        """String super blocks, their inodes and their mounts."""
        blocks = [self.system(name)[0] for name in self._systems]
        self.chain(self.super_blocks, blocks, self.super_blocks)
        for name in self._systems:
            block, vfsmount = self.system(name)
            mount = self.root_mount if name == "ext4" else vfsmount - self.offset("mount", "mnt")
            self.put("mount", mount, mnt_ns=self.root_ns)
            root = self.space.read_u64(mount + self.offset("mount", "mnt"))
            self.put("super_block", block, s_root=root)
            head = block + self.offset("super_block", "s_inodes")
            self.chain(head, [each + self.offset("inode", "i_sb_list") for each in self.inodes_of.get(name, [])], head)
            head = block + self.offset("super_block", "s_mounts")
            self.chain(head, [mount + self.offset("mount", "mnt_instance")], head)

    def user_tables(self, of: Task) -> PageTables:
        """New page tables of a process, to map pages in."""
        user = PageTables(self.ram, self.tables.levels)
        user.share(self.tables)
        self.put("mm_struct", of.mm, pgd=DIRECT + user.root)
        return user


def hidden(pa: int) -> int:
    """An entry of a page that nobody may touch (PROT_NONE): upside down, and not present."""
    return (~pa & 0x000F_FFFF_FFFF_F000) | 1 << 8


SWAPPED = 0x0ABC_DEF0_0000_0400
assert not SWAPPED & (PRESENT | 1 << 8)
