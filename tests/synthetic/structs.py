"""The structs of a made-up kernel: the members that tables read, at offsets of our own.

`NEWER` has the shapes of 6.2 and later, `OLDER` puts those of 5.10 in their place.
"""

from __future__ import annotations

NEWER = """
list_head 16
    next 0 *list_head
    prev 8 *list_head
hlist_node 16
    next 0 *hlist_node
    pprev 8 *void
hlist_head 8
    first 0 *hlist_node
atomic 4
    counter 0 i32
kuid 4
    val 0 u32
xarray 16
    xa_head 8 *void
idr 24
    idr_rt 0 xarray
xa_node 576
    shift 0 u8
    slots 40 *void[64]
ns_common 24
    inum 16 u32
pid_namespace 128
    idr 8 idr
    ns 100 ns_common
upid 16
    nr 0 i32
    ns 8 *pid_namespace
pid 112
    level 4 u32
    tasks 16 hlist_head[4]
    numbers 96 upid[1]
thread_struct 64
    sp 0x18 u64
inactive_task_frame 56
    bp 0x28 u64
    ret_addr 0x30 u64
pt_regs 168
    bp 0x20 u64
    ip 0x80 u64
    cs 0x88 u64
    sp 0x98 u64
sched_entity 256
    sum_exec_runtime 0x40 u64
thread_info 24
    cpu 0x14 u32
task_struct 9600
    thread_info 0 thread_info
    __state 0x18 u32
    flags 0x2c u32
    static_prio 0x74 i32
    rt_priority 0x7c u32
    policy 0x80 u32
    se 0xc0 sched_entity
    mm 0x8e0 *mm_struct
    exit_state 0x920 i32
    pid 0x970 i32
    tgid 0x974 i32
    real_parent 0x980 *task_struct
    thread_pid 0x9b8 *pid
    pid_links 0x9e0 hlist_node[4]
    worker_private 0xa28 *void
    utime 0xa40 u64
    stime 0xa48 u64
    start_boottime 0xa88 u64
    real_cred 0xb08 *cred
    comm 0xb18 char[16]
    stack 0xbc0 *void
    on_cpu 0xbc8 u8
    thread 0xd00 thread_struct
    fs 0xb58 *fs_struct
    files 0xb60 *files_struct
    nsproxy 0xb68 *nsproxy
    signal 0xb70 *signal_struct
    cgroups 0xc20 *css_set
cred 176
    uid 4 kuid
    gid 8 kuid
    suid 12 kuid
    sgid 16 kuid
    euid 20 kuid
    egid 24 kuid
tty_struct 696
    name 0x160 char[64]
signal_struct 1100
    nr_threads 8 i32
    pids 0x170 *pid[4]
    tty 0x198 *tty_struct
    utime 0x1a0 u64
    stime 0x1a8 u64
    sum_sched_runtime 0x280 u64
    oom_score_adj 0x440 i16
percpu_counter 40
    count 8 i64
    counters 32 *i32
mm_struct 1000
    pgd 0x48 *void
    total_vm 0xb8 u64
    arg_start 0x120 u64
    arg_end 0x128 u64
    env_start 0x130 u64
    env_end 0x138 u64
    rss_stat 0x290 percpu_counter[4]
    exe_file 0x370 *file
kthread 128
    data 0x18 *void
    full_name 0x70 *char
worker 160
    current_work 0x10 *void
    pool 0x40 *void
    desc 0x68 char[24]
nsproxy 72
    net_ns 0x28 *net
path 16
    mnt 0 *vfsmount
    dentry 8 *dentry
file 256
    f_path 0x10 path
    f_op 0xb0 *void
    private_data 0xc8 *void
qstr 16
    len 4 u32
    name 8 *char
bl_node 16
    next 0 *void
    pprev 8 *void
dentry 192
    d_hash 8 bl_node
    d_parent 24 *dentry
    d_name 32 qstr
vfsmount 32
    mnt_root 0 *dentry
mount 320
    mnt_parent 16 *mount
    mnt_mountpoint 24 *dentry
    mnt 32 vfsmount
fs_struct 56
    root 24 path
    pwd 40 path
fdtable 56
    max_fds 0 u32
    fd 8 *void
files_struct 704
    fdt 32 *fdtable
css_set 500
    dfl_cgrp 0x88 *cgroup
    cgrp_links 0x1e0 list_head
cgrp_cset_link 48
    cgrp 0 *cgroup
    cset 8 *css_set
    cgrp_link 32 list_head
cgroup 2000
    kn 0x108 *kernfs_node
kernfs_node 128
    __parent 8 *kernfs_node
    name 16 *char
timekeeper 280
    offs_real 0x68 i64
    offs_boot 0x70 i64
tk_data 320
    timekeeper 8 timekeeper
death_row 8
    hashinfo 0 *inet_hashinfo
netns_ipv4 700
    tcp_death_row 0x0 death_row
    udp_table 0x40 *udp_table
netns_packet 48
    sklist 32 hlist_head
unix_table 16
    locks 0 *void
    buckets 8 *hlist_head
netns_unix 32
    table 0 unix_table
net 4096
    list 0x28 list_head
    ns 0x70 ns_common
    unx 0x100 netns_unix
    packet 0x140 netns_packet
    ipv4 0x200 netns_ipv4
inet_hashinfo 512
    ehash 0 *inet_ehash_bucket
    ehash_mask 16 u32
    lhash2_mask 64 u32
    lhash2 72 *inet_listen_hashbucket
inet_ehash_bucket 8
    chain 0 hlist_head
inet_listen_hashbucket 16
    nulls_head 8 hlist_head
udp_table 32
    hash 0 *udp_hslot
    mask 16 u32
udp_hslot 16
    head 0 hlist_head
raw_hashinfo 2064
    ht 8 hlist_head[256]
ping_table 520
    hash 0 hlist_head[64]
possible_net 8
    net 0 *net
in6_addr 16
    s6_addr 0 u8[16]
sock_common 136
    skc_daddr 0 u32
    skc_rcv_saddr 4 u32
    skc_dport 12 u16
    skc_num 14 u16
    skc_family 16 u16
    skc_state 18 u8
    skc_bound_dev_if 20 i32
    skc_net 48 possible_net
    skc_v6_daddr 56 in6_addr
    skc_v6_rcv_saddr 72 in6_addr
    skc_node 104 hlist_node
    skc_nulls_node 104 hlist_node
backlog 24
    rmem_alloc 0 atomic
refcount 4
    refs 0 atomic
sk_buff_head 24
    next 0 *sk_buff
    prev 8 *sk_buff
    qlen 16 u32
sk_buff 232
    next 0 *sk_buff
    len 112 u32
sock 760
    __sk_common 0 sock_common
    sk_receive_queue 0xc0 sk_buff_head
    sk_backlog 0xe0 backlog
    sk_wmem_alloc 0x144 refcount
    sk_ack_backlog 0x230 u32
    sk_max_ack_backlog 0x234 u32
    sk_uid 0x238 kuid
    sk_type 0x23c u16
    sk_protocol 0x23e u16
    sk_socket 0x270 *socket
tcp_sock 2200
    rcv_nxt 0x600 u32
    copied_seq 0x604 u32
    snd_una 0x60c u32
    write_seq 0x700 u32
request_sock 304
    __req_common 0 sock_common
    rsk_listener 160 *sock
socket 128
    state 0 u32
    sk 24 *sock
inode 616
    i_ino 64 u64
socket_alloc 744
    socket 0 socket
    vfs_inode 128 inode
unix_address 8
    refcnt 0 u32
    len 4 u32
    name 8 u8[0]
unix_sock 1024
    sk 0 sock
    addr 800 *unix_address
    peer 824 *sock
bucket_table 64
    size 0 u32
    future_tbl 16 *bucket_table
    buckets 64 *void[0]
rhashtable 144
    tbl 0 *bucket_table
netlink_table 192
    hash 0 rhashtable
netlink_sock 1200
    sk 0 sock
    portid 760 u32
    dst_portid 764 u32
    dst_group 768 u32
    node 1100 *void
packet_type 72
    dev 8 *net_device
packet_sock 1400
    sk 0 sock
    ifindex 1000 i32
    num 1004 u16
    prot_hook 1024 packet_type
net_device 2000
    name 0 char[16]
"""

OLDER = """
task_struct 9600
    state 0x10 i64
    flags 0x2c u32
    cpu 0x40 u32
    static_prio 0x74 i32
    rt_priority 0x7c u32
    policy 0x80 u32
    se 0xc0 sched_entity
    mm 0x8e0 *mm_struct
    exit_state 0x920 i32
    pid 0x970 i32
    tgid 0x974 i32
    real_parent 0x980 *task_struct
    thread_pid 0x9b8 *pid
    pid_links 0x9e0 hlist_node[4]
    set_child_tid 0xa28 *void
    utime 0xa40 u64
    stime 0xa48 u64
    start_boottime 0xa88 u64
    real_cred 0xb08 *cred
    comm 0xb18 char[16]
    stack 0xbc0 *void
    on_cpu 0xbc8 u8
    thread 0xd00 thread_struct
    fs 0xb58 *fs_struct
    files 0xb60 *files_struct
    nsproxy 0xb68 *nsproxy
    signal 0xb70 *signal_struct
    cgroups 0xc20 *css_set
kthread 96
    data 0x18 *void
kernfs_node 128
    parent 8 *kernfs_node
    name 16 *char
atomic_long 8
    counter 0 i64
mm_rss_stat 32
    count 0 atomic_long[4]
mm_struct 1000
    pgd 0x48 *void
    total_vm 0xb8 u64
    arg_start 0x120 u64
    arg_end 0x128 u64
    env_start 0x130 u64
    env_end 0x138 u64
    rss_stat 0x290 mm_rss_stat
    exe_file 0x370 *file
inet_hashinfo 2048
    ehash 0 *inet_ehash_bucket
    ehash_mask 16 u32
    listening_hash 128 inet_listen_hashbucket[32]
netns_ipv4 700
    tcp_death_row 0x40 u64
netns_unix 32
    sysctl 0 u32
seqcount_raw_spinlock 4
    sequence 0 u32
"""
