"""What a Linux guest holds: processes, their files and paths, namespaces, sockets in their hash tables."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field

from tests.synthetic.guest import BOOTED, CPUS, DIRECT, SyntheticGuest
from tests.synthetic.ram import PageTables

PF_KTHREAD, PF_WQ_WORKER = 0x200000, 0x20
PROC = 0x5555_0000_0000
STACK = 0x7FFD_0000_0000


@dataclass
class Task:
    """Addresses of what was planted for one task."""

    task: int
    pid: int
    mm: int = 0
    cred: int = 0
    signal: int = 0
    files: int = 0
    css_set: int = 0
    nsproxy: int = 0
    fds: dict[int, int] = field(default_factory=dict)


class LinuxGuest(SyntheticGuest):
    """A guest that `processes` and `process_open_sockets` can read. Call `finish` before reading."""

    def __init__(self, levels: int = 4, *, older: bool = False, scattered: bool = False, seed: int = 1) -> None:
        super().__init__(levels, older=older, scattered=scattered, seed=seed)
        self.older = older
        self.tasks: dict[int, Task] = {}
        self._pids: dict[int, int] = {}
        self.init_pid_ns = self.global_("init_pid_ns", self.size("pid_namespace"))
        self.put("pid_namespace", self.init_pid_ns, ns__inum=0xEFFFFFFC)
        self.percpu = [self.alloc(64 << 10, f"cpu{cpu}") for cpu in range(CPUS)]
        self.write(self.global_("nr_cpu_ids", 4), struct.pack("<I", CPUS))
        offsets = self.global_("__per_cpu_offset", 8 * CPUS)
        for cpu, base in enumerate(self.percpu):
            self.word(offsets + 8 * cpu, base - 0x1000)
        self._percpu_next = 0x1000
        keeper = self.global_("tk_core" if older else "timekeeper_data", 320) + 8
        if older:
            del self.profile.layout.structs["tk_data"]
        self.put("timekeeper", keeper, offs_real=(BOOTED + 50) * 10**9, offs_boot=50 * 10**9)
        self.root_dentry = self.dentry(0, "/")
        self.root_mount = self.new("mount", mnt__mnt_root=self.root_dentry)
        self.put("mount", self.root_mount, mnt_parent=self.root_mount, mnt_mountpoint=self.root_dentry)
        self.root_cgroup = self.new("kernfs_node", name=self.string(""))
        self.socket_file_ops = self.global_("socket_file_ops", 256)
        self.other_file_ops = self.global_("ext4_file_operations", 256)
        self._sockets()

    # -- paths, groups, namespaces ----------------------------------------------------------------------------------

    def dentry(self, parent: int, name: str, *, deleted: bool = False) -> int:
        at = self.new("dentry", d_name__len=len(name.encode()), d_name__name=self.string(name))
        self.put("dentry", at, d_parent=parent or at, d_hash__pprev=0 if deleted or not parent else at + 8)
        return at

    def mount(self, parent: int, point: int) -> tuple[int, int]:
        """A file system mounted at a dentry: its mount and root dentry."""
        root = self.dentry(0, "/")
        return self.new("mount", mnt_parent=parent, mnt_mountpoint=point, mnt__mnt_root=root), root

    def file(self, *names: str, mount: int = 0, root: int = 0, deleted: bool = False) -> int:
        here = root or self.root_dentry
        for depth, name in enumerate(names, 1):
            here = self.dentry(here, name, deleted=deleted and depth == len(names))
        vfsmount = (mount or self.root_mount) + self.offset("mount", "mnt")
        return self.new("file", f_path__mnt=vfsmount, f_path__dentry=here, f_op=self.other_file_ops)

    def cgroup(self, parent: int, name: str) -> int:
        node = self.new("kernfs_node", name=self.string(name))
        self.put("kernfs_node", node, __parent=parent, parent=parent)
        return node

    def css_set(self, node: int, *older: int) -> int:
        """Who is in the v2 group of that node, and in the v1 groups `older`."""
        groups = [self.new("cgroup", kn=each) for each in (node, *older)]
        at = self.new("css_set", dfl_cgrp=groups[0])
        links = [self.new("cgrp_cset_link", cgrp=group, cset=at) for group in reversed(groups)]
        head, link = at + self.offset("css_set", "cgrp_links"), self.offset("cgrp_cset_link", "cgrp_link")
        self.chain(head, [each + link for each in links], head)
        self.word(head + 8, links[-1] + link)
        return at

    # -- processes --------------------------------------------------------------------------------------------------

    def task(
        self,
        pid: int,
        name: str = "sleep",
        parent: int = 0,
        *,
        uid: int = 0,
        state: int = 1,
        flags: int = 0,
        leader: int = 0,
        numbers: tuple[tuple[int, int], ...] = (),
        **members: int,
    ) -> Task:
        """A task and its pid; `leader` makes it a thread. `numbers` are (number, namespace) of inner pid namespaces."""
        ids = dict.fromkeys(("uid", "gid", "euid", "egid", "suid", "sgid"), uid)
        if leader:
            of = self.tasks[leader]
            found = Task(0, 0, of.mm, of.cred, of.signal, of.files, of.css_set, of.nsproxy, of.fds)
        else:
            cred = self.new("cred", **{f"{key}__val": value for key, value in ids.items()})
            found = Task(0, 0, cred=cred, signal=self.new("signal_struct", nr_threads=1))
        found.task = self.new(
            "task_struct", __state=state, state=state, flags=flags, pid=pid, tgid=leader or pid,
            real_parent=self.tasks[parent].task if parent else 0, comm=name.encode()[:15], real_cred=found.cred,
            signal=found.signal, mm=found.mm, files=found.files, cgroups=found.css_set, nsproxy=found.nsproxy,
            static_prio=members.pop("static_prio", 120), **members,
        )  # fmt: skip
        level = len(numbers)
        found.pid = self.alloc(self.size("pid") + 16 * level, f"pid{level}")
        self.put("pid", found.pid, level=level)
        self.put("task_struct", found.task, thread_pid=found.pid)
        for index, (number, namespace) in enumerate(((pid, self.init_pid_ns), *numbers)):
            upid = found.pid + self.offset("pid", "numbers") + index * self.size("upid")
            self.put("upid", upid, nr=number, ns=namespace)
        for kind in (0,) if leader else (0, 1):
            link = found.task + self.offset("task_struct", f"pid_links[{kind}]")
            self.word(found.pid + self.offset("pid", f"tasks[{kind}]"), link)
        self._pids[pid] = found.pid
        self.tasks[pid] = found
        return found

    def finish(self) -> LinuxGuest:
        """Write the IDR, when all tasks are there; parents that were not given are the first task."""
        first = next(iter(self.tasks.values()), None)
        for each in self.tasks.values():
            at = each.task + self.offset("task_struct", "real_parent")
            if first and not self.space.read_u64(at):
                self.word(at, first.task)
        self.poke("pid_namespace", self.init_pid_ns, "idr.idr_rt.xa_head", self.xarray(self._pids))
        for at, nodes in self._chains.items():
            self.chain(at, nodes, self._ends.get(at, 0))
        self.memory.reset()
        return self

    def memory_of(
        self, of: Task, arguments: bytes, *, environment: bytes = b"HOME=/\0", exe: int = 0, pages: int = 100
    ) -> None:
        """Give a task user memory of its own: page tables, arguments, environment, executable, sizes."""
        user = PageTables(self.ram, self.tables.levels)
        user.share(self.tables)
        data = arguments + environment
        start = STACK + 4096 - 100  # most arguments cross a page
        for page in range(start & ~4095, start + len(data) + 1, 4096):
            frame = self.ram.frames()
            user.map(page, frame)
            part = data[max(page - start, 0) : page + 4096 - start]
            self.ram.write(frame + max(start - page, 0), part)
        of.mm = self.new(
            "mm_struct", pgd=DIRECT + user.root, total_vm=pages * 3, arg_start=start, arg_end=start + len(arguments),
            env_start=start + len(arguments), env_end=start + len(data), exe_file=exe,
        )  # fmt: skip
        for kind in range(4):
            if self.older:
                self.poke("mm_struct", of.mm, f"rss_stat.count[{kind}].counter", pages)
            else:
                self.poke("mm_struct", of.mm, f"rss_stat[{kind}].count", pages)
                self.poke("mm_struct", of.mm, f"rss_stat[{kind}].counters", self._percpu_next)
                for cpu, base in enumerate(self.percpu):
                    self.write(base + self._percpu_next - 0x1000, struct.pack("<i", 2 - cpu * 3))  # +2, -1
                self._percpu_next += 8
        self.put("task_struct", of.task, mm=of.mm)

    def give(self, of: Task, **members: int) -> None:
        """Set members of the task, such as its cgroups or nsproxy."""
        self.put("task_struct", of.task, **members)

    def open(self, of: Task, fds: dict[int, int], max_fds: int = 64) -> None:
        """Give a task a descriptor table of these files."""
        array = self.alloc(8 * max_fds, "fds")
        for number, file in fds.items():
            self.word(array + 8 * number, file)
        of.files = self.new("files_struct", fdt=self.new("fdtable", max_fds=max_fds, fd=array))
        self.put("task_struct", of.task, files=of.files)

    # -- sockets ----------------------------------------------------------------------------------------------------

    def _sockets(self) -> None:
        self._chains: dict[int, list[int]] = {}
        self._ends: dict[int, int] = {}
        self.net_list = self.global_("net_namespace_list", 16)
        self._nets: list[int] = []
        self.hashinfo = self.global_("tcp_hashinfo", self.size("inet_hashinfo"))
        self.ehash = self.alloc(8 * 256, "ehash")
        self.put("inet_hashinfo", self.hashinfo, ehash=self.ehash, ehash_mask=255, lhash2_mask=31)
        if self.older:
            self.listeners = self.hashinfo + self.offset("inet_hashinfo", "listening_hash")
        else:
            self.listeners = self.alloc(16 * 32, "lhash2")
            self.put("inet_hashinfo", self.hashinfo, lhash2=self.listeners)
        for bucket in range(256):
            self.word(self.ehash + 8 * bucket, bucket << 1 | 1)  # an empty hlist_nulls
        for bucket in range(32):
            self.word(self.listeners + 16 * bucket + 8, bucket << 1 | 1)
        self.udp_hash = self.alloc(16 * 64, "udp")
        self.put("udp_table", self.global_("udp_table", 32), hash=self.udp_hash, mask=63)
        self.raw4 = self.global_("raw_v4_hashinfo", self.size("raw_hashinfo"))
        self.global_("raw_v6_hashinfo", self.size("raw_hashinfo"))
        self.ping = self.global_("ping_table", self.size("ping_table"))
        if self.older:
            self.unix_all = self.global_("unix_socket_table", 8 * 512)
        links = self.alloc(32 * self.size("netlink_table"), "netlink")
        self.word(self.global_("nl_table", 8), links)
        self.netlink = links
        for protocol in range(32):
            table = self.alloc(self.size("bucket_table") + 8 * 8, "bucket_table")
            self.put("bucket_table", table, size=8)
            for bucket in range(8):
                self.word(table + 64 + 8 * bucket, 1)
            self.put("netlink_table", links + protocol * self.size("netlink_table"), hash__tbl=table)
        self.init_net = self.net(0xF0000001, self.global_("init_net", self.size("net")))

    def net(self, inum: int, at: int = 0) -> int:
        """A network namespace."""
        at = at or self.new("net")
        self.put("net", at, ns__inum=inum)
        if not self.older:
            self.put("net", at, unx__table__buckets=self.alloc(8 * 512, "unix"))
            self.put(
                "net",
                at,
                ipv4__tcp_death_row__hashinfo=self.hashinfo,
                ipv4__udp_table=self.profile.symbols["udp_table"],
            )
        self._nets.append(at)
        links = [net + self.offset("net", "list") for net in self._nets]
        self._chains[self.net_list], self._ends[self.net_list] = links, self.net_list
        return at

    def sock(
        self, family: int, kind: int, protocol: int, state: int, net: int = 0, *, struct: str = "sock", uid: int = 0,
        local: tuple[str, int] | None = None, remote: tuple[str, int] | None = None, inode: int = 0, **members: int,
    ) -> int:  # fmt: skip
        """A socket of a kind; with an `inode` it has a `struct socket` too. Not hashed yet."""
        at = self.new(struct)
        self.put("sock_common", at, skc_family=family, skc_state=state, skc_net__net=net or self.init_net)
        for side, name, port in ((local, "rcv_saddr", "skc_num"), (remote, "daddr", "skc_dport")):
            if side is None:
                continue
            number = side[1] if port == "skc_num" else socket.htons(side[1])
            self.put("sock_common", at, **{port: number})
            self.put(
                "sock_common",
                at,
                **{
                    f"skc_v6_{name}" if family == 10 else f"skc_{name}": socket.inet_pton(
                        socket.AF_INET6 if family == 10 else socket.AF_INET, side[0]
                    )
                },
            )
        if struct not in ("request_sock",):
            self.put(
                "sock",
                at,
                sk_type=kind,
                sk_protocol=protocol,
                sk_uid__val=uid,
                sk_wmem_alloc__refs__counter=1,
                **{name: value for name, value in members.items() if name.startswith("sk_")},
            )
        self.put(struct, at, **{name: value for name, value in members.items() if not name.startswith("sk_")})
        if inode:
            holder = self.new("socket_alloc", socket__sk=at, vfs_inode__i_ino=inode)
            self.put("sock", at, sk_socket=holder)
        return at

    def hash(self, bucket: int, sock: int, *, nulls: int = 0, node: str = "skc_node") -> None:
        """Put a socket into the chain at a bucket."""
        offset = self.offset("netlink_sock", "node") if node == "netlink" else self.offset("sock_common", node)
        self._chains.setdefault(bucket, []).append(sock + offset)
        self._ends[bucket] = nulls

    def hash_tcp(self, sock: int, bucket: int) -> None:
        self.hash(self.ehash + 8 * bucket, sock, nulls=bucket << 1 | 1, node="skc_nulls_node")

    def hash_listener(self, sock: int, bucket: int) -> None:
        self.hash(self.listeners + 16 * bucket + 8, sock, nulls=bucket << 1 | 1, node="skc_nulls_node")

    def hash_unix(self, sock: int, bucket: int, net: int = 0) -> None:
        if self.older:
            base = self.unix_all
        else:
            base = self.space.read_u64((net or self.init_net) + self.offset("net", "unx.table.buckets"))
        self.hash(base + 8 * bucket, sock)

    def hash_netlink(self, sock: int, protocol: int, bucket: int) -> None:
        table = self.space.read_u64(self.netlink + protocol * self.size("netlink_table"))
        self.hash(table + 64 + 8 * bucket, sock, nulls=1, node="netlink")

    def hash_packet(self, sock: int, net: int = 0) -> None:
        self.hash((net or self.init_net) + self.offset("net", "packet.sklist"), sock)

    def unix_name(self, sock: int, name: bytes) -> None:
        address = self.alloc(8 + 2 + len(name), "unix_address")
        self.put("unix_address", address, len=2 + len(name))
        self.write(address + 8, b"\x01\0" + name)
        self.put("unix_sock", sock, addr=address)

    def socket_file(self, sock: int) -> int:
        holder = self.space.read_u64(sock + self.offset("sock", "sk_socket"))
        return self.new("file", f_op=self.socket_file_ops, private_data=holder)
