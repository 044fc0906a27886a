"""The checks on real kernels: honest guests are found to be honest, whatever they do; and the command.

Lies are planted by `test_check_lies_lab` and `test_check_lies_kernel_lab`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vmi_inside
from tests.lab.guest import LabGuest
from tests.lab.kernels import kernel
from tests.lies import vmlinuz
from tests.tamper import lying
from vmi_inside.errors import NoSuchDomain, Unsupported
from vmi_inside.linux.integrity import DETECTORS
from vmi_inside.linux.tasks import pids

pytest_plugins = ("tests.liars",)

COMMAND = [sys.executable, "-W", "error", "-m", "vmi_inside.cli", "check"]
TRACING = "/sys/kernel/tracing"


@pytest.mark.parametrize("name", ["6.1-cloud", "new-cloud", "6.12-cloud", "5.10-cloud"])
def test_an_honest_guest_is_found_to_be_so(lab_boot: Callable[..., LabGuest], name: str) -> None:
    with (lab_boot() if name == "6.1-cloud" else lab_boot(kernel=name)).attach() as seen:
        found = seen.check()
        assert found.alarms.to_dicts() == []
        assert [row.subject for row in found if row.fault] == []
        # What is harmless is told all the same.
        assert {"memfd-exe", "deleted-exe"} <= {row.subject.partition("(")[2].strip(")") for row in found}
        assert {row.check for row in found} <= set(DETECTORS)
        (row,) = seen.check(only=["image"])
        assert (row.severity, "no image" in row.detail) == ("info", True)
        assert seen.check(only=["image"], image=str(kernel(name).vmlinuz)).to_dicts() == []


def test_every_view_shows_every_task(lab_boot: Callable[..., LabGuest]) -> None:
    """What the check compares is there: views that are empty would agree, too."""
    from vmi_inside.linux.integrity import module_views, task_views

    guest = lab_boot()
    with guest.attach() as seen, seen.kernel.operation():
        _, _, tasks = pids(seen.kernel).tasks(seen.kernel, 0)
        views = [
            task_views.threads(tasks.fetch("signal")),
            task_views.control_groups(seen.kernel, tasks.address),
            task_views.slab(seen.kernel),
        ]
        told = len(guest.ask("ls -d /proc/[0-9]*/task/*").split())
        for view in views:
            assert len(np.intersect1d(view.seen, tasks.address)) > told - 20, view.name
        listed = task_views.task_list(seen.kernel, tasks.address)
        assert len(listed.seen) > len(guest.ask("ls -d /proc/[0-9]*").split()) - 20
        assert len(task_views.run_queues(seen.kernel).seen) >= 1
        modules = set(guest.ask("cut -d' ' -f1 /proc/modules").split())
        areas = module_views.areas(seen.kernel)
        for view in (
            module_views.kobjects(seen.kernel),
            module_views.address_tree(seen.kernel),
            module_views.btf(seen.kernel),
            module_views.in_memory(seen.kernel, areas),
        ):
            rows = seen.kernel.structs("module", np.unique(view.seen))
            assert set(rows.text("name")) == modules, view.name


def test_all_checks_take_a_moment(lab_boot: Callable[..., LabGuest]) -> None:
    with lab_boot().attach() as seen:
        seen.check()
        took = []
        for _ in range(3):
            start = time.perf_counter()
            seen.check()
            took.append(time.perf_counter() - start)
    assert min(took) < 1.5


def test_images_of_others(lab_boot: Callable[..., LabGuest], tmp_path: Path) -> None:
    with lab_boot().attach() as seen:
        with pytest.raises(Unsupported, match="is not the image of the kernel that runs: Linux version 6"):
            seen.check(image=str(kernel("new-cloud").vmlinuz))
        with pytest.raises(NoSuchDomain, match="there is no such file"):
            seen.check(image=str(tmp_path / "nothing"))
        (tmp_path / "text").write_text("no kernel")
        with pytest.raises(Unsupported, match="neither vmlinuz nor vmlinux"):
            seen.check(image=str(tmp_path / "text"))


def test_a_guest_that_traces_itself_tells_no_lie(liar: LabGuest, seen: vmi_inside.Guest) -> None:
    """Functions traced, a probe set, and one within a function: told as information, also where code is compared."""
    liar.ask(f"mkdir -p {TRACING}; mount -t tracefs t {TRACING} 2>/dev/null; true")
    begin = f"""cd {TRACING} && echo 'vfs_*' >set_ftrace_filter && echo function >current_tracer &&
        echo 'p:one do_sys_openat2' >kprobe_events && echo 'r:two vfs_read' >>kprobe_events &&
        for at in 30 31 32 33 34 35 36 37 38 39 40; do
            echo "p:three vfs_write+$at" >>kprobe_events 2>/dev/null && break # where an instruction begins
        done && echo 1 >events/kprobes/enable"""
    end = f"""cd {TRACING} && echo 0 >events/kprobes/enable; echo >kprobe_events; echo nop >current_tracer;
        echo >set_ftrace_filter; umount {TRACING}"""
    try:
        liar.ask(begin)
        found = seen.check(image=vmlinuz(liar))
    finally:
        liar.ask(end, check=False)
    assert found.alarms.to_dicts() == []
    told = {row.subject for row in found if row.check == "hooks"}
    assert any(subject.startswith("ftrace ") for subject in told), told
    assert any("do_sys_openat2" in subject for subject in told), told
    assert any("vfs_write+" in subject for subject in told), told


def test_the_command(liar: LabGuest, seen: vmi_inside.Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRSH_DEFAULT_CONNECT_URI", liar.uri or "")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)

    clean = run(liar.name)
    assert (clean.returncode, len(clean.stdout.splitlines())) == (0, 1), clean.stdout
    assert "nothing found" in clean.stderr
    with lying(liar, seen) as lie:
        lie.word(lie.kernel.symbol("sys_call_table") + 8 * 217, lie.kernel.symbol("vfs_read"))
        bad = run(liar.name, "--format", "json")
        assert bad.returncode == 11, bad.stderr
        assert [row["subject"] for row in json.loads(bad.stdout)] == ["sys_call_table[217]"]
        assert run(liar.name, "--skip", "syscalls").returncode == 0
        assert run(liar.name, "--only", "syscalls", "--severity", "critical").returncode == 11
        assert "vfs_read" in run(liar.name, "--only", "syscalls").stdout
    assert "sys_call" not in run("--list").stdout
    assert run(liar.name, "--only", "nonsense").returncode == 2
