"""Gates of made-up guests: where there is room, what stands, who stands in it; and guests that lie about it."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from tests.gates.gated import BASE, GatedGuest, rule
from tests.synthetic.guest import IMAGE, NOWHERE
from tests.synthetic.ram import LARGE, NX, PRESENT
from vmi_inside.control.gates import layout
from vmi_inside.control.gates.entries import find_entry
from vmi_inside.control.gates.holes import holes, spare_words
from vmi_inside.control.gates.layout import Hook, Rule, Scope, State
from vmi_inside.control.gates.listing import Gates, gates
from vmi_inside.control.gates.operations import OPERATIONS
from vmi_inside.control.gates.rules import Subject, descendants, find, tasks
from vmi_inside.control.gates.standing import Site
from vmi_inside.control.gates.subjects import subjects
from vmi_inside.control.gates.tracing import Records
from vmi_inside.control.padding import access, is_padding, padding
from vmi_inside.control.places import Spaces, pieces, thread_space
from vmi_inside.control.sleepers import standing
from vmi_inside.errors import Conflict, ControlError, PageFault, Unsafe, Unsupported
from vmi_inside.linux.symbols.gated import AREA_SIZE, gated

# -- room -------------------------------------------------------------------------------------------------------------


def test_room_is_the_end_of_the_padding(guest: GatedGuest) -> None:
    assert padding(guest.kernel, AREA_SIZE) == BASE
    assert is_padding(guest.kernel, BASE, AREA_SIZE)
    guest.write(BASE - 1, b"\x90")
    assert not is_padding(guest.kernel, BASE, AREA_SIZE)


@pytest.mark.parametrize(
    "lie", ["no symbol", "short", "behind the text", "code close by", "not executable", "unmapped"]
)
def test_where_there_is_no_room_it_is_said(guest: GatedGuest, lie: str) -> None:
    symbols = guest.profile.symbols
    if lie == "no symbol":
        del symbols["__entry_text_end"]
    elif lie == "short":
        symbols["__entry_text_end"] = BASE + 1
    elif lie == "behind the text":
        symbols["_etext"] = IMAGE + (2 << 20) - 1
    elif lie == "code close by":
        symbols["srso_alias_safe_ret"] = BASE - 100
    else:
        guest.map_image(NX | LARGE | PRESENT if lie == "not executable" else 0)
    with pytest.raises(Unsupported, match="no room for code"):
        padding(guest.kernel, AREA_SIZE)
    table = gates(guest.kernel)
    assert not len(table)
    assert "no room for code" in table.notes[0]


def test_what_page_tables_allow(guest: GatedGuest) -> None:
    assert access(guest.space, IMAGE).executable
    guest.map_image(LARGE | PRESENT | NX)
    assert not access(guest.space, IMAGE).executable
    assert not access(guest.space, IMAGE).writable
    with pytest.raises(PageFault):
        access(guest.space, NOWHERE)


def test_holes_are_where_no_member_is(guest: GatedGuest) -> None:
    assert list(holes(guest.profile.struct("holed"), 4)) == [4, 8, 12, 28, 32, 36]
    assert list(holes(guest.profile.struct("holed"), 8)) == [8, 32]
    at = guest.profile.symbol("init_user_ns")
    words = list(spare_words(guest.kernel))
    assert words == [(at + offset, 0) for offset in range(8, 120, 8)]
    guest.word(at + 16, 7)  # what is left of another gate comes last
    assert list(spare_words(guest.kernel)) == [*(one for one in words if one[0] != at + 16), (at + 16, 7)]
    guest.map_image(LARGE | PRESENT)  # not to be written
    assert list(spare_words(guest.kernel)) == []


@pytest.mark.parametrize(
    ("raw", "state", "at"),
    [
        ("0f1f440000", "free", 0), ("6666666690", "free", 0), ("f30f1efa0f1f440000", "free", 4),
        ("660f1f000f1f440000", "free", 4), ("0f1f40d60f1f440000", "free", 4), ("e800100000", "traced", 0),
        ("e900100000", "jump", 0), ("cc1f440000", "probed", 0), ("4157415641", "other", 0),
    ],
)  # fmt: skip
def test_what_stands_at_an_entry(guest: GatedGuest, raw: str, state: str, at: int) -> None:
    function = guest.profile.symbol("security_file_open")
    guest.write(function, bytes.fromhex(raw))
    found = find_entry(guest.kernel, "no_such_function", "security_file_open")
    assert found is not None
    assert (found.state, found.at, found.behind) == (state, function + at, function + at + 5)
    assert bool(found.words()) == (state != "free")
    if state in ("traced", "jump"):
        assert found.target == function + 5 + 0x1000
    assert find_entry(guest.kernel, "no_such_function") is None
    guest.profile.symbols["nowhere"] = NOWHERE
    assert find_entry(guest.kernel, "nowhere") is None


# -- what stands ------------------------------------------------------------------------------------------------------


def test_no_gates(guest: GatedGuest) -> None:
    table = gates(guest.kernel)
    assert (len(table), table.notes) == (0, ())
    assert table.columns == Gates.schema


def test_gates_are_told_from_memory(guest: GatedGuest) -> None:
    site = Site(guest.kernel)
    count, _ = next(spare_words(guest.kernel))
    group = guest.new("cgroup", level=1, kn=guest.cgroup(guest.root_cgroup, "box"), self__serial_nr=5, self__flags=2)
    networks = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    code = site.code(0x54)
    hook = Hook(guest.profile.symbol("security_socket_sendmsg"), b"\x0f\x1f\x44\0\0")
    state = State(len(code.raw), site.fresh().code_id, site.fresh().mark, (hook,), {
        0: rule(counter=count, base=2, networks=networks), 1: rule(first=778),
        3: rule(scope=Scope.USER, number=1000, pid=0),
        4: rule(scope=Scope.CGROUP, number=1, first=group, second=5, pid=0),
        5: rule(operations=4, scope=Scope.MARKED, number=1, errno=1),
    })  # fmt: skip
    guest.place(state)
    guest.word(count, 43)
    guest.write(hook.at, layout.hook(hook.at, BASE + layout.CODE_AT))
    table = gates(guest.kernel)
    assert table.notes == ()
    assert [row[:8] for row in table] == [
        ("network", "process", 4242, "curl", "", -1, True, "10.0.0.0/8,fd00::/8"),
        ("network", "process", 4242, "curl", "", -1, False, ""),
        ("network", "uid", -1, "curl", "", 1000, True, ""),
        ("network", "cgroup", -1, "curl", "/box", -1, True, ""),
        ("open", "children", 4242, "curl", "", -1, True, ""),
    ]
    assert table.refused.tolist() == [41, -1, -1, -1, -1]
    assert table.errno.tolist() == ["EACCES"] * 4 + ["EPERM"]
    assert not any(table.fault)
    assert gates(guest.kernel, columns=("pid", "refused")).columns == ("pid", "refused", "fault")


def test_what_looks_at_the_text_can_name_it(guest: GatedGuest) -> None:
    assert gated(guest.kernel) is None
    hook = Hook(guest.profile.symbol("security_file_open"), b"\x0f\x1f\x44\0\0")
    guest.place(State(5, b"12345678", 0, (hook,), {0: rule()}))
    found = gated(guest.kernel)
    assert found is not None
    assert (found.start, found.end, found.hooks) == (BASE, BASE + AREA_SIZE - 1, {hook.at: hook.found})
    guest.write(BASE + 16, b"\xff\xff\xff\xff")
    assert gated(guest.kernel) is None
    del guest.profile.symbols["__entry_text_end"]
    assert gated(guest.kernel) is None


def test_lies_are_marked(guest: GatedGuest) -> None:
    state = State(5, b"12345678", 0, (Hook(guest.profile.symbol("security_file_open"), b"\x90" * 5),), {
        0: rule(counter=NOWHERE), 1: rule(operations=1 << 30), 2: rule(name="\x1b[31m", time=(1 << 64) - 1),
        3: rule(scope=Scope.CGROUP, first=NOWHERE, pid=0),
    })  # fmt: skip
    guest.place(state)
    table = gates(guest.kernel)
    assert table.fault.tolist() == ["count unreadable", "unknown operation", "", ""]
    assert table.alive.tolist() == [True, True, True, False]
    assert "security_file_open does not lead to the gates any more" in table.notes
    assert any("not what this version" in note for note in table.notes)


def test_something_else_in_the_room_is_left_alone(guest: GatedGuest) -> None:
    guest.write(BASE + 0x100, b"\x90")
    with pytest.raises(Conflict, match="something else"):
        Site(guest.kernel).read()
    assert "something else" in gates(guest.kernel).notes[0]
    guest.write(BASE, b"vmi-gate\3\0\0\0")
    assert "version 3" in gates(guest.kernel).notes[0]


def test_a_plan_leads_there_and_back(guest: GatedGuest) -> None:
    """Every byte that a plan changes is put back by the plan that takes the last rule out."""
    site = Site(guest.kernel)
    before = guest.space.read(IMAGE, 4 << 20)
    none, raw = site.read()
    assert none is None
    after = State(*_code(site), {0: rule()})
    plan = site.plan(none, raw, after)
    assert not plan.inside
    for change in (*plan.records, *plan.code):
        assert guest.space.read(change.address, len(change.old)) == change.old
        guest.write(change.address, change.new)
    stands, raw = site.read()
    assert stands is not None
    assert site.ours(stands)
    assert not site.broken(stands)
    assert len(stands.hooks) == len(OPERATIONS["network"].hooks)
    more = State(stands.code_size, stands.code_id, stands.mark, stands.hooks, {**stands.rules, 1: rule(operations=2)})
    added = site.plan(stands, raw, more)
    assert [change.what for change in added.code] == ["security_bprm_creds_for_exec"]
    back = site.plan(stands, raw, State(stands.code_size, stands.code_id, stands.mark, stands.hooks, {}))
    assert back.inside
    for change in (*back.code, *back.records):
        assert guest.space.read(change.address, len(change.old)) == change.old
        guest.write(change.address, change.new)
    assert guest.space.read(IMAGE, 4 << 20) == before


def _code(site: Site) -> tuple[int, bytes, int, tuple[Hook, ...]]:
    fresh = site.fresh()
    return fresh.code_size, fresh.code_id, fresh.mark, ()


@pytest.mark.parametrize("raw", ["e800100000", "e900100000", "cc1f440000", "4157415641"])
def test_functions_of_others_are_left_to_them(guest: GatedGuest, raw: str) -> None:
    guest.write(guest.profile.symbol("security_socket_listen"), bytes.fromhex(raw))
    site = Site(guest.kernel)
    with pytest.raises(Unsafe, match="security_socket_listen"):
        site.plan(None, b"\xcc" * AREA_SIZE, State(*_code(site), {0: rule()}))
    assert site.plan(None, b"\xcc" * AREA_SIZE, State(*_code(site), {0: rule(operations=2)})).code


def test_functions_that_the_kernel_lacks(guest: GatedGuest) -> None:
    site = Site(guest.kernel)
    del guest.profile.symbols["sock_sendpage"]
    assert site.plan(None, b"\xcc" * AREA_SIZE, State(*_code(site), {0: rule()})).code
    del guest.profile.symbols["security_socket_bind"]
    site = Site(guest.kernel)
    with pytest.raises(Unsupported, match="security_socket_bind"):
        site.plan(None, b"\xcc" * AREA_SIZE, State(*_code(site), {0: rule()}))


# -- whom -------------------------------------------------------------------------------------------------------------


def test_subjects(guest: GatedGuest) -> None:
    offsets = Site(guest.kernel).offsets
    found = find(guest.kernel, offsets, Subject(pid=4242))
    assert (found.scope, found.number, found.first, found.name) == (Scope.PROCESS, 4242, 777, "curl")
    for subject, error in (
        (Subject(pid=1), Unsafe), (Subject(pid=5), ControlError), (Subject(uid=0), Unsafe),
        (Subject(cgroup="/"), Unsafe), (Subject(cgroup="/a"), ControlError),
    ):  # fmt: skip
        with pytest.raises(error):
            find(guest.kernel, offsets, subject)
    assert find(guest.kernel, offsets, Subject(pid=1), force=True).first == 10


def test_descendants_of_a_family_in_a_circle() -> None:
    guest = GatedGuest()
    guest.task(1, "init", start_boottime=1)
    guest.task(10, "a", start_boottime=10, parent=1)
    guest.task(11, "b", start_boottime=11, parent=10)
    guest.task(12, "thread", start_boottime=12, parent=10, leader=11)
    guest.task(13, "c", start_boottime=13, parent=12)
    guest.task(20, "x", start_boottime=20, parent=1)
    guest.task(21, "y", start_boottime=21, parent=20)
    guest.word(guest.tasks[20].task + guest.offset("task_struct", "real_parent"), guest.tasks[21].task)  # each other's
    guest.word(guest.tasks[21].task + guest.offset("task_struct", "real_parent"), NOWHERE)
    guest.finish()
    rows = tasks(guest.kernel)
    nobody = rows.address == 0
    mine = descendants(rows, 10, 10, nobody)
    assert sorted(rows.number("tgid")[mine].tolist()) == [10, 11, 11, 13]
    assert not descendants(rows, 10, 9, nobody).any()  # another one of that pid
    marked = rows.address == guest.tasks[12].task
    assert sorted(rows.number("tgid")[descendants(rows, 10, 9, marked)].tolist()) == [11, 11, 13]


# -- who stands in it -------------------------------------------------------------------------------------------------


def test_who_stands_in_code(guest: GatedGuest) -> None:
    init, curl = guest.tasks[1].task, guest.tasks[4242].task
    stacks = {task: guest.alloc(16 << 10, f"stack{task}") for task in (init, curl)}
    for task, stack in stacks.items():
        guest.put("task_struct", task, stack=stack, thread__sp=stack + (16 << 10) - 64, pid=1 if task == init else 4242)
    spare = guest.alloc(4096, "interrupts")
    registers = [{"rip": IMAGE, "rsp": spare + 64}] * 2
    ranges = [(BASE, BASE + 99)]
    assert standing(guest.kernel, ranges, registers) == ""
    guest.word(stacks[curl] + (16 << 10) - 72, BASE + 5)  # below what is in use
    assert standing(guest.kernel, ranges, registers) == ""
    guest.word(stacks[curl] + (16 << 10) - 56, BASE + 99)
    assert "task 4242" in standing(guest.kernel, ranges, registers)
    assert standing(guest.kernel, ranges, registers, tasks=False) == ""
    guest.word(stacks[curl] + (16 << 10) - 56, BASE + 100)
    assert standing(guest.kernel, ranges, registers) == ""
    guest.word(stacks[init] + 64, BASE)  # a stack in use: all of it counts
    assert "task 1" in standing(guest.kernel, ranges, registers)
    area = {"gs_base": 0, "k_gs_base": guest.kernel.percpu_offset.tolist()[1]}
    mine = stacks[init] + 256
    for user, kernel, said in (
        ({"rip": 0x401000, "rsp": 0x7FFF0000}, {"rip": 0x401000, "rsp": 0x7FFF0000}, ""),  # left from an earlier call
        ({"rip": 0x401000, "rsp": 0x7FFF0000}, {"rip": IMAGE, "rsp": mine}, ""),  # below what is in use
        ({"rip": 0x401000, "rsp": 0x7FFF0000}, {"rip": IMAGE, "rsp": stacks[init] + 8}, "task 1"),
        ({"rip": 0x401000, "rsp": 0x7FFF0000}, {"rip": IMAGE, "rsp": spare}, "task 1"),  # on another stack
    ):
        assert said in standing(guest.kernel, ranges, [user, {**kernel, **area}])
        assert bool(standing(guest.kernel, ranges, [user, {**kernel, **area}])) == bool(said)
    guest.word(stacks[init] + 64, 0)
    guest.word(spare + 128, BASE)
    assert "an interrupt" in standing(guest.kernel, ranges, registers)
    registers = [{"rip": IMAGE, "rsp": 0}, {"rip": BASE, "rsp": 0}]
    assert "vCPU 1" in standing(guest.kernel, ranges, registers)
    guest.put("task_struct", curl, stack=NOWHERE, thread__sp=NOWHERE + 8)  # a liar is passed over
    assert standing(guest.kernel, ranges, [{"rip": IMAGE, "rsp": NOWHERE}]) == ""


# -- which tasks, which spaces ----------------------------------------------------------------------------------------


def test_which_tasks_a_rule_is_for() -> None:
    guest = GatedGuest()
    group = guest.new("cgroup", level=2, self__serial_nr=5)
    above = guest.new("cgroup", level=1, self__serial_nr=4)
    guest.word(group + 1792 + 8, above)
    sets = guest.new("css_set", dfl_cgrp=group)
    for tid, leader, born in ((10, 10, 100), (11, 10, 110), (20, 20, 200)):
        guest.task(tid, "t", start_boottime=born, leader=leader if leader != tid else 0)
        guest.put("task_struct", guest.tasks[tid].task, group_leader=guest.tasks[leader].task)
    guest.put("task_struct", guest.tasks[20].task, cgroups=sets)
    guest.finish()
    offsets = Site(guest.kernel).offsets

    def whom(rule: Rule, mark: int = 0x54) -> list[int]:
        rows = tasks(guest.kernel)
        mine = subjects(guest.kernel, offsets, mark, rule, rows)
        return sorted(rows.number("pid")[mine].tolist())

    assert whom(rule(number=10, first=100)) == [10, 11]
    assert whom(rule(number=10, first=101)) == []
    guest.write(guest.tasks[11].task + 0x54, b"\4\0\0\0")
    assert whom(rule(scope=Scope.MARKED, number=4)) == [11]
    assert whom(rule(scope=Scope.MARKED, number=2)) == []
    assert whom(rule(scope=Scope.CGROUP, number=1, first=above, second=4)) == [20]
    assert whom(rule(scope=Scope.CGROUP, number=1, first=above, second=3)) == []  # a later one at that address
    assert whom(rule(scope=Scope.CGROUP, number=3, first=above, second=4)) == []
    assert whom(rule(scope=Scope.CGROUP, number=-1, first=above, second=4)) == []
    guest.put("task_struct", guest.tasks[20].task, cgroups=NOWHERE)
    assert whom(rule(scope=Scope.CGROUP, number=1, first=above, second=4)) == []


def test_spaces_end_with_their_processes(guest: GatedGuest) -> None:
    spaces = Spaces(guest.kernel)
    for space, there in (
        ("kernel", True), ("physical", True), ("task 4242 777", True), ("task 4242 778", False),
        ("task 4243 777", False), (thread_space(4242, 777), True), (thread_space(4242, 1), False), ("odd", False),
        ("thread 4242", False), ("task x 777", False), ("process 4242 1", False),
    ):  # fmt: skip
        assert spaces.there(space) == there, space
    with pytest.raises(Conflict, match="the process 4242 that is meant has ended"):
        spaces.tables("task 4242 778")
    at = guest.tasks[4242].task
    assert pieces(guest.kernel, "thread 4242 777", at, 4) == pieces(guest.kernel, "kernel", at, 4)
    with pytest.raises(Conflict):
        pieces(guest.kernel, "thread 4242 1", at, 4)


# -- tracing ----------------------------------------------------------------------------------------------------------


def test_tracing_records(guest: GatedGuest) -> None:
    assert Records(guest.kernel).flags(IMAGE) == 0  # no such list
    head = guest.global_("ftrace_pages_start", 8)
    assert Records(guest.kernel).flags(IMAGE) == 0
    groups = []
    for start in (IMAGE + 0x1000, IMAGE):
        records = guest.alloc(16 * 4, "records")
        for at in range(4):
            guest.word(records + 16 * at, start + 16 * at)
        groups.append(guest.new("ftrace_page", records=records, index=4))
    guest.put("ftrace_page", groups[0], next=groups[1])
    guest.word(head, groups[0])
    records = guest.space.read_u64(groups[1] + 8)
    assert Records(guest.kernel).flags(IMAGE + 32) == records + 32 + 8
    assert Records(guest.kernel).flags(IMAGE + 33) == 0
    guest.put("ftrace_page", groups[1], next=groups[0], index=-1)  # in a circle, with a count of less than nothing
    assert Records(guest.kernel).flags(IMAGE + 0x1000) != 0
    guest.put("ftrace_page", groups[1], next=NOWHERE, index=(1 << 31) - 1, records=NOWHERE)
    assert Records(guest.kernel).flags(IMAGE + 0x1000) != 0
