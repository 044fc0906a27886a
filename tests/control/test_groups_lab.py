"""Control groups, held against the cgroup file systems of the guest."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.lab.guest import LabGuest
from vmi_inside.linux.processes.control_groups import ControlGroups

#: Groups of all kinds: with controllers, frozen, removed but charged with memory, and in a hierarchy of v1.
GROUPS = r"""
cd /sys/fs/cgroup && echo '+memory +pids' >cgroup.subtree_control
mkdir -p vmi.slice && echo +pids >vmi.slice/cgroup.subtree_control; mkdir -p vmi.slice/in vmi.charged /tmp/vmi.v1
sh -c 'echo $$ >vmi.slice/in/cgroup.procs; exec sleep 3600' >/dev/null 2>&1 & echo $! >/tmp/vmi.pids
until grep -q . vmi.slice/in/cgroup.procs; do sleep 0.1; done; echo 1 >vmi.slice/cgroup.freeze
sh -c 'echo $$ >vmi.charged/cgroup.procs; exec dd if=/dev/zero of=/tmp/vmi.charge bs=1M count=4 2>/dev/null'
rmdir vmi.charged
mount -t cgroup -o none,name=vmi vmi /tmp/vmi.v1 && mkdir -p /tmp/vmi.v1/one/two
sh -c 'echo $$ >/tmp/vmi.v1/one/two/cgroup.procs; exec sleep 3600' >/dev/null 2>&1 & echo $! >>/tmp/vmi.pids
until grep -q . /tmp/vmi.v1/one/two/cgroup.procs; do sleep 0.1; done
until grep -q 'frozen 1' vmi.slice/cgroup.events; do sleep 0.1; done
"""
GONE = r"""
cd /sys/fs/cgroup; echo 0 >vmi.slice/cgroup.freeze; kill $(cat /tmp/vmi.pids); sleep 0.5
rmdir vmi.slice/in vmi.slice /tmp/vmi.v1/one/two /tmp/vmi.v1/one; umount /tmp/vmi.v1; rmdir /tmp/vmi.v1
rm -f /tmp/vmi.pids /tmp/vmi.charge; echo '-memory -pids' >cgroup.subtree_control; true
"""
SHOW = r"""
find . -type d | while read -r d; do
    c=$(cat "$d/cgroup.controllers" 2>/dev/null); s=$(head -n1 "$d/cgroup.stat" 2>/dev/null)
    z=$(grep frozen "$d/cgroup.events" 2>/dev/null)
    echo "$d|$(stat -c %i "$d")|$(wc -l <"$d/cgroup.procs")|$c|${s#* }|${z#* }"
done
"""


@pytest.fixture(params=["6.1-cloud", "new-cloud", "6.12-cloud", "5.10-cloud"])
def guest(lab_boot: Callable[..., LabGuest], request: pytest.FixtureRequest) -> Iterator[LabGuest]:
    guest = lab_boot() if request.param == "6.1-cloud" else lab_boot(kernel=request.param)
    guest.ask(GROUPS)
    yield guest
    guest.ask(GONE)


def told(guest: LabGuest, where: str) -> dict[str, list[str]]:
    """By path: inode number, processes, controllers, descendants, frozen."""
    lines = guest.ask(f"cd {where}; {SHOW}").splitlines()
    return {words[0][1:] or "/": words[1:] for words in (line.split("|") for line in lines)}


def seen(table: ControlGroups, hierarchy: str) -> dict[str, tuple]:
    return {row.path: row for row in table if row.hierarchy == hierarchy and not row.dying}


def test_every_group(guest: LabGuest) -> None:
    with guest.attach() as attached:
        table = attached.cgroups()
        processes = attached.processes(["cgroup_path"])
    assert table.notes == ()
    assert set(table.fault) == {""}
    unified, named = told(guest, "/sys/fs/cgroup"), told(guest, "/tmp/vmi.v1")
    mine = seen(table, "unified")
    assert set(mine) == set(unified) >= {"/vmi.slice/in", "/lab.slice/in ner.scope"}
    for path, (inode, count, controllers, descendants, frozen) in unified.items():
        row = mine[path]
        assert (row.id, row.controllers, row.descendants) == (int(inode), controllers, int(descendants))
        assert row.frozen == {"1": "yes", "0": "no", "": "no"}[frozen]
        if path != "/":  # in which the shells are that are asked
            assert row.processes == int(count) == processes.cgroup_path.tolist().count(path)
    assert mine["/vmi.slice/in"].controllers == "pids"
    assert (mine["/vmi.slice"].frozen, mine["/vmi.slice/in"].frozen) == ("yes", "yes")
    assert mine["/"].threads > mine["/"].processes > 100
    old = seen(table, "name=vmi")
    assert {path: (row.id, row.frozen) for path, row in old.items()} == {
        path: (int(words[0]), "") for path, words in named.items()
    }
    assert old["/one/two"].processes == 1


def test_groups_that_are_removed_but_charged(guest: LabGuest) -> None:
    with guest.attach() as attached:
        table = attached.cgroups(["path", "dying"])
    dying = guest.ask("grep nr_dying_descendants /sys/fs/cgroup/cgroup.stat").split()[1]
    assert table.dying.sum() == int(dying)
    # Newer kernels (7.2) charge the group above in its place, and are rid of it.
    assert ("/vmi.charged" in table.path[table.dying].tolist()) == (guest.shape.kernel != "new-cloud")
