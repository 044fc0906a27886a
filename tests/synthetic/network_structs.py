"""The structs of the network of a made-up kernel: `NETWORK`, with the shapes of newer and of older ones to fill in."""

from __future__ import annotations

NETWORK = """
netns_ipv4 700
    tcp_death_row 0x0 {death_row}
    udp_table 0x40 *udp_table
    fib_table_hash 0x100 *hlist_head
    rules_ops 0x108 *void
netns_ipv6 200
    fib_table_hash 0x10 *hlist_head
    fib6_local_tbl 0x18 *void
    fib6_null_entry 0x20 *fib6_info
netns_nf 200
    hooks_ipv4 0 *nf_hook_entries[5]
    hooks_ipv6 40 *nf_hook_entries[5]
    hooks_arp 80 *nf_hook_entries[3]
xt_pernet 256
    tables 0 list_head[13]
netns_xt 256
    tables 0 list_head[13]
module 1000
    name 0 char[56]
xt_table 96
    list 0 list_head
    valid_hooks 16 u32
    private 24 *xt_table_info
    me 40 *module
    name 56 char[32]
xt_table_info 64
    size 0 u32
    number 4 u32
net 4096
    {xt}
    list 0x28 list_head
    ns 0x70 ns_common
    dev_base_head 0x90 list_head
    gen 0xa8 *net_generic
    unx 0x100 netns_unix
    packet 0x140 netns_packet
    ipv4 0x200 netns_ipv4
    ipv6 0x600 netns_ipv6
    nf 0x800 netns_nf
net_generic 8
    ptr 0 *void[0]
net_device_stats 184
    rx_packets 0 u64
    tx_packets 8 u64
    rx_bytes 16 u64
    tx_bytes 24 u64
    rx_errors 32 u64
    tx_errors 40 u64
    rx_dropped 48 u64
    tx_dropped 56 u64
    multicast 64 u64
    collisions 72 u64
adjacency 16
    upper 0 list_head
u64_stats 8
    v 0 u64
atomic_long 8
    counter 0 i64
pcpu_lstats 16
    packets 0 u64_stats
    bytes 8 u64_stats
pcpu_sw_netstats 32
    rx_packets 0 u64
    rx_bytes 8 u64
    tx_packets 16 u64
    tx_bytes 24 u64
net_device_core_stats 32
    rx_dropped 0 u64
    tx_dropped 8 u64
net_device 1000
    name 0 char[16]
    dev_list 0x10 list_head
    adj_list 0x20 adjacency
    ifindex 0x30 i32
    flags 0x34 u32
    gflags 0x38 u16
    type 0x3a u16
    mtu 0x3c u32
    operstate 0x40 u8
    addr_len 0x41 u8
    promiscuity 0x44 u32
    state 0x48 u64
    stats 0x50 net_device_stats
    dev_addr 0x108 *void
    netdev_ops 0x110 *net_device_ops
    rtnl_link_ops 0x118 *rtnl_link_ops
    qdisc 0x120 *Qdisc
    ifalias 0x128 *dev_ifalias
    ip_ptr 0x130 *in_device
    ip6_ptr 0x138 *inet6_dev
    nd_net 0x140 possible_net
    lstats 0x148 *pcpu_lstats
    tstats 0x148 *pcpu_sw_netstats
    {core}
    nf_hooks_ingress 0x170 *nf_hook_entries
    num_rx_queues 0x178 u32
net_device_ops 64
    ndo_get_stats64 0 *void
    ndo_get_stats 8 *void
rtnl_link_ops 64
    kind 16 *char
Qdisc 64
    ops 8 *Qdisc_ops
Qdisc_ops 64
    id 16 char[16]
dev_ifalias 16
    ifalias 16 char[0]
netdev_adjacent 56
    dev 0 *net_device
    master 8 u8
    list 24 list_head
in_device 64
    ifa_list 16 *in_ifaddr
in_ifaddr 120
    ifa_next 16 *in_ifaddr
    ifa_local 48 u32
    ifa_address 52 u32
    ifa_broadcast 64 u32
    ifa_scope 68 u8
    ifa_prefixlen 69 u8
    ifa_flags 72 u32
    ifa_label 76 char[16]
inet6_dev 64
    addr_list 8 list_head
inet6_ifaddr 296
    addr 0 in6_addr
    prefix_len 16 u32
    flags 44 u32
    scope 50 u16
    if_list 200 list_head
    peer_addr 280 in6_addr
fib_table 48
    tb_hlist 0 hlist_node
    tb_id 16 u32
    tb_data 40 *void
trie 24
    kv 0 key_vector[1]
key_vector 16
    key 0 u32
    pos 4 u8
    bits 5 u8
    slen 6 u8
    leaf 8 hlist_head
    tnode 8 *key_vector[0]
fib_alias 56
    fa_list 0 hlist_node
    fa_info 16 *fib_info
    {tos} 24 u8
    fa_type 25 u8
    fa_slen 27 u8
    tb_id 28 u32
fib_info 128
    fib_protocol 69 u8
    fib_scope 70 u8
    fib_prefsrc 72 u32
    fib_priority 80 u32
    fib_metrics 88 *dst_metrics
    fib_nhs 96 i32
    nh 104 *nexthop
    fib_nh 128 fib_nh[0]
gateway 16
    ipv4 0 u32
    ipv6 0 in6_addr
fib_nh_common 72
    nhc_dev 0 *net_device
    nhc_gw_family 14 u8
    nhc_flags 15 u8
    nhc_gw 24 gateway
    nhc_weight 40 i32
fib_nh 112
    nh_common 0 fib_nh_common
fib6_nh 96
    nh_common 0 fib_nh_common
nexthop 136
    id 96 u32
    is_group 102 u8
    nh_info 128 *nh_info
nh_info 144
    fib_nhc 32 fib_nh_common
nh_group 24
    num_nh 8 u16
    nh_entries 24 nh_grp_entry[0]
nh_grp_entry 64
    nh 0 *nexthop
    weight 8 u8
dst_metrics 72
    metrics 0 u32[17]
fib6_table 128
    tb6_hlist 0 hlist_node
    tb6_id 16 u32
    tb6_root 24 fib6_node
fib6_node 72
    left 8 *fib6_node
    right 16 *fib6_node
    leaf 32 *fib6_info
    fn_flags 42 u16
rt6key 20
    addr 0 in6_addr
    plen 16 i32
fib6_info 168
    fib6_next 8 *fib6_info
    fib6_metrics 56 *dst_metrics
    fib6_dst 64 rt6key
    fib6_src 88 rt6key
    fib6_prefsrc 108 rt6key
    fib6_metric 128 u32
    fib6_protocol 132 u8
    fib6_type 133 u8
    nh 160 *nexthop
    fib6_nh 168 fib6_nh[0]
neigh_table 600
    nht 584 *neigh_hash_table
    phash_buckets 592 *void
neigh_hash_table 48
    {buckets} 0 *void
    hash_shift 8 u32
neighbour 304
    {link}
    nud_state 132 u8
    flags 136 u32
    ha 152 u8[32]
    dev 296 *net_device
    primary_key 304 u8[0]
pneigh_entry 32
    next 0 *pneigh_entry
    net 8 possible_net
    dev 16 *net_device
    flags 24 u32
    key 32 u32[0]
nf_hook_entries 8
    num_hook_entries 0 u16
    hooks 8 nf_hook_entry[0]
nf_hook_entry 16
    hook 0 *void
    priv 8 *void
nf_hook_ops 40
    hook 0 *void
    dev 8 *net_device
    priv 16 *void
    {kind}
    hooknum 28 u32
    priority 32 i32
nftables_pernet 64
    tables 0 list_head
nft_table 272
    list 0 list_head
    chains 152 list_head
    sets 168 list_head
    family 236 u16:6+0
    flags 236 u16:8+6
    name 248 *char
nft_chain 120
    rules 16 list_head
    list 32 list_head
    table 64 *nft_table
    flags 84 u8:5+0
    name 88 *char
nft_chain_type 96
    name 0 *char
nft_base_chain 216
    ops 0 nf_hook_ops
    hook_list 40 list_head
    type 56 *nft_chain_type
    policy 64 u8
    chain 80 nft_chain
nft_hook 72
    list 0 list_head
    ops 16 nf_hook_ops
nft_set 256
    list 0 list_head
    name 56 *char
    size 84 u32
    nelems 112 atomic
    ndeact 116 u32
    flags 200 u16:13+0
    klen 202 u8
    dlen 203 u8
nft_set_ops 168
    adjust_maxsize 96 *void
"""
NEWER_NETWORK = {
    "death_row": "death_row", "core": "core_stats 0x150 *net_device_core_stats", "tos": "fa_dscp",
    "buckets": "hash_heads", "link": "hash 0 hlist_node", "kind": "hook_ops_type 24 u8:8+0",
    "xt": "",
}  # fmt: skip
OLDER_NETWORK = {
    "death_row": "u64", "core": "rx_dropped 0x150 atomic_long\n    tx_dropped 0x158 atomic_long", "tos": "fa_tos",
    "buckets": "hash_buckets", "link": "next 0 *neighbour", "kind": "pf 24 u8",
    "xt": "xt 0xa00 netns_xt",
}  # fmt: skip
