"""What watches made-up kernels: every kind of it, and guests that lie about it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.synthetic.guest import BOOTED, HOLE, NOWHERE
from tests.synthetic.traced import TEXT, TracedGuest
from vmi_inside.errors import Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.tracing.bpf_attachments import bpf_attachments
from vmi_inside.linux.tracing.bpf_links import bpf_links
from vmi_inside.linux.tracing.bpf_maps import bpf_maps
from vmi_inside.linux.tracing.bpf_programs import bpf_programs
from vmi_inside.linux.tracing.ftrace_functions import ftrace_functions
from vmi_inside.linux.tracing.ftrace_ops import ftrace_ops
from vmi_inside.linux.tracing.kprobes import kprobes
from vmi_inside.linux.tracing.perf_events import perf_events
from vmi_inside.linux.tracing.tracepoints import tracepoints
from vmi_inside.linux.tracing.uprobes import uprobes
from vmi_inside.table import Table

WILD = pytest.mark.parametrize("wild", [NOWHERE, HOLE, 8, (1 << 64) - 8, 0x1234_5678_9ABC_DEF0])
NOBODY = 0xFFFF_FFFF_A000_0000


@pytest.mark.parametrize(
    "table",
    [
        bpf_programs,
        bpf_maps,
        bpf_links,
        bpf_attachments,
        kprobes,
        ftrace_ops,
        ftrace_functions,
        tracepoints,
        uprobes,
    ],
    ids=lambda table: table.__name__,
)
def test_a_kernel_that_has_none_says_so(table: Callable[[Kernel], Table]) -> None:
    guest = TracedGuest()
    with pytest.raises(Unsupported, match="this kernel has none"):
        table(guest.kernel)


# -- eBPF -----------------------------------------------------------------------------------------------------------


def loaded(guest: TracedGuest) -> dict[str, int]:
    """Two programs, one of them with a map and of two functions; one map; four links."""
    guest.finish()
    first = guest.program(1, "plain")
    guest.put("bpf_prog", first, type=1)
    a_map = guest.new(
        "bpf_map", id=7, map_type=1, key_size=4, value_size=8, max_entries=16, map_flags=3, name=b"table",
        refcnt__counter=2, usercnt__counter=1, frozen=1,
    )  # fmt: skip
    part = guest.new("bpf_prog", jited_len=30)
    second = guest.program(
        70, "big", used_map_cnt=1, used_maps=guest.words(a_map), func_cnt=2, func=guest.words(part, part),
        attach_func_name=guest.string("vfs_read"), dst_prog=first,
    )  # fmt: skip
    guest.put("bpf_prog", second, type=2, expected_attach_type=1)
    guest.write(second, bytes([3]))  # jited, gpl_compatible
    point = guest.point("sched_switch")
    raw = guest.new("bpf_raw_tp_link", btp=guest.new("bpf_raw_event_map", tp=point))
    node = guest.cgroup(guest.cgroup(guest.root_cgroup, "user"), "a")
    group = guest.new("bpf_cgroup_link", cgroup=guest.new("cgroup", kn=node), type=1)
    call = guest.new("trace_event_call", name=point, flags=8)
    event = guest.new("perf_event", tp_event=call)
    perf = guest.new("bpf_perf_link", perf_file=guest.new("file", private_data=event))
    many = guest.new("bpf_kprobe_multi_link", addrs=guest.words(*(guest.functions["vfs_read"] + at for at in range(9))),
                     cnt=9)  # fmt: skip
    for number, (link, kind) in enumerate(((raw, 1), (group, 3), (perf, 7), (many, 8)), 1):
        guest.put("bpf_link", link, id=number, type=kind, prog=second, refcnt__counter=1)
    guest.idr("prog_idr", {1: first, 70: second})
    guest.idr("map_idr", {7: a_map})
    guest.idr("link_idr", {1: raw, 2: group, 3: perf, 4: many})
    return {"first": first, "second": second, "map": a_map, "raw": raw, "call": call, "many": many, "perf": perf}


def test_ebpf() -> None:
    guest = TracedGuest()
    loaded(guest)
    table = bpf_programs(guest.kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert [row[:9] for row in table] == [
        (1, "socket_filter", "plain", "0001020304050607", "", "", BOOTED + 1, 1000, False),
        (70, "kprobe", "big", "0001020304050607", "cgroup_inet_egress", "plain:vfs_read", BOOTED + 70, 1000, True),
    ]
    assert table.maps.tolist() == ["", "7"]
    assert table.jited_address.tolist() == [0, TEXT + 0x5000]
    assert table.jited_size.tolist() == [40, 60]
    (row,) = bpf_maps(guest.kernel)
    assert row[:10] == (7, "hash", "table", 4, 8, 16, 3, True, 2, 1)
    links = bpf_links(guest.kernel)
    assert set(links.fault) == {""}
    assert list(zip(links.type, links.program, links.attach_type, links.target, strict=True)) == [
        ("raw_tracepoint", "big", "", "sched_switch"),
        ("cgroup", "big", "cgroup_inet_egress", "/user/a"),
        ("perf_event", "big", "", "sched_switch"),
        ("kprobe_multi", "big", "",
         ", ".join(f"vfs_read{f'+{at:#x}' if at else ''}" for at in range(8)) + ", and 1 more"),
    ]  # fmt: skip


@WILD
def test_ebpf_that_lies(wild: int) -> None:
    guest = TracedGuest()
    at = loaded(guest)
    aux = guest.space.read_u64(at["second"] + guest.offset("bpf_prog", "aux"))
    guest.put("bpf_prog_aux", aux, used_map_cnt=(1 << 32) - 1, func_cnt=(1 << 32) - 1, func=wild, used_maps=wild,
              attach_func_name=wild, dst_prog=wild, user=wild)  # fmt: skip
    guest.put("bpf_kprobe_multi_link", at["many"], addrs=wild, cnt=(1 << 32) - 1)
    guest.put("bpf_raw_tp_link", at["raw"], btp=wild)
    guest.put("trace_event_call", at["call"], name=wild, flags=32)
    guest.put("bpf_map", at["map"], id=8)
    table = bpf_programs(guest.kernel)
    assert table.fault[0] == ""
    for word in ("attach_to", "maps", "functions", "user"):
        assert f"{word} unreadable" in table.fault[1]
    assert bpf_maps(guest.kernel).fault.tolist() == ["its number is another"]
    links = bpf_links(guest.kernel)
    assert links.fault.tolist()[1] == ""
    assert all("target unreadable" in links.fault[row] for row in (0, 2, 3))
    guest.put("bpf_link", at["perf"], prog=wild)
    assert "program unreadable" in bpf_links(guest.kernel).fault[2]
    guest.idr("prog_idr", {1: at["first"], 2: wild & ~3})
    table = bpf_programs(guest.kernel)
    assert "unreadable" in table.fault[1] or len(table) == 1
    guest.poke("idr", guest.profile.symbols["link_idr"], "idr_rt.xa_head", (wild & ~3) | 2)
    assert len(bpf_links(guest.kernel)) == 0


def attached(guest: TracedGuest) -> dict[str, int]:
    """A control group with two programs, one of them with a link; and a device with one."""
    first, second, third = (guest.program(number, name) for number, name in ((1, "one"), (2, "two"), (3, "xdp")))
    guest.idr("prog_idr", {1: first, 2: second, 3: third})
    root = guest.global_("cgrp_dfl_root", guest.size("cgroup_root")) + guest.offset("cgroup_root", "cgrp")
    guest.put("cgroup", root, kn=guest.root_cgroup)
    user, idle = (guest.new("cgroup", kn=guest.cgroup(guest.root_cgroup, name)) for name in ("user", "idle"))
    guest.groups({"user": user, "idle": idle}, root)
    link = guest.new("bpf_cgroup_link", link__id=9, link__prog=second)
    rows = guest.attach(user, 1, first, link=link)
    device = guest.new("net_device", name=b"eth0", xdp_state__prog=0)
    guest.poke("net_device", device, "xdp_state[1].prog", third)
    guest.listed(guest.init_net + guest.offset("net", "dev_base_head"), [device + 64])
    guest.finish()
    return {"user": user, "idle": idle, "root": root, "row": rows[0], "device": device, "last": rows[1]}


@pytest.mark.parametrize("older", [False, True], ids=["newer", "older"])
def test_attached_programs(older: bool) -> None:
    guest = TracedGuest(older=older)
    attached(guest)
    table = bpf_attachments(guest.kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert [row[:5] for row in table] == [
        (1, "one", "cgroup_inet_egress", "/user", 0),
        (2, "two", "cgroup_inet_egress", "/user", 9),
        (3, "xdp", "xdp_driver", "eth0", 0),
    ]


@WILD
def test_attachments_that_lie(wild: int) -> None:
    guest = TracedGuest()
    at = attached(guest)
    guest.put("bpf_prog_list", at["row"], prog=wild)
    guest.word(at["last"], at["row"])  # a circle of programs
    guest.put("cgroup", at["user"], kn=wild)
    sibling = guest.offset("cgroup_subsys_state", "sibling")
    guest.word(at["idle"] + sibling, at["user"] + sibling)  # and of groups
    guest.poke("net_device", at["device"], "xdp_state[1].prog", wild)
    table = bpf_attachments(guest.kernel)
    assert len(table) == 3
    assert "program unreadable" in table.fault[0]
    assert "place unreadable" in table.fault[1]
    assert "program unreadable" in table.fault[2]
    assert any("control groups" in note for note in table.notes)
    assert any("programs of a control group" in note for note in table.notes)
    guest.word(at["root"] + guest.offset("cgroup", "self.children"), wild)
    guest.word(guest.profile.symbols["net_namespace_list"], wild)
    assert len(bpf_attachments(guest.kernel)) == 0


# -- kprobes --------------------------------------------------------------------------------------------------------


def probed(guest: TracedGuest) -> list[int]:
    """One probe alone, two at one place of which one is a kretprobe of an event, one whose handler is nobody's."""
    names = guest.functions
    alone = guest.probe(names["vfs_read"] + 5, names["handler"], flags=2, nmissed=3)
    event = guest.new("trace_probe_event", call__name=guest.string("open"))
    guest.poke("trace_probe_event", event, "call.class", guest.new("trace_event_class", system=guest.string("lab")))
    traced = guest.new("trace_kprobe", tp__event=event)
    mine = traced + guest.offset("trace_kprobe", "rp.kp")
    guest.put("kprobe", mine, addr=names["vfs_read"], pre_handler=names["pre_handler_kretprobe"])
    guest.put("kretprobe", mine, handler=names["kprobe_dispatcher"])
    other = guest.probe(names["vfs_read"], names["kprobe_dispatcher"])
    second = guest.new("trace_kprobe", tp__event=event)
    other = second + guest.offset("trace_kprobe", "rp.kp")
    guest.put("kprobe", other, addr=names["vfs_read"], pre_handler=names["kprobe_dispatcher"])
    holder = guest.probe(names["vfs_read"], names["aggr_pre_handler"], flags=8 | 4)
    link = guest.offset("kprobe", "list")
    guest.listed(holder + link, [mine + link, other + link])
    hidden = guest.probe(names["handler"], NOBODY, flags=1)
    table = guest.global_("kprobe_table", 8 * 64)
    guest.chain(table, [alone, holder])
    guest.chain(table + 8 * 63, [hidden])
    guest.finish()
    return [alone, holder, mine, other, hidden]


def test_kprobes() -> None:
    guest = TracedGuest()
    probed(guest)
    table = kprobes(guest.kernel)
    assert table.notes == ()
    rows = {(row.symbol, row.type): row for row in table}
    alone = rows["vfs_read+0x5", "kprobe"]
    assert (alone.enabled, alone.optimized, alone.ftrace, alone.missed, alone.handler) == (
        False, False, False, 3, "handler",
    )  # fmt: skip
    back, other = rows["vfs_read", "kretprobe"], rows["vfs_read", "kprobe"]
    assert (back.handler, back.event, back.owner) == ("kprobe_dispatcher", "lab:open", "kernel")
    assert (back.optimized, back.ftrace, other.ftrace, other.event) == (True, True, True, "lab:open")
    hidden = rows["handler", "kprobe"]
    assert (hidden.gone, hidden.owner, hidden.fault) == (True, "", "its handler is nobody's code")
    assert [row.fault for row in table if row is not hidden and row.fault] == [hidden.fault]


@WILD
def test_kprobes_that_lie(wild: int) -> None:
    guest = TracedGuest()
    alone, holder, mine, other, _ = probed(guest)
    link = guest.offset("kprobe", "list")
    guest.word(other + link, mine + link)  # a circle that does not meet its head
    guest.word(holder, alone)  # and one of the table
    guest.word(guest.profile.symbols["kprobe_table"] + 8 * 20, wild)
    guest.put("trace_kprobe", mine - guest.offset("trace_kprobe", "rp.kp"), tp__event=wild)
    table = kprobes(guest.kernel)
    assert any("circle" in note for note in table.notes)
    assert any("at one place" in note for note in table.notes)
    found = next(row for row in table if row.type == "kretprobe")
    assert "event unreadable" in found.fault
    assert len(table) < 10


# -- ftrace ---------------------------------------------------------------------------------------------------------


def traced(guest: TracedGuest) -> dict[str, int]:
    names = guest.functions
    one = guest.user(names["handler"], names["vfs_read"], names["aggr_pre_handler"], flags=1 | 1 << 12)
    every = guest.user(NOBODY)
    off = guest.user(names["handler"], names["vfs_read"], flags=0)
    guest.traced_by(one, every, off)
    pages = guest.records(
        (names["vfs_read"] + 4, 1 << 31 | 1 << 30 | 2), (names["handler"], 0), (names["aggr_pre_handler"], 1 << 31 | 1)
    )
    guest.put("ftrace_func_entry", _first(guest, one), ip=names["vfs_read"] + 4)
    direct = guest.hash(names["vfs_read"] + 4)
    guest.number("direct_functions", direct)
    guest.finish()
    return {"one": one, "every": every, "page": pages[0], "direct": direct}


def _first(guest: TracedGuest, user: int) -> int:
    hashes = guest.space.read_u64(user + guest.offset("ftrace_ops", "func_hash"))
    found = guest.space.read_u64(hashes + guest.offset("ftrace_ops_hash", "filter_hash"))
    return guest.space.read_u64(guest.space.read_u64(found + guest.offset("ftrace_hash", "buckets")))


def test_ftrace() -> None:
    guest = TracedGuest()
    at = traced(guest)
    entry = guest.space.read_u64(guest.space.read_u64(at["direct"] + 8))
    guest.put("ftrace_func_entry", entry, direct=guest.functions["handler"])
    users = ftrace_ops(guest.kernel)
    assert users.notes == ()
    assert [(row.callback, row.owner, row.enabled, row.functions, row.flags) for row in users] == [
        ("handler", "kernel", True, 2, "ipmodify"),
        (f"{NOBODY:#x}", "", True, -1, ""),
        ("handler", "kernel", False, 1, ""),
    ]
    assert users.fault.tolist() == ["", "its callback is nobody's code", ""]
    table = ftrace_functions(guest.kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert [row[:7] for row in table] == [
        ("vfs_read", "kernel", 2, f"handler, {NOBODY:#x}", "handler", True, False),
        ("aggr_pre_handler", "kernel", 1, f"handler, {NOBODY:#x}", "", False, False),
    ]


@WILD
def test_ftrace_that_lies(wild: int) -> None:
    guest = TracedGuest()
    at = traced(guest)
    hashes = guest.space.read_u64(at["every"] + guest.offset("ftrace_ops", "func_hash"))
    guest.put(
        "ftrace_ops_hash", hashes, filter_hash=guest.new("ftrace_hash", size_bits=63, count=1 << 62, buckets=wild)
    )
    entry = _first(guest, at["one"])
    guest.word(entry, entry)  # a circle in a bucket
    guest.put("ftrace_page", at["page"], index=-1)
    guest.put("ftrace_hash", at["direct"], buckets=wild)
    users = ftrace_ops(guest.kernel)
    assert "filter unreadable" in users.fault[1]
    assert any("circle" in note for note in users.notes) or users.fault[0] == ""
    table = ftrace_functions(guest.kernel)
    assert any("pages" in note for note in table.notes)
    assert any("circle" in note for note in table.notes)
    guest.put("ftrace_ops", at["every"], next=at["one"])
    assert any("circle" in note for note in ftrace_ops(guest.kernel).notes)
    guest.put("ftrace_ops", at["every"], next=wild)
    assert len(ftrace_ops(guest.kernel)) in (2, 3)
    guest.put("ftrace_page", at["page"], records=wild, index=1 << 20, next=at["page"])
    assert len(ftrace_functions(guest.kernel)) == 0


# -- tracepoints ----------------------------------------------------------------------------------------------------


def test_tracepoints() -> None:
    guest = TracedGuest()
    names = guest.functions
    guest.points(
        guest.point("unused"), guest.point("both", (names["handler"], 0x11), (NOBODY, 0x22)),
        guest.point("one", (names["vfs_read"], 0)),
    )  # fmt: skip
    guest.finish()
    table = tracepoints(guest.kernel)
    assert table.notes == ()
    assert [row[:6] for row in table] == [
        ("both", "kernel", "handler", "kernel", 0x11, 10),
        ("both", "kernel", f"{NOBODY:#x}", "", 0x22, 10),
        ("one", "kernel", "vfs_read", "kernel", 0, 10),
    ]
    assert table.fault.tolist() == ["", "its function is nobody's code", ""]


@WILD
def test_tracepoints_that_lie(wild: int) -> None:
    guest = TracedGuest()
    names = guest.functions
    endless = guest.point("endless", *((names["handler"], number) for number in range(80)))
    torn = guest.point("torn", (names["handler"], 0))
    guest.put("tracepoint", torn, funcs=wild)
    nameless = guest.point("nameless", (names["handler"], 0))
    guest.put("tracepoint", nameless, name=wild)
    guest.points(endless, torn, nameless)
    stop = guest.profile.symbols["__stop___tracepoints_ptrs"]
    guest.finish()
    table = tracepoints(guest.kernel)
    faults = {row.name: row.fault for row in table}
    assert "more than 64 functions" in faults["endless"]
    assert "functions unreadable" in faults["torn"]
    assert "name unreadable" in faults[""]
    assert len(table) == 64 + 1 + 1
    guest.profile.symbols["__stop___tracepoints_ptrs"] = stop + (1 << 40)
    assert len(tracepoints(guest.kernel).notes) >= 1


# -- uprobes --------------------------------------------------------------------------------------------------------


def programs_probed(guest: TracedGuest) -> dict[str, int]:
    """Two users of one probe, one of them an event; a probe that nobody uses."""
    dispatcher = guest.function("uprobe_dispatcher")
    event = guest.new("trace_probe_event", call__name=guest.string("tls"))
    guest.poke("trace_probe_event", event, "call.class", guest.new("trace_event_class", system=guest.string("lab")))
    traced = guest.new("trace_uprobe", filename=guest.string("/lib/libssl.so"), tp__event=event)
    mine = traced + guest.offset("trace_uprobe", "consumer")
    guest.put("uprobe_consumer", mine, handler=dispatcher)
    other = guest.new("uprobe_consumer", ret_handler=NOBODY)
    first, second = guest.uprobe(0x1000, mine, other), guest.uprobe(0x2000)
    guest.tree("uprobes_tree", first, right=second)
    guest.finish()
    return {"first": first, "second": second, "mine": mine, "other": other, "traced": traced}


@pytest.mark.parametrize("older", [False, True], ids=["newer", "older"])
def test_uprobes(older: bool) -> None:
    guest = TracedGuest(older=older)
    programs_probed(guest)
    table = uprobes(guest.kernel)
    assert table.notes == ()
    assert [row[:8] for row in table] == [
        ("/lib/libssl.so", 12, 0x1000, "uprobe_dispatcher", "", "kernel", "lab:tls", 2),
        ("", 12, 0x1000, "", f"{NOBODY:#x}", "", "", 2),
        ("", 12, 0x2000, "", "", "", "", 0),
    ]
    assert table.fault.tolist() == ["", "its handler is nobody's code", ""]


@WILD
def test_uprobes_that_lie(wild: int) -> None:
    guest = TracedGuest()
    at = programs_probed(guest)
    guest.word(at["other"] + 24, at["mine"] + 24)  # a circle that does not meet its head
    guest.put("trace_uprobe", at["traced"], filename=wild, tp__event=wild)
    guest.put("uprobe", at["second"], inode=wild)
    table = uprobes(guest.kernel)
    assert any("circle" in note for note in table.notes)
    assert "path unreadable" in table.fault[0]
    assert "inode unreadable" in table.fault[2]
    guest.put("rb_node", at["second"], rb_left=at["first"], rb_right=wild)
    table = uprobes(guest.kernel)
    assert len(table) == 3
    assert any("twice" in note or "read" in note for note in table.notes)
    guest.word(guest.profile.symbols["uprobes_tree"], wild)
    assert len(uprobes(guest.kernel)) == 0


# -- perf events ----------------------------------------------------------------------------------------------------


def opened(guest: TracedGuest) -> dict[str, int]:
    """Two events of one thread: one of its own, one of a tracepoint on a CPU; and a thread without any."""
    init, other = guest.task(1, "init"), guest.task(7, "perf", leader=1)
    pmu = guest.new("pmu", name=guest.string("software"))
    program = guest.program(5, "sampler")
    mine = guest.new("perf_event", pmu=pmu, attr__config=3, prog=program, cpu=-1, state=-1, owner=other.task)
    guest.put("perf_event", mine, ctx=guest.new("perf_context", task=other.task))
    call = guest.new("trace_event_call", name=guest.point("sched_switch"), flags=8)
    point = guest.new(
        "perf_event", pmu=guest.new("pmu", name=guest.string("tracepoint")), cpu=1, state=1, tp_event=call
    )
    guest.put("perf_event", point, ctx=guest.new("perf_context"), owner=other.task)
    head, link = guest.offset("task_struct", "perf_event_list"), guest.offset("perf_event", "owner_entry")
    guest.listed(init.task + head, [])
    guest.listed(other.task + head, [mine + link, point + link])
    guest.finish()
    return {"mine": mine, "point": point, "call": call, "task": other.task, "init": init.task, "head": head}


def test_perf_events() -> None:
    guest = TracedGuest()
    opened(guest)
    table = perf_events(guest.kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert [row[:9] for row in table] == [
        (1, 7, "perf", "software", 3, "", 7, -1, "off"),
        (1, 7, "perf", "tracepoint", 0, "sched_switch", -1, 1, "active"),
    ]
    assert list(zip(table.program_id, table.program, strict=True)) == [(5, "sampler"), (0, "")]
    with pytest.raises(Unsupported, match="this kernel has none"):
        perf_events(TracedGuest(older=True).kernel)


@WILD
def test_perf_events_that_lie(wild: int) -> None:
    guest = TracedGuest()
    at = opened(guest)
    guest.put("perf_event", at["mine"], pmu=wild, ctx=wild, prog=wild, owner=at["init"])
    guest.put("trace_event_call", at["call"], name=wild)
    table = perf_events(guest.kernel)
    for word in ("its owner is another", "type unreadable", "watched thread unreadable", "program unreadable"):
        assert word in table.fault[0]
    assert "target unreadable" in table.fault[1]
    link = guest.offset("perf_event", "owner_entry")
    guest.word(at["point"] + link, at["mine"] + link)
    assert any("circle" in note for note in perf_events(guest.kernel).notes)
    guest.word(at["task"] + at["head"], wild)
    assert len(perf_events(guest.kernel)) <= 1
