"""What watches a kernel, held against bpf(2), tracefs and debugfs of guests in which something does."""

from __future__ import annotations

import re

from tests.lab.guest import LabGuest
from vmi_inside.guest import Guest

Told = dict[str, list[dict[str, str]]]


# -- eBPF -----------------------------------------------------------------------------------------------------------


def told(guest: LabGuest) -> Told:
    """What bpf(2) says: `program`, `map`, `link`, each a list of words by name."""
    found: Told = {"program": [], "map": [], "link": [], "attached": []}
    for line in guest.ask("workload bpf").splitlines():
        kind, *words = line.split(" ")
        found[kind].append(dict(word.split("=", 1) for word in words))
    return found


def enum(seen: Guest, name: str, prefix: str) -> dict[int, str]:
    return {value: key.removeprefix(prefix).lower() for key, value in seen.kernel.profile.enum(name).items()}


def test_programs(watched_guest: LabGuest) -> None:
    said = told(watched_guest)["program"]
    with watched_guest.attach() as seen:
        table = seen.bpf_programs()
        types = enum(seen, "bpf_prog_type", "BPF_PROG_TYPE_")
        boot = seen.info().boot_time[0]
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert len(said) >= 7
    assert [str(each) for each in table.id] == [words["id"] for words in said]
    for row, words in zip(table, said, strict=True):
        assert (row.name, row.tag, row.type) == (words["name"], words["tag"], types[int(words["type"])])
        assert (str(row.uid), str(int(row.gpl)), row.maps) == (words["uid"], words["gpl"], words["maps"])
        assert (row.translated_size, row.jited_size) == (int(words["xlated"]), int(words["jited"]))
        assert row.jited_address == int(words["at"], 16)
        assert abs(row.load_time - (boot + int(words["loaded"]) / 1e9)) <= 2
    named = {row.name: row for row in table}
    assert named["lab_filter"].maps == str(seen_map(watched_guest, "lab_array"))
    assert named["lab_cgroup"].attach_type == "cgroup_inet_egress"
    if "lab_fentry" in named:
        assert named["lab_fentry"].attach_type == "trace_fentry"
        assert named["lab_fentry"].attach_to in ("do_unlinkat", "filename_unlinkat")


def seen_map(guest: LabGuest, name: str) -> int:
    return next(int(words["id"]) for words in told(guest)["map"] if words["name"] == name)


def test_maps(watched_guest: LabGuest) -> None:
    said = told(watched_guest)["map"]
    with watched_guest.attach() as seen:
        table = seen.bpf_maps()
        types = enum(seen, "bpf_map_type", "BPF_MAP_TYPE_")
        few = seen.bpf_maps(["name"])
    assert few.to_dicts() == [{"name": words["name"], "fault": ""} for words in said]
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert {"lab_array", "lab_hash"} <= set(table.name)
    for row, words in zip(table, said, strict=True):
        assert (row.id, row.name, row.type) == (int(words["id"]), words["name"], types[int(words["type"])])
        numbers = (row.key_size, row.value_size, row.max_entries, row.flags)
        assert numbers == tuple(int(words[name]) for name in ("key", "value", "max", "flags"))
        assert row.references >= row.users >= 1
        assert not row.frozen


def test_links(watched_guest: LabGuest) -> None:
    said = told(watched_guest)
    with watched_guest.attach() as seen:
        table = seen.bpf_links()
        types = enum(seen, "bpf_link_type", "BPF_LINK_TYPE_")
    names = {words["id"]: words["name"] for words in said["program"]}
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert len(table) >= 4
    for row, words in zip(table, said["link"], strict=True):
        assert (row.id, row.type, str(row.program_id)) == (
            int(words["id"]), types[int(words["type"])], words["program"],
        )  # fmt: skip
        assert row.program == names[words["program"]]
        if row.type in ("raw_tracepoint", "xdp"):
            assert row.target == words["target"]
        elif row.type == "netns":
            assert row.target == f"net:[{words['target']}]"
            assert row.attach_type == "sk_lookup"
        elif row.type == "cgroup":
            assert watched_guest.ask(f"stat -c %i /sys/fs/cgroup{row.target}").strip() == words["target"]
            assert row.attach_type == "cgroup_inet_egress"
    targets = {row.program: row.target for row in table}
    assert targets["lab_raw"] == "sched_process_exit"
    assert targets["lab_xdp"] == "dummy0"
    assert targets.get("lab_kprobe", "kprobe do_nanosleep") == "kprobe do_nanosleep"
    assert targets.get("lab_point", "sched_process_fork") == "sched_process_fork"
    assert re.fullmatch("(do|filename)_unlinkat", targets.get("lab_fentry", "do_unlinkat"))


def test_programs_attached_with_a_link_and_without(watched_guest: LabGuest) -> None:
    said = told(watched_guest)
    with watched_guest.attach() as seen:
        table = seen.bpf_attachments()
        types = enum(seen, "bpf_attach_type", "BPF_")
    assert table.notes == ()
    assert set(table.fault) == {""}
    names = {words["id"]: words["name"] for words in said["program"]}
    groups = [row for row in table if not row.attach_type.startswith("xdp")]
    mine = {(row.program_id, row.program, row.attach_type, f"/sys/fs/cgroup{row.target}") for row in groups}
    assert mine == {
        (int(words["program"]), names[words["program"]], types[int(words["type"])], words["target"])
        for words in said["attached"]
    }
    links = {int(words["id"]): words["program"] for words in said["link"]}
    by_name = {row.program: row for row in table}
    assert by_name["lab_device"].link_id == 0
    for name, target in (("lab_cgroup", "/watched"), ("lab_xdp", "dummy0")):
        assert links[by_name[name].link_id] == str(by_name[name].program_id)
        assert by_name[name].target == target
    assert by_name["lab_xdp"].attach_type == "xdp_generic"
    assert set(by_name) == {"lab_device", "lab_cgroup", "lab_xdp"}


# -- probes and traces ----------------------------------------------------------------------------------------------


def test_kprobes_are_what_debugfs_lists(watched_guest: LabGuest) -> None:
    said = []
    for line in watched_guest.ask("cat /sys/kernel/debug/kprobes/list").splitlines():
        address, kind, place, *rest = line.split()
        flags = set(re.findall(r"\[([A-Z]+)\]", "".join(rest)))
        said.append((int(address, 16), {"k": "kprobe", "r": "kretprobe"}[kind], place.removesuffix("+0x0"), flags))
    with watched_guest.attach() as seen:
        table = seen.kprobes()
    assert table.notes == ()
    assert set(table.fault) == {""}
    mine = []
    for row in table:
        words = {"GONE": row.gone, "DISABLED": not row.enabled, "OPTIMIZED": row.optimized, "FTRACE": row.ftrace}
        mine.append((row.probed, row.type, row.symbol, {word for word, on in words.items() if on}))
    assert len(said) >= 5

    def key(each: tuple) -> tuple:
        return each[:2]

    assert sorted(mine, key=key) == sorted(said, key=key)
    events = {row.event: row for row in table}
    assert {"lab:open", "lab:opened", "lab:inside", "lab:later"} <= set(events)
    assert not events["lab:later"].enabled
    assert events["lab:inside"].optimized
    assert events["lab:opened"].type == "kretprobe"
    assert set(table.owner) == {"kernel"}
    assert events["lab:opened"].handler == "kretprobe_dispatcher"


def test_traced_functions_are_what_tracefs_lists(watched_guest: LabGuest) -> None:
    said: dict[str, tuple[int, bool, bool, str]] = {}
    name = ""
    for line in watched_guest.ask("cat /sys/kernel/tracing/enabled_functions").splitlines():
        if "direct-->" in line:
            said[name] = (*said[name][:3], line.split("-->")[1].split("+")[0])
            continue
        name, count, rest = re.match(r"(\S+) \((\d+)\)(.*)", line).groups()  # type: ignore[union-attr]
        letters = rest.split("tramp:")[0].split()
        said[name] = (int(count), "R" in letters, "I" in letters, "")
    with watched_guest.attach() as seen:
        table = seen.ftrace_functions()
        users = seen.ftrace_ops()
    assert table.notes == ()
    assert set(table.fault) == {""}
    mine = {
        row.function: (row.users, row.regs, row.ipmodify, row.direct.removesuffix(" [bpf]")) for row in table
    }  # fmt: skip
    assert len(said) >= 5
    assert mine == said
    called = {row.function: row.callbacks for row in table}
    assert called["vfs_statx"] == called["vfs_mkdir"] == called["vfs_unlink"] == "function_trace_call"
    assert called["do_sys_openat2"] == "kprobe_ftrace_handler"
    assert users.notes == ()
    assert set(users.fault) == {""}
    traced = [row for row in users if row.callback == "function_trace_call"]
    assert sorted(row.functions for row in traced) == [1, 2]
    assert {row.name for row in traced} == {"", "global_ops"}
    assert all(row.owner == "kernel" and row.enabled for row in users)
    by_probes = [row for row in users if row.name == "kprobe_ftrace_ops"]
    assert [row.functions for row in by_probes] == [2]  # the two enabled ones at functions' entries
    filters = watched_guest.ask("cd /sys/kernel/tracing; cat set_ftrace_filter instances/lab/set_ftrace_filter").split()
    assert sum(row.functions for row in traced) == len(filters)


def test_tracepoints_in_use(watched_guest: LabGuest) -> None:
    events = watched_guest.ask("cat /sys/kernel/tracing/set_event").split()
    with watched_guest.attach() as seen:
        table = seen.tracepoints()
        few = seen.tracepoints(["name"])
        holds = {words.address for words in seen.bpf_links()} | {words.address for words in seen.bpf_programs()}
    assert few.name.tolist() == table.name.tolist()
    assert table.notes == ()
    assert set(table.fault) == {""}
    found: dict[str, list[str]] = {}
    for row in table:
        found.setdefault(row.name, []).append(row.function)
        assert row.owner == row.module
        assert row.function.endswith(f"[{row.module}]") or row.module == "kernel"
    for event in events:
        group, _, name = event.partition(":")
        if group != "lab":  # those are no tracepoints
            assert any(each.startswith("trace_event_raw_event_") for each in found.pop(name)), event
    # What is left is eBPF's and perf's, and what ftrace needs for itself while events are on.
    assert found.pop("sched_process_exit")[0].startswith("__bpf_trace_sched_process")
    assert found.pop("sched_process_fork") == ["perf_trace_sched_process_fork"]
    assert set(found) <= {"sched_switch", "sched_wakeup", "sched_wakeup_new"}
    raw = next(row for row in table if row.name == "sched_process_exit")
    assert raw.data_address in holds


def test_uprobes(watched_guest: LabGuest) -> None:
    listed = watched_guest.ask("cat /sys/kernel/tracing/uprobe_events").split()
    assert listed[0] == "p:lab/start"
    path, _, offset = listed[1].partition(":")
    inode = int(watched_guest.ask(f"stat -c %i {path}"))
    with watched_guest.attach() as seen:
        table = seen.uprobes()
    assert table.notes == ()
    (row,) = table
    assert (row.path, row.inode, row.offset, row.event) == (path, inode, int(offset, 16), "lab:start")
    assert (row.handler, row.return_handler, row.owner) == ("uprobe_dispatcher", "", "kernel")
    assert (row.users, row.fault) == (1, "")


def test_perf_events(watched_guest: LabGuest) -> None:
    listed = watched_guest.ask("ls -l /proc/[0-9]*/fd 2>/dev/null; true").splitlines()
    said: dict[int, int] = {}
    pid = 0
    for line in listed:
        if line.endswith("/fd:"):
            pid = int(line.split("/")[2])
        elif line.endswith("anon_inode:[perf_event]"):
            said[pid] = said.get(pid, 0) + 1
    with watched_guest.attach() as seen:
        table = seen.perf_events()
        names = {row.pid: row.name for row in seen.processes(["pid", "name"])}
    assert table.notes == ()
    assert set(table.fault) == {""}
    mine = {row.pid: (row.tid, row.name) for row in table}
    assert mine.keys() <= said.keys()  # children hold what their parent opened
    for row in table:
        assert said[row.pid] == (table.pid == row.pid).sum()
        assert row.name == names[row.pid]
        if row.type == "software":
            assert (row.watched_pid, row.cpu, row.state, row.config) == (row.pid, -1, "off", 3)
        else:
            assert (row.watched_pid, row.cpu, row.state) == (-1, 0, "active")
    assert sorted((row.type, row.target) for row in table) == [
        ("kprobe", "kprobe do_nanosleep"), ("software", ""), ("tracepoint", "sched_process_fork"),
    ]  # fmt: skip
    assert {row.type: row.program for row in table} == {
        "kprobe": "lab_kprobe", "software": "", "tracepoint": "lab_point",
    }  # fmt: skip
    point = next(row for row in table if row.type == "tracepoint")
    assert point.config == int(watched_guest.ask("cat /sys/kernel/tracing/events/sched/sched_process_fork/id"))
