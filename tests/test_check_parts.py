"""The parts that checks stand on: views compared, trees, mappings, jumps, modules in memory, and how checks are run."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from click.testing import CliRunner

from tests.synthetic.guest import DIRECT, IMAGE, IMAGE_SIZE, NOWHERE, SyntheticGuest
from tests.synthetic.linux import LinuxGuest
from tests.synthetic.lists import TasksGuest
from tests.synthetic.ram import GIB, PRESENT, WRITE
from vmi_inside.cli.app import cli
from vmi_inside.errors import Unsupported
from vmi_inside.linux.integrity import DETECTORS, SEVERITIES, check
from vmi_inside.linux.integrity.findings import Finding, table
from vmi_inside.linux.integrity.jumps import LENGTH, jumps
from vmi_inside.linux.integrity.mappings import kernel_mappings
from vmi_inside.linux.integrity.trees import tree_nodes
from vmi_inside.linux.integrity.views import View, missing, union

NO_EXECUTE = 1 << 63


def addresses(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


# -- findings and how they are made ---------------------------------------------------------------------------------


def test_the_gravest_come_first_and_the_rest_can_be_left_out() -> None:
    rows = [("a", Finding(severity, severity)) for severity in SEVERITIES]
    found = table(rows, ["a note"])
    assert found.severity.tolist() == ["critical", "high", "medium", "low", "info"]
    assert found.check.tolist() == ["a"] * 5
    assert found.column("check").tolist() == ["a"] * 5
    assert found.alarms.severity.tolist() == ["critical", "high", "medium"]
    assert found.at_least("critical").notes == ("a note",)
    assert found.to_dicts()[0]["check"] == "a"
    assert len(table([]).alarms) == 0


def test_checks_are_chosen_by_name() -> None:
    guest = TasksGuest()
    guest.task(1, "init")
    guest.link()
    with pytest.raises(Unsupported, match="no check 'nonsense'; there are processes, modules"):
        check(guest.kernel, ["nonsense"])
    with pytest.raises(Unsupported, match="no check 'nonsense'"):
        check(guest.kernel, skip=["nonsense"])
    with pytest.raises(Unsupported, match="no severity 'grave'"):
        check(guest.kernel, severity="grave")
    assert len(check(guest.kernel, skip=list(DETECTORS))) == 0


def test_what_cannot_run_says_why_and_the_others_go_on() -> None:
    """A kernel of which nearly nothing is known."""
    guest = LinuxGuest()
    guest.task(1, "init")
    guest.finish()
    found = check(guest.kernel, live=False)
    assert len(found.alarms) == 0
    unable = {row.check: row.detail for row in found if row.fault == "not checked"}
    assert {"interrupts", "functions"} <= set(unable)
    assert unable["interrupts"] == "this check could not run: the kernel has no symbol 'idt_table'"
    assert set(unable) < set(DETECTORS)


def test_the_command_lists_them() -> None:
    listed = CliRunner().invoke(cli, ["check", "--list"])
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(DETECTORS)
    wrong = CliRunner().invoke(cli, ["check", "web01", "--only", "processes,nonsense"])
    assert wrong.exit_code == 2
    assert "there is no check 'nonsense'" in wrong.stderr
    assert "11  the check found something" in CliRunner().invoke(cli, ["--help"]).stdout


# -- views ----------------------------------------------------------------------------------------------------------


def test_views_are_compared_where_they_should_agree() -> None:
    whole, lacking, witness = (View(name, addresses(*seen)) for name, seen in
                               {"whole": (8, 16, 24), "lacking": (8, 24, 0), "witness": (32,)}.items())  # fmt: skip
    every = union((whole, lacking, witness))
    assert every.tolist() == [8, 16, 24, 32]
    should = np.array([True, True, False, True])
    none = np.zeros(4, dtype=np.bool_)
    rows = list(missing(every, ((whole, should), (lacking, should), (witness, none))))
    assert [(row.row, row.lack, row.have) for row in rows] == [
        (1, ("lacking",), ("whole",)), (3, ("whole", "lacking"), ("witness",)),
    ]  # fmt: skip
    assert list(missing(union(()), ())) == []


# -- trees ----------------------------------------------------------------------------------------------------------


def tree(guest: SyntheticGuest, depth: int) -> int:
    at = guest.new("rb_node")
    if depth:
        guest.put("rb_node", at, rb_left=tree(guest, depth - 1), rb_right=tree(guest, depth - 1))
    return at


def test_trees_are_walked_side_by_side() -> None:
    guest = TasksGuest()
    roots = addresses(tree(guest, 6), 0, tree(guest, 3))
    guest.memory.reset()
    found = tree_nodes(guest.kernel, roots, "tree")
    assert found.faults == ()
    assert np.bincount(found.owner).tolist() == [127, 0, 15]
    assert guest.memory.gathers < 40


def test_trees_that_lie_end() -> None:
    guest = TasksGuest()
    root = tree(guest, 2)
    guest.put("rb_node", root, rb_left=root, rb_right=NOWHERE)
    found = tree_nodes(guest.kernel, addresses(root), "tree")
    assert found.address.tolist() == [root]
    assert set(found.faults) == {"tree: a node stands twice in the tree", "tree: a node could not be read"}
    # A chain of nodes is no balanced tree.
    nodes = [guest.new("rb_node") for _ in range(200)]
    for here, after in pairwise(nodes):
        guest.put("rb_node", here, rb_left=after)
    found = tree_nodes(guest.kernel, addresses(nodes[0]), "tree")
    assert found.faults == ("tree: deeper than a tree can be",)
    assert len(found.address) == 128


# -- mappings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [4, 5])
def test_rights_of_pages_by_all_levels(levels: int) -> None:
    guest = SyntheticGuest(levels)
    space, frame = guest.space, guest.ram.frames()
    pages = {
        0xFFFF_C900_0000_0000: PRESENT | WRITE,
        0xFFFF_C900_0000_1000: PRESENT | WRITE,
        0xFFFF_C900_0000_2000: PRESENT | WRITE | NO_EXECUTE,
        0xFFFF_C900_0000_3000: PRESENT,
        0xFFFF_C900_0000_5000: PRESENT | NO_EXECUTE,
        0xFFFF_C900_0000_6000: WRITE,
        0x0000_7F00_0000_0000: PRESENT | WRITE,  # a process's
    }
    for page, bits in pages.items():
        guest.tables.put(page, 1, frame | bits)
    found = kernel_mappings(space)
    assert found.whole
    here = found.where((found.start >= np.uint64(0xFFFF_C900_0000_0000)) & (found.start < np.uint64(IMAGE)))
    assert [
        (start & 0xFFFFF, last & 0xFFFFF, write, execute)
        for start, last, write, execute in zip(
            here.start.tolist(), here.last.tolist(), here.writable.tolist(), here.executable.tolist(), strict=True
        )
    ] == [
        (0x0000, 0x1FFF, True, True), (0x2000, 0x2FFF, True, False), (0x3000, 0x3FFF, False, True),
        (0x5000, 0x5FFF, False, False),
    ]  # fmt: skip
    assert not (found.start < np.uint64(1 << 63)).any()
    inside = found.hold(
        addresses(IMAGE, IMAGE + IMAGE_SIZE - 1, IMAGE + IMAGE_SIZE, DIRECT, DIRECT + 4 * GIB, NOWHERE, 0)
    )
    assert inside.tolist() == [True, True, False, True, True, False, False]


def test_tables_that_hold_themselves_end() -> None:
    guest = SyntheticGuest()
    guest.tables.put(0xFFFF_C900_0000_0000, 4, guest.tables.root | PRESENT | WRITE)
    guest.tables.put(0xFFFF_CA00_0000_0000, 4, (1 << 51) | PRESENT)  # no RAM there
    found = kernel_mappings(guest.space)
    assert not found.whole
    assert found.hold(addresses(IMAGE)).tolist() == [True]
    assert len(found.start) < 2000


def test_tables_that_map_nothing() -> None:
    guest = SyntheticGuest()
    guest.ram.write(guest.tables.root, bytes(4096))
    found = kernel_mappings(guest.space)
    assert (len(found.start), found.whole) == (0, True)


# -- jumps ----------------------------------------------------------------------------------------------------------

START = 0xFFFF_FFFF_8100_0000
AWAY = 0xFFFF_FFFF_C012_3456


def relative(at: int, size: int = 5, target: int = AWAY) -> bytes:
    return (target - at - size).to_bytes(4, "little", signed=True)


@pytest.mark.parametrize("before", ["", "f30f1efa", "660f1f00", "0f1f40d6", "0f1f440000", "f30f1efa0f1f440000"])
@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("jump", lambda at: b"\xe9" + relative(at)),
        ("call", lambda at: b"\xe8" + relative(at)),
        ("push and return", lambda at: b"\x68" + (AWAY & 0xFFFF_FFFF).to_bytes(4, "little") + b"\xc3"),
        ("push and return", lambda at: b"\x68" + (AWAY & 0xFFFF_FFFF).to_bytes(4, "little") + b"\xc7\x44\x24\x04"
         + (AWAY >> 32).to_bytes(4, "little") + b"\xc3"),
        ("jump through a register", lambda at: b"\x48\xb8" + AWAY.to_bytes(8, "little") + b"\xff\xe0"),
        ("jump through a register", lambda at: b"\x49\xbb" + AWAY.to_bytes(8, "little") + b"\x41\xff\xe3"),
        ("jump through a register", lambda at: b"\x48\xb8" + AWAY.to_bytes(8, "little") + b"\x50\xc3"),
        ("jump through memory", lambda at: b"\xff\x25" + relative(at, 6)),
    ],
)  # fmt: skip
def test_every_way_out_of_a_function(before: str, kind: str, make: object) -> None:
    lead = bytes.fromhex(before)
    at = 64 + len(lead)
    code = bytes(64) + lead + make(START + at) + bytes(LENGTH)  # type: ignore[operator]
    found = jumps(START, np.frombuffer(code, np.uint8), np.array([0, 64]))
    seen = zip(found.row.tolist(), found.kind.tolist(), found.target.tolist(), strict=True)
    assert [(row, what, hex(target)) for row, what, target in seen] == [(1, kind, hex(AWAY))]


def test_breakpoints_and_honest_code() -> None:
    honest = ["55", "4889e5"]
    code = b"".join(bytes.fromhex(one).ljust(64, b"\x90") for one in honest) + b"\xcc" * 64 + b"\xeb\xfe" + bytes(62)
    found = jumps(START, np.frombuffer(code + bytes(LENGTH), np.uint8), np.array([0, 64, 128, 192]))
    assert found.row.tolist() == [2, 3] or found.row.tolist() == [3, 2]
    kinds = dict(zip(found.row.tolist(), zip(found.kind.tolist(), found.target.tolist(), strict=True), strict=True))
    assert kinds == {2: ("breakpoint", 0), 3: ("short jump", START + 192)}
    assert len(jumps(START, np.zeros(LENGTH, np.uint8), np.array([], dtype=np.int64)).row) == 0
