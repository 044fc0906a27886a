"""Threads' user registers in a made-up guest: at the top of stacks of any size, and stacks that lie."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.synthetic import SyntheticGuest
from tests.synthetic.guest import NOWHERE
from tests.synthetic.layout import Layout
from vmi_inside.linux.contents.user_registers import COUNT, user_registers

LAYOUT = """
vm_struct 64
    nr_pages 40 u32
thread_struct 64
    fsbase 0 u64
    gsbase 8 u64
task_struct 512
    stack 0 *void
    on_cpu 8 u32
    stack_vm_area 16 *vm_struct
    thread 64 thread_struct
"""
USER_CS, USER_SS = 0x33, 0x2B


def guest_with(*stacks: tuple[int, int, int, int]) -> tuple[SyntheticGuest, list[int]]:
    """Tasks with stacks of so many pages, so much room above the registers, and these selectors."""
    guest = SyntheticGuest(scattered=True)
    guest.profile.layout.structs.update(Layout(LAYOUT).structs)
    tasks = []
    for number, (pages, room, cs, ss) in enumerate(stacks):
        stack = guest.alloc(pages * 4096 + 4096, f"stack{number}") + 4095 & ~4095
        words = [100 * number + at for at in range(21)]
        words[17], words[20] = cs, ss
        guest.write(stack + pages * 4096 - room - 168, struct.pack("<21Q", *words))
        area = guest.new("vm_struct", nr_pages=pages) if pages != 4 else 0
        tasks.append(
            guest.new(
                "task_struct", stack=stack, stack_vm_area=area, thread__fsbase=number + 7, thread__gsbase=number + 8,
                on_cpu=number % 2,
            )
        )  # fmt: skip
    return guest, tasks


@pytest.mark.parametrize("room", [0, 16])
def test_registers(room: int) -> None:
    # With FRED the upper bits beside the selectors mean other things.
    guest, tasks = guest_with(
        (4, room, USER_CS, USER_SS), (8, room, 0xABCD_0000 << 16 | USER_CS, USER_SS), (4, room, 0x23, USER_SS)
    )
    found = user_registers(guest.kernel, guest.kernel.structs("task_struct", tasks))
    assert found.ok.tolist() == [True, True, True]
    assert found.running.tolist() == [False, True, False]
    assert found.values.shape == (3, COUNT)
    assert found.values[1, :3].tolist() == [100, 101, 102]
    assert found.values[:, 17].tolist() == [USER_CS, USER_CS, 0x23]
    assert found.values[:, 21].tolist() == [7, 8, 9]
    assert found.values[:, 22].tolist() == [8, 9, 10]


def test_stacks_that_lie() -> None:
    guest, tasks = guest_with((4, 0, USER_CS, USER_SS), (4, 0, 0x10, 0x18), (4, 0, USER_CS, 0), (4, 0, 3, 0x7773))
    wild = guest.new("task_struct", stack=NOWHERE, thread__fsbase=5)
    sized = guest.new(
        "task_struct", stack=guest.space.read_u64(tasks[0]),
        stack_vm_area=guest.new("vm_struct", nr_pages=(1 << 32) - 1),
    )  # fmt: skip
    loose = guest.new("task_struct", stack=(1 << 64) - 8, stack_vm_area=NOWHERE)
    found = user_registers(guest.kernel, guest.kernel.structs("task_struct", [*tasks, wild, sized, loose, 0]))
    # A stack of an absurd size is taken for one of the usual.
    assert found.ok.tolist() == [True, False, False, False, False, True, False, False]
    assert not found.values[~found.ok].any()
    assert np.array_equal(found.values[5, :21], found.values[0, :21])
