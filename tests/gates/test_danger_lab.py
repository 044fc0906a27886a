"""Dangerous moments: vCPUs in the code that changes, and a hundred rounds under load."""

from __future__ import annotations

import numpy as np
import pytest

import vmi_inside
from tests.gates.arena import LOCAL, NETWORK, Arena, refused, went_on
from vmi_inside.control.gates.entries import find_entry
from vmi_inside.control.gates.holes import spare_words
from vmi_inside.control.gates.standing import Site
from vmi_inside.control.machine import HARDWARE
from vmi_inside.control.sleepers import standing
from vmi_inside.errors import Unsafe
from vmi_inside.linux.processes.unwind import frames
from vmi_inside.linux.symbols.code import Code


def stop_at(guest: vmi_inside.Guest, address: int) -> None:
    """Let the guest, which is paused, run until a vCPU is about to go on at an address."""
    with guest.vcpus.debugger() as debugger:
        debugger.set(HARDWARE, address)
        debugger.cont()
        stop = debugger.wait(60)
        if stop is None:
            debugger.interrupt()
        debugger.clear(HARDWARE, address)
        assert stop is not None
        assert debugger.registers(stop.vcpu)["rip"] == address


def test_a_vcpu_at_the_entry_that_is_to_be_gated(here: Arena) -> None:
    guest, pid = here.guest, here.start("one")
    entry = find_entry(guest.kernel, "security_socket_sendmsg")
    assert entry is not None
    with guest.paused():
        stop_at(guest, entry.at)
        guest.deny("network", pid=pid)
    refused(here.during("one")[0], NETWORK)
    guest.allow("network", pid=pid)
    went_on(here.during("one")[0], (*NETWORK, *LOCAL))


def test_a_vcpu_inside_the_function_that_is_gated(one_kernel: Arena) -> None:
    here, guest = one_kernel, one_kernel.guest
    pid = here.start("one")
    entry = find_entry(guest.kernel, "security_socket_sendmsg")
    assert entry is not None
    with guest.paused():
        stop_at(guest, entry.behind)  # it has gone by what becomes the jump
        guest.deny("network", pid=pid)
    refused(here.during("one")[0], NETWORK)
    guest.allow("network", pid=pid)
    went_on(here.during("one")[0], (*NETWORK, *LOCAL))


def test_nothing_changes_under_a_vcpu_in_the_code_of_a_gate(here: Arena) -> None:
    guest, pid = here.guest, here.start("one")
    guest.deny("network", pid=pid)
    low, _ = Site(guest.kernel).code_range  # where rules begin to be read
    with guest.paused():
        stop_at(guest, low)
        for change in (
            lambda: guest.allow("network", pid=pid),
            lambda: guest.deny("network", uid=4711),
            lambda: guest.undo(guest.journal()[0].id),
        ):
            with pytest.raises(Unsafe, match="vCPU"):
                change()
    refused(here.during("one")[0], NETWORK)
    guest.allow("network", pid=pid)
    went_on(here.during("one")[0], (*NETWORK, *LOCAL))


def test_a_hundred_rounds_under_load(one_kernel: Arena) -> None:
    here, guest = one_kernel, one_kernel.guest
    pid = here.start("one")
    here.start("two")
    words = sorted(spare_words(guest.kernel))
    pauses = []
    for round_ in range(100):
        children = round_ % 4 == 3
        pauses.append(guest.deny("network", pid=pid, children=children).seconds)
        pauses.append(guest.allow("network", pid=pid).seconds)
    for counts in here.during("one", "two"):
        went_on(counts, (*NETWORK, *LOCAL))
    assert here.counts("one")["tcp4"][1] > 0  # it was refused now and then
    assert sorted(spare_words(guest.kernel)) == words  # no count is left behind
    pauses.sort()
    print(f"pauses: median {pauses[100] * 1e3:.1f} ms, worst {pauses[-1] * 1e3:.1f} ms")


def test_words_left_on_the_stacks_of_sleepers_are_told_from_return_addresses(one_kernel: Arena) -> None:
    """What is left on a stack from an earlier call does not keep a stopped process's gate from being taken out."""
    here, guest = one_kernel, one_kernel.guest
    pid = here.start("one")
    low, high = Site(guest.kernel).code_range
    here.lab.ask(f"kill -STOP {pid}; sleep 0.3")
    task = next(row for row in guest.threads(columns=("tid", "address")) if row.tid == pid).address
    rows = guest.kernel.structs("task_struct", [task]).fetch("stack", "thread.sp")
    stack, top = int(rows.pointer("stack")[0]), int(rows.pointer("thread.sp")[0])
    size = 16 << 10
    words = np.frombuffer(guest.kernel.space.read(top, stack + size - top), dtype="<u8")
    found = frames(guest.kernel, rows, Code(guest.kernel))
    assert found.how == "orc"
    returns = set(found.address.tolist())
    unused = next(at for at, word in enumerate(words.tolist()) if at > 8 and not word)
    used = next(at for at, word in enumerate(words.tolist()) if word in returns)
    for at, said in ((unused, ""), (used, f"task {pid} may come back")):
        entry = guest.write_memory(top + 8 * at, (low + 5).to_bytes(8, "little"))
        with guest.paused(), guest.vcpus.debugger() as debugger:
            registers = [debugger.registers(vcpu) for vcpu in range(len(debugger.threads))]
            assert standing(guest.kernel, [(low, high)], registers).startswith(said)
            assert bool(standing(guest.kernel, [(low, high)], registers)) == bool(said)
        guest.undo(entry.id)
    here.lab.ask(f"kill -CONT {pid}")
    went_on(here.during("one")[0], (*NETWORK, *LOCAL))
