"""What watches a kernel, held against bpf(2), tracefs and debugfs of guests in which something does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from tests.lab.guest import LabGuest
from vmi_inside.guest import Guest

Told = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module", params=["6.1-cloud", "6.12-cloud", "new-cloud", "5.10-cloud"])
def guest(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> Iterator[LabGuest]:
    return lab_boot(kernel=request.param, workload="watched")


# -- eBPF -----------------------------------------------------------------------------------------------------------


def told(guest: LabGuest) -> Told:
    """What bpf(2) says: `program`, `map`, `link`, each a list of words by name."""
    found: Told = {"program": [], "map": [], "link": []}
    for line in guest.ask("workload bpf").splitlines():
        kind, *words = line.split(" ")
        found[kind].append(dict(word.split("=", 1) for word in words))
    return found


def enum(seen: Guest, name: str, prefix: str) -> dict[int, str]:
    return {value: key.removeprefix(prefix).lower() for key, value in seen.kernel.profile.enum(name).items()}


def test_programs(guest: LabGuest) -> None:
    said = told(guest)["program"]
    with guest.attach() as seen:
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
    assert named["lab_filter"].maps == str(seen_map(guest, "lab_array"))
    assert named["lab_cgroup"].attach_type == "cgroup_inet_egress"
    if "lab_fentry" in named:
        assert named["lab_fentry"].attach_type == "trace_fentry"
        assert named["lab_fentry"].attach_to in ("do_unlinkat", "filename_unlinkat")


def seen_map(guest: LabGuest, name: str) -> int:
    return next(int(words["id"]) for words in told(guest)["map"] if words["name"] == name)


def test_maps(guest: LabGuest) -> None:
    said = told(guest)["map"]
    with guest.attach() as seen:
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


def test_links(guest: LabGuest) -> None:
    said = told(guest)
    with guest.attach() as seen:
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
            assert guest.ask(f"stat -c %i /sys/fs/cgroup{row.target}").strip() == words["target"]
            assert row.attach_type == "cgroup_inet_egress"
    targets = {row.program: row.target for row in table}
    assert targets["lab_raw"] == "sched_process_exit"
    assert targets["lab_xdp"] == "dummy0"
    assert targets.get("lab_kprobe", "kprobe do_nanosleep") == "kprobe do_nanosleep"
    assert targets.get("lab_point", "sched_process_fork") == "sched_process_fork"
    assert re.fullmatch("(do|filename)_unlinkat", targets.get("lab_fentry", "do_unlinkat"))
