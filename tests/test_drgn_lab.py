"""drgn's helpers on a live guest, with its own types and symbols, held against what the guest says."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.guest import LabGuest
from vmi_inside.bridges.drgn import program

drgn = pytest.importorskip("drgn")
linux = pytest.importorskip("drgn.helpers.linux")
Boot = Callable[..., LabGuest]
Pair = tuple[LabGuest, Any]


@pytest.fixture(params=["6.1-cloud", "6.12-cloud", "new-cloud"])
def pair(request: pytest.FixtureRequest, lab_boot: Boot) -> Iterator[Pair]:
    """A guest, and drgn's program of it."""
    guest = lab_boot(kernel=request.param)
    with guest.attach() as seen:
        yield guest, program(seen)


def test_tasks(pair: Pair) -> None:
    guest, prog = pair

    def told() -> set[int]:
        return {int(word) for word in guest.ask("cd /proc; echo [0-9]*").split()}

    before = told()
    found = {task.pid.value_(): task for task in linux.for_each_task(prog)}
    assert before & told() <= set(found)
    assert prog["init_task"].comm.string_() == b"swapper/0"
    first = linux.find_task(prog, 1)
    assert first.comm.string_().decode() == guest.ask("cat /proc/1/comm").strip()
    assert b"\0".join(linux.cmdline(first)).decode() == guest.ask("cat /proc/1/cmdline").rstrip("\0")
    assert len(list(linux.for_each_vma(first.mm))) >= len(guest.ask("cat /proc/1/maps").splitlines()) - 1


def test_modules_devices_mounts_and_slabs(pair: Pair) -> None:
    guest, prog = pair
    modules = {module.name.string_().decode() for module in linux.for_each_module(prog)}
    assert modules == {line.split()[0] for line in guest.ask("cat /proc/modules").splitlines()}
    devices = {device.name.string_().decode() for device in linux.for_each_netdev(prog["init_net"])}
    assert devices == set(guest.ask("ls /sys/class/net").split())
    mounts = {linux.mount_dst(mount).decode() for mount in linux.for_each_mount(prog)}
    assert {line.split()[1] for line in guest.ask("cat /proc/mounts").splitlines()} <= mounts
    told = {line.split()[0] for line in guest.ask("cat /proc/slabinfo").splitlines()[2:]}
    assert told <= {cache.name.string_().decode() for cache in linux.for_each_slab_cache(prog)}


def test_symbols_types_and_constants(pair: Pair) -> None:
    guest, prog = pair
    address = int(guest.ask("awk '$3 == \"schedule\" {print $1}' /proc/kallsyms").split()[0], 16)
    assert prog.symbol("schedule").address == address
    assert prog.symbol(address + 1).name == "schedule"
    assert prog["schedule"].address_ == address
    assert prog["PIDTYPE_TGID"].value_() == 1
    assert str(prog["PIDTYPE_TGID"].type_.type_name()) == "enum pid_type"
    task = prog.type("struct task_struct")
    bits = {member.name: member.bit_field_size for member in task.members}
    assert bits["in_execve"] == 1
    assert prog.type("unsigned long").size == 8
    with guest.attach() as seen:
        profile = seen.kernel.profile
        assert task.size == profile.struct("task_struct").size
        for member in task.members:
            if member.name and not member.bit_field_size:
                assert member.offset == profile.struct("task_struct").member(member.name).offset
    with pytest.raises(LookupError):
        prog["no_such_variable"]


def test_stacks_are_whole(pair: Pair) -> None:
    guest, prog = pair
    with guest.attach() as seen:
        ours = [row.symbol.partition("+")[0] for row in seen.process_stack(pids=[1])]
    theirs = [frame.name for frame in prog.stack_trace(linux.find_task(prog, 1))]
    assert ours[-1].startswith("entry_SYSCALL_64")
    while theirs and theirs[0] in ("__schedule", "schedule"):  # the kernel's own listing begins below the scheduler
        del theirs[0]
    assert theirs[: len(ours)] == ours
    assert len(theirs) <= len(ours) + 1  # and where the process called the kernel


def test_types_and_symbols_of_modules(pair: Pair) -> None:
    guest, prog = pair
    told = guest.ask("grep -E ' [tT] nf_tables_newtable.\\[nf_tables' /proc/kallsyms").split()
    found = prog.symbol("nf_tables_newtable")
    assert found.address == int(told[0], 16)
    assert prog.symbol(found.address + 3).name == "nf_tables_newtable"
    assert prog.type("struct nft_table").has_member("chains")
    with pytest.raises(LookupError):
        prog.type("struct of_no_module")


def test_two_readings_see_two_states(pair: Pair) -> None:
    guest, prog = pair
    born = int(guest.ask("sleep 1000 >/dev/null 2>&1 & echo $!"))
    assert linux.find_task(prog, born).comm.string_() in (b"sleep", b"sh")
    guest.ask(f"kill -9 {born}; while [ -d /proc/{born} ]; do sleep 0.1; done")
    assert not linux.find_task(prog, born)


def command(guest: LabGuest, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vmi_inside.cli", "drgn", *arguments],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "LIBVIRT_DEFAULT_URI": guest.uri or "", **environment},
    )  # fmt: skip


def test_the_command(lab_guest: LabGuest, tmp_path: Path) -> None:
    done = command(lab_guest, "-e", "print(find_task(1).comm.string_().decode())", lab_guest.target)
    assert (done.returncode, done.stdout) == (0, lab_guest.ask("cat /proc/1/comm")), done.stderr
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint(sys.argv[1], prog['init_uts_ns'].name.release.string_().decode())\n")
    done = command(lab_guest, lab_guest.target, str(script), "--word")
    assert done.stdout.split() == ["--word", lab_guest.ask("uname -r").strip()], done.stderr
    script.write_text("prog['no_such_thing']\n")
    done = command(lab_guest, lab_guest.target, str(script))
    assert done.returncode == 18
    assert "no_such_thing" in done.stderr
    assert f"{script}:1" in done.stderr
    assert "Traceback" not in done.stderr
    assert command(lab_guest, lab_guest.target, str(tmp_path / "none.py")).returncode == 2


def test_the_shell(lab_guest: LabGuest) -> None:
    """drgn's own, at a terminal: it answers, goes on after an error, and ends."""
    ours, its = pty.openpty()
    environment = {**os.environ, "LIBVIRT_DEFAULT_URI": lab_guest.uri or "", "TERM": "dumb"}
    words = [sys.executable, "-m", "vmi_inside.cli", "drgn", lab_guest.target]
    with subprocess.Popen(words, stdin=its, stdout=its, stderr=its, env=environment) as shell:
        os.close(its)
        said = _until(ours, "", ">>> import drgn", ">>> from drgn.helpers.linux", ">>> ")
        for typed, awaited in (
            ("find_task(1).pid.value_() + 41", "\n42"), ("prog['nothing']", "ObjectNotFoundError"),
            ("print('still', 'here')", "\nstill here"),
        ):  # fmt: skip
            os.write(ours, f"{typed}\n".encode())
            said = _until(ours, said, awaited, ">>> ")
        os.write(ours, b"\x04")
        assert shell.wait(60) == 0
    os.close(ours)
    assert "bug" not in said


def _until(terminal: int, said: str, *awaited: str) -> str:
    """`said` and what the terminal says beyond it, until these words have come, one behind the other."""
    at = len(said)
    for words in awaited:
        while (found := said.find(words, at)) < 0:
            assert select.select([terminal], [], [], 90)[0], said
            said += os.read(terminal, 4096).decode()
        at = found + len(words)
    return said


def test_without_drgn_the_extra_is_named(lab_guest: LabGuest, tmp_path: Path) -> None:
    (tmp_path / "drgn.py").write_text("raise ImportError('hidden')\n")
    done = command(lab_guest, "-e", "1", lab_guest.target, PYTHONPATH=str(tmp_path))
    assert done.returncode == 9
    assert "vmi-inside[drgn]" in done.stderr
