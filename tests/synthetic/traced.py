"""What a made-up kernel is watched with: eBPF objects, kprobes, users of ftrace, tracepoints."""

from __future__ import annotations

import struct

from tests.synthetic.structs import NEWER
from tests.synthetic.watched import WatchedGuest

_BPF = """
counter 8
    counter 0 i64
user_struct 128
    uid 72 kuid
bpf_prog 96
    jited 0 u32:1+0
    gpl_compatible 0 u32:1+1
    type 8 u32
    expected_attach_type 12 u32
    len 16 u32
    jited_len 20 u32
    tag 24 char[8]
    bpf_func 72 *void
    aux 80 *bpf_prog_aux
bpf_prog_aux 1300
    refcnt 0 counter
    used_map_cnt 8 u32
    id 32 u32
    func_cnt 36 u32
    dst_prog 120 *bpf_prog
    attach_func_name 232 *char
    func 240 *void
    used_maps 920 *void
    user 968 *user_struct
    load_time 976 u64
    name 1008 char[16]
bpf_map 288
    map_type 64 u32
    key_size 68 u32
    value_size 72 u32
    max_entries 76 u32
    map_flags 88 u32
    id 92 u32
    name 136 char[16]
    refcnt 176 counter
    usercnt 184 counter
    frozen 249 u8
bpf_link 80
    refcnt 0 counter
    id 8 u32
    type 12 u32
    prog 24 *bpf_prog
bpf_raw_tp_link 96
    link 0 bpf_link
    btp 80 *bpf_raw_event_map
bpf_raw_event_map 32
    tp 0 *tracepoint
bpf_cgroup_link 96
    link 0 bpf_link
    cgroup 80 *cgroup
    type 88 u32
bpf_perf_link 96
    link 0 bpf_link
    perf_file 80 *file
bpf_kprobe_multi_link 160
    link 0 bpf_link
    addrs 128 *void
    cnt 144 u32
pmu 64
    name 48 *char
perf_attr 64
    config 8 u64
perf_context 200
    task 128 *task_struct
perf_event 1300
    pmu 152 *pmu
    state 168 i32
    attr 216 perf_attr
    ctx 576 *perf_context
    owner_entry 672 list_head
    cpu 668 i32
    owner 688 *task_struct
    prog 1032 *bpf_prog
    tp_event 1048 *trace_event_call
trace_event_class 128
    system 0 *char
trace_event_call 120
    class 16 *trace_event_class
    name 24 *char
    flags 88 i32
trace_probe_event 248
    call 80 trace_event_call
    probes 216 list_head
trace_probe 48
    list 0 list_head
    event 16 *trace_probe_event
tracepoint 72
    name 0 *char
    funcs 56 *tracepoint_func
tracepoint_func 24
    func 0 *void
    data 8 *void
    prio 16 i32
kprobe 128
    hlist 0 hlist_node
    list 16 list_head
    nmissed 32 u64
    addr 40 *void
    pre_handler 64 *void
    post_handler 72 *void
    flags 120 u32
kretprobe 168
    kp 0 kprobe
    handler 128 *void
trace_kprobe 256
    rp 24 kretprobe
    tp 208 trace_probe
rb_node 24
    __rb_parent_color 0 u64
    rb_right 8 *rb_node
    rb_left 16 *rb_node
uprobe 232
    rb_node 0 rb_node
    consumers 112 {consumers}
    inode 128 *inode
    offset 168 i64
uprobe_consumer 48
    handler 0 *void
    ret_handler 8 *void
    {link}
trace_uprobe 176
    consumer 24 uprobe_consumer
    filename 88 *char
    offset 104 u64
    tp 128 trace_probe
ftrace_ops_hash 40
    notrace_hash 0 *ftrace_hash
    filter_hash 8 *ftrace_hash
ftrace_ops 200
    func 0 *void
    next 8 *ftrace_ops
    flags 16 u64
    saved_func 32 *void
    func_hash 80 *ftrace_ops_hash
    trampoline 128 u64
    trampoline_size 136 u64
    list 144 list_head
ftrace_hash 48
    size_bits 0 u64
    buckets 8 *void
    count 16 u64
ftrace_func_entry 32
    hlist 0 hlist_node
    ip 16 u64
    direct 24 u64
ftrace_page 24
    next 0 *ftrace_page
    records 8 *void
    index 16 i32
dyn_ftrace 16
    ip 0 u64
    flags 8 u64
module 256
    state 0 u32
    list 8 list_head
    name 24 char[56]
    core_layout 80 module_layout
    init_layout 160 module_layout
    num_tracepoints 240 u32
    tracepoints_ptrs 248 *i32
module_layout 80
    base 0 *void
    size 8 u32
    text_size 12 u32
    ro_size 16 u32
"""
_GROUPS = """
cgroup_subsys_state 200
    sibling 32 list_head
    children 48 list_head
bpf_prog_list 48
    node 0 {node}
    prog 16 *bpf_prog
    link 24 *bpf_cgroup_link
cgroup_bpf 640
    progs 264 {head}[4]
cgroup 2000
    self 0 cgroup_subsys_state
    kn 0x108 *kernfs_node
    bpf 0x468 cgroup_bpf
cgroup_root 3000
    cgrp 48 cgroup
bpf_xdp_entity 16
    prog 0 *bpf_prog
    link 8 *bpf_xdp_link
bpf_xdp_link 96
    link 0 bpf_link
net_device 500
    name 0 char[16]
    dev_list 64 list_head
    xdp_state 200 bpf_xdp_entity[3]
"""
PROG_TYPES = {"BPF_PROG_TYPE_UNSPEC": 0, "BPF_PROG_TYPE_SOCKET_FILTER": 1, "BPF_PROG_TYPE_KPROBE": 2}
#: Where the made-up kernel's text lies.
TEXT, TEXT_SIZE = 0xFFFF_FFFF_8130_0000, 0x10000


class TracedGuest(WatchedGuest):
    """A guest with a text, whose functions are symbols, and with nothing that watches it: plant what does."""

    def __init__(self, **kind: bool) -> None:
        super().__init__(**kind)  # type: ignore[arg-type]
        task = NEWER[NEWER.index("task_struct 9600") : NEWER.index("cred 176")]
        if not self.older:
            self.learn(task + "    perf_event_list 4000 list_head\n")
        consumers, link = ("*uprobe_consumer", "next 24 *uprobe_consumer") if self.older else (
            "list_head", "cons_node 24 list_head"
        )  # fmt: skip
        self.learn(_BPF.format(consumers=consumers, link=link))
        head, node = ("list_head", "list_head") if self.older else ("hlist_head", "hlist_node")
        net = NEWER[NEWER.index("net 4096") : NEWER.index("inet_hashinfo 512")]
        self.learn(_GROUPS.format(head=head, node=node), net + "    dev_base_head 0x800 list_head\n")
        self.profile.enums |= {
            "bpf_prog_type": PROG_TYPES,
            "bpf_map_type": {"BPF_MAP_TYPE_UNSPEC": 0, "BPF_MAP_TYPE_HASH": 1},
            "bpf_link_type": {
                f"BPF_LINK_TYPE_{name}": value
                for name, value in {"RAW_TRACEPOINT": 1, "CGROUP": 3, "PERF_EVENT": 7, "KPROBE_MULTI": 8}.items()
            },
            "bpf_attach_type": {"BPF_CGROUP_INET_INGRESS": 0, "BPF_CGROUP_INET_EGRESS": 1},
            "events": {"TRACE_EVENT_FL_TRACEPOINT": 8, "TRACE_EVENT_FL_KPROBE": 32, "TRACE_EVENT_FL_UPROBE": 64},
            "ops": {"FTRACE_OPS_FL_ENABLED": 1, "FTRACE_OPS_FL_IPMODIFY": 1 << 12},
            "perf_event_state": {"PERF_EVENT_STATE_OFF": -1, "PERF_EVENT_STATE_ACTIVE": 1},
            "records": {"FTRACE_FL_ENABLED": 1 << 31, "FTRACE_FL_REGS": 1 << 30, "FTRACE_FL_IPMODIFY": 1 << 26},
        }  # fmt: skip
        self.functions: dict[str, int] = {}
        self.profile.symbols |= {"_stext": TEXT, "_etext": TEXT + TEXT_SIZE}
        self.profile.symbol_at = self._symbol_at  # type: ignore[attr-defined]
        for name in ("vfs_read", "handler", "aggr_pre_handler", "pre_handler_kretprobe", "kprobe_dispatcher"):
            self.function(name)
        self.listed(self.global_("modules", 16), [])

    def function(self, name: str) -> int:
        """A function of the kernel: its address, after the last one."""
        at = TEXT + 0x100 * len(self.functions)
        self.functions[name] = self.profile.symbols[name] = at
        return at

    def _symbol_at(self, address: int, *, first: bool = False) -> tuple[str, int] | None:
        best = max((at for at in self.functions.values() if at <= address), default=None)
        if best is None or not TEXT <= address < TEXT + TEXT_SIZE:
            return None
        return next(name for name, at in self.functions.items() if at == best), address - best

    def idr(self, symbol: str, entries: dict[int, int]) -> None:
        at = self.profile.symbols.get(symbol) or self.global_(symbol, 24)
        self.poke("idr", at, "idr_rt.xa_head", self.xarray(entries))

    def words(self, *values: int) -> int:
        """An array of 64-bit words."""
        at = self.alloc(8 * len(values), "words")
        for number, value in enumerate(values):
            self.word(at + 8 * number, value)
        return at

    def program(self, number: int, name: str, **members: int) -> int:
        aux = self.new(
            "bpf_prog_aux", id=number, name=name.encode(), refcnt__counter=1, load_time=number * 10**9,
            user=self.new("user_struct", uid__val=1000),
        )  # fmt: skip
        program = self.new("bpf_prog", aux=aux, len=3, jited_len=40, tag=bytes(range(8)), bpf_func=TEXT + 0x5000)
        self.put("bpf_prog_aux", aux, **members)
        return program

    def groups(self, tree: dict[str, int], root: int) -> None:
        """Control groups below the root, by name; `tree` gives each its struct."""
        at = self.offset("cgroup_subsys_state", "sibling")
        for each in (root, *tree.values()):
            self.listed(each + self.offset("cgroup", "self.children"), [])
            for way in range(4 if self.older else 0):
                self.listed(each + self.offset("cgroup", f"bpf.progs[{way}]"), [])
        self.listed(root + self.offset("cgroup", "self.children"), [each + at for each in tree.values()])

    def attach(self, group: int, way: int, *programs: int, link: int = 0) -> list[int]:
        """Programs at a control group, the last with that link."""
        rows = [self.new("bpf_prog_list", prog=each) for each in programs]
        if link:
            rows.append(self.new("bpf_prog_list", link=link))
        head = group + self.offset("cgroup", f"bpf.progs[{way}]")
        if self.older:
            self.listed(head, rows)
        else:
            self.chain(head, rows)
        return rows

    def probe(self, address: int, handler: int, **members: int) -> int:
        return self.new("kprobe", addr=address, pre_handler=handler, **members)

    def uprobe(self, offset: int, *consumers: int, inode: int = 0) -> int:
        """A probe of a program, with its users."""
        at = self.new("uprobe", offset=offset, inode=inode or self.new("inode", i_ino=12))
        link = 24
        head = at + self.offset("uprobe", "consumers")
        if self.older:
            self.chain(head, [])
            for here, after in zip([head, *(each + link for each in consumers)], [*consumers, 0], strict=True):
                self.word(here, after)
        else:
            self.listed(head, [each + link for each in consumers])
        return at

    def tree(self, symbol: str, root: int, left: int = 0, right: int = 0) -> None:
        """A tree of at most three nodes."""
        self.number(symbol, root)
        self.put("rb_node", root, rb_left=left, rb_right=right, __rb_parent_color=1)
        for each in filter(None, (left, right)):
            self.put("rb_node", each, __rb_parent_color=root)

    def hash(self, *functions: int) -> int:
        """A ftrace_hash of functions, in two buckets."""
        buckets = self.alloc(16, "buckets")
        for parity in (0, 1):
            mine = [self.new("ftrace_func_entry", ip=ip) for number, ip in enumerate(functions) if number % 2 == parity]
            self.chain(buckets + 8 * parity, mine)
        return self.new("ftrace_hash", size_bits=1, buckets=buckets, count=len(functions))

    def traced_by(self, *users: int) -> None:
        """Register users of ftrace."""
        end = self.global_("ftrace_list_end", self.size("ftrace_ops"))
        self.number("ftrace_ops_list", users[0] if users else end)
        for here, after in zip(users, [*users[1:], end], strict=True):
            self.put("ftrace_ops", here, next=after)

    def user(self, callback: int, *functions: int, flags: int = 1) -> int:
        hashes = self.new("ftrace_ops_hash", filter_hash=self.hash(*functions))
        return self.new("ftrace_ops", func=callback, flags=flags, func_hash=hashes)

    def records(self, *rows: tuple[int, int]) -> list[int]:
        """Records of functions, ip and flags, on two pages."""
        pages = []
        for part in (rows[::2], rows[1::2]):
            at = self.alloc(16 * len(part) + 16, "records")
            for number, (ip, flags) in enumerate(part):
                self.write(at + 16 * number, struct.pack("<QQ", ip, flags))
            pages.append(self.new("ftrace_page", records=at, index=len(part)))
        self.put("ftrace_page", pages[0], next=pages[1])
        self.number("ftrace_pages_start", pages[0])
        return pages

    def points(self, *points: int) -> None:
        """List tracepoints, each by its distance from where that is listed."""
        start = self.global_("__start___tracepoints_ptrs", 4 * len(points))
        self.profile.symbols["__stop___tracepoints_ptrs"] = start + 4 * len(points)
        for number, at in enumerate(points):
            self.write(start + 4 * number, struct.pack("<i", at - start - 4 * number))

    def point(self, name: str, *functions: tuple[int, int]) -> int:
        """A tracepoint in the image, with functions and their data."""
        array = self.alloc(24 * (len(functions) + 1), "functions")
        for number, (function, data) in enumerate(functions):
            self.put("tracepoint_func", array + 24 * number, func=function, data=data, prio=10)
        at = self.global_(f"__tracepoint_{name}", self.size("tracepoint"))
        self.put("tracepoint", at, name=self.string(name), funcs=array if functions else 0)
        return at
