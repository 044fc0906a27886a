"""Hidden modules in made-up guests, and lists of modules that run in circles or nowhere."""

from __future__ import annotations

import pytest

from tests.synthetic.guest import HOLE, NOWHERE
from tests.synthetic.module_lists import ModulesGuest
from tests.synthetic.ram import PRESENT
from vmi_inside.linux.integrity import Findings, check


def populate() -> ModulesGuest:
    guest = ModulesGuest()
    guest.task(1, "init")
    for name in ("ext4", "nf_tables", "evil"):
        guest.module(name)
    return guest.link()


def found(guest: ModulesGuest) -> Findings:
    return check(guest.kernel, ["modules"], live=False)


def test_an_honest_guest() -> None:
    assert found(populate()).to_dicts() == []


def test_modules_that_come_or_go_are_no_lie() -> None:
    guest = populate()
    guest.put("module", guest.loaded["evil"], state=2)
    guest.unlink(guest.inside(guest.loaded["evil"], "list"))
    assert found(guest).to_dicts() == []


@pytest.mark.parametrize(("link", "view"), [("list", "modules"), ("mkobj.kobj.entry", "/sys/module")])
def test_each_list_alone_may_lie(link: str, view: str) -> None:
    guest = populate()
    guest.unlink(guest.inside(guest.loaded["evil"], link))
    (row,) = found(guest)
    assert (row.subject, row.severity, row.seen) == ("evil", "critical", f"not in {view}")
    assert row.address == guest.loaded["evil"]


def test_what_only_memory_shows() -> None:
    guest = populate()
    module = guest.loaded["evil"]
    for link in ("list", "mkobj.kobj.entry"):
        guest.unlink(guest.inside(module, link))
    guest.unlink(guest.space.read_u64(guest.btf_list + 8))
    root = guest.inside(guest.loaded["ext4"], "core_layout.mtn.node.node[0]")
    guest.put("rb_node", root, rb_right=0)
    (row,) = found(guest)
    assert (row.subject, row.detail) == ("evil", "seen in memory")
    assert row.seen == "not in modules, /sys/module, address tree"


def test_code_that_nobody_owns() -> None:
    guest = populate()
    at = guest.area(4)
    loader = guest.global_("load_module", 4096)
    guest.area(2, caller=loader)
    guest.link()
    rows = {row.address: row for row in found(guest)}
    assert {row.subject for row in rows.values()} == {"code that nobody owns"}
    assert rows[at].seen == "0x4000 bytes"
    assert len(rows) == 2


@pytest.mark.parametrize("view", ["modules", "/sys/module", "address tree", "btf_modules", "vmalloc areas"])
@pytest.mark.parametrize("wild", ["itself", NOWHERE, HOLE, 8, (1 << 64) - 8])
def test_lists_that_lie_end_and_are_told(view: str, wild: str | int) -> None:
    guest = populate()
    module = guest.loaded["nf_tables"]
    node = {
        "modules": guest.inside(module, "list"),
        "/sys/module": guest.inside(module, "mkobj.kobj.entry"),
        "address tree": guest.inside(guest.loaded["ext4"], "core_layout.mtn.node.node[0]") + 8,
        "btf_modules": guest.space.read_u64(guest.btf_list),
        "vmalloc areas": guest.areas[1] + guest.offset("vmap_area", "rb_node") + 8,
    }[view]
    itself = node - 8 if view in ("address tree", "vmalloc areas") else node
    guest.word(node, itself if isinstance(wild, str) else wild)
    rows = found(guest)
    assert any(row.subject == view and row.severity == "medium" for row in rows), rows.to_dicts()
    assert len(rows) < 30


def test_modules_that_lie_of_themselves() -> None:
    guest = populate()
    guest.put("module", guest.loaded["evil"], name=b"\xff" * 56, core_layout__size=(1 << 32) - 1)
    guest.put("module", guest.loaded["ext4"], core_layout__base=NOWHERE, core_layout__text_size=(1 << 32) - 1)
    rows = found(guest)
    assert {row.subject for row in rows} <= {"ext4", "code that nobody owns", "\\xff" * 56}
    assert any("not in memory" in row.seen for row in rows if row.subject == "\\xff" * 56)


def test_words_of_data_that_lead_into_code() -> None:
    """What is nobody's code, a module's code in constants, and numbers that only look like addresses."""
    guest = populate()
    nobody, module = guest.area(1), guest.loaded["ext4"] - 4096 - 64
    mask = (1 << 64) - (1 << 30)
    guest.tables.put(mask, 1, guest.ram.frames() | PRESENT)
    stretches = {}
    for start, end in (("__start_rodata", "__end_rodata"), ("_sdata", "_edata"), ("__bss_start", "__bss_stop")):
        stretches[start] = guest.global_(start, 4096)
        guest.global_("some_fops" if start == "__start_rodata" else f"some_{start}", 64)
        guest.profile.symbols[end] = guest.global_(f"after_{end}", 64)
    fops = guest.profile.symbols["some_fops"]
    guest.word(fops, nobody + 16)
    guest.word(fops + 8, module + 16)
    guest.word(fops + 16, mask)
    guest.word(fops + 24, NOWHERE)
    guest.word(stretches["_sdata"], module + 16)
    guest.word(stretches["_sdata"] + 8, mask)
    guest.word(stretches["__bss_start"] + 80, nobody + 32)
    guest.link()
    rows = check(guest.kernel, ["pointers"], live=False)
    assert [(row.subject, row.severity, row.address) for row in rows] == [
        ("some_fops", "critical", fops),
        ("__bss_start+0x50", "critical", stretches["__bss_start"] + 80),
        ("some_fops+0x8", "high", fops + 8),
    ]
    assert rows[2].seen == f"{module + 16:#x}, ext4's"
