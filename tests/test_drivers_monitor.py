from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi_inside.drivers import monitor
from vmi_inside.drivers.qemu_layout import Extent, LayoutUnknown
from vmi_inside.memory import Run

# QEMU 7.2, -machine q35 -m 4G with a DIMM, abridged.
MTREE = """FlatView #0
 AS "cpu-smm-0", root: memory
 Root memory region: memory
  0000000000000000-00000000000bffff (prio 0, ram): pc.ram
  0000000000100000-000000007fffffff (prio 0, ram): pc.ram @0000000000100000

FlatView #1
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #2
 AS "VGA", root: bus master container
 Root memory region: (none)
  No rendered FlatView

FlatView #3
 AS "cpu-memory-0", root: system
 AS "memory", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000cafff (prio 0, rom): pc.ram @00000000000c0000 KVM
  00000000000cb000-00000000000cdfff (prio 0, ram): pc.ram @00000000000cb000 KVM
  00000000000ce000-000000007fffffff (prio 0, ram): pc.ram @00000000000ce000 KVM
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  00000000febd4000-00000000febd417f (prio 0, i/o): edid
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
  0000000100000000-000000017fffffff (prio 0, ram): pc.ram @0000000080000000
  0000000180000000-000000018fffffff (prio 0, ram): /objects/dimm 0

FlatView #4
 AS "memory", root: system
  0000000000000000-00000000ffffffff (prio 0, ram): pc.ram
"""
MEMDEV = "memory backend: pc.ram\n  size:  4294967296\n\nmemory backend: mem0\n  size:  268435456\n"
BASE = 0x7F0000000000

REGISTERS = """
CPU#0
RAX=0000000000000000 RBX=ffffffff82a1a940 RCX=0000000000000001 RDX=0000000000000000
RIP=ffffffff81e8d3bf RFL=00000246 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=1
ES =0000 0000000000000000 ffffffff 00c00000
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
GS =0000 ffff88800f600000 ffffffff 00c00000
TR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64-avl
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=00007f2b0a4b3000 CR3=0000000002a10000 CR4=00750ef0
EFER=0000000000000d01
FPR0=0000000000000000 0000 FPR1=0000000000000000 0000
XMM00=2f2f2f2f2f2f2f2f 2f2f2f2f2f2f2f2f XMM01=0000000000000000 0000000000000000

CPU#1
RIP=0000000000401000 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
CR0=80050033 CR2=0000000000000000 CR3=0000000003a10000 CR4=00750ef0
"""


def test_ram_is_that_of_the_guests_address_space_without_devices() -> None:
    found = monitor.ram(monitor.regions(MTREE), {"pc.ram", "dimm 0"})
    assert [(one.run, one.offset) for one in found] == [
        (Run(0, 0xA0000), 0),
        (Run(0xC0000, 0x80000000 - 0xC0000), 0xC0000),
        (Run(0x100000000, 0x80000000), 0x80000000),
        (Run(0x180000000, 0x10000000), 0),
    ]


def test_each_run_is_asked_for_once() -> None:
    asked = []

    def hmp(command: str) -> str:
        asked.append(command)
        if command.startswith("info"):
            return MTREE if "mtree" in command else MEMDEV
        return f"Host virtual address for {command.split()[1]} (pc.ram) is {BASE + int(command.split()[1], 16):#x}\r\n"

    found = monitor.extents(hmp)
    assert found[1] == Extent(Run(0xC0000, 0x80000000 - 0xC0000), BASE + 0xC0000)
    assert asked[2:] == ["gpa2hva 0x0", "gpa2hva 0xc0000", "gpa2hva 0x100000000"]


@pytest.mark.parametrize("answer", ["", "Memory at address 0x0 is not RAM", "is 0x", "unknown command: 'gpa2hva'"])
def test_a_monitor_that_does_not_tell_is_refused(answer: str) -> None:
    with pytest.raises(LayoutUnknown):
        monitor.extents(lambda command: MTREE if command == "info mtree -f" else answer)
    with pytest.raises(LayoutUnknown, match="no RAM"):
        monitor.extents(lambda command: answer)


def test_registers_of_every_vcpu() -> None:
    first, second = monitor.registers(REGISTERS)
    assert first["RIP"] == 0xFFFFFFFF81E8D3BF
    assert (first["CR3"], first["CR4"], first["EFER"], first["CPL"]) == (0x2A10000, 0x750EF0, 0xD01, 3)
    assert (first["GS_BASE"], first["CS"], first["IDT_BASE"]) == (0xFFFF88800F600000, 0x10, 0xFFFFFE0000000000)
    assert (first["GDT_BASE"], first["GDT_LIMIT"], first["TR_BASE"]) == (0xFFFFFE0000001000, 0x7F, 0xFFFFFE0000003000)
    assert not [name for name in first if name.startswith(("XMM", "FPR"))]
    assert (second["CR3"], second["RIP"], "EFER" in second) == (0x3A10000, 0x401000, False)


PARTS = [
    "FlatView #1\n",
    ' AS "memory", root: system\n',
    "  0-f (prio 0, ram): pc.ram @0\n",
    "CPU#0\n",
    "CR3=12 ",
    "GS =0 0 0 0\n",
]


@settings(deadline=None)
@given(st.lists(st.text() | st.sampled_from(PARTS)).map("".join))
def test_any_text_is_taken(text: str) -> None:
    for region in monitor.ram(monitor.regions(text), monitor.backends(text)):
        assert region.run.size > 0
    for cpu in monitor.registers(text):
        assert all(0 <= value < 1 << 64 for value in cpu.values())


@settings(deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["RIP", "CR3", "CR4", "EFER", "R15"]), st.integers(0, (1 << 64) - 1)),
        max_size=4,
    )
)
def test_registers_come_back(cpus: list[dict[str, int]]) -> None:
    text = "".join(
        f"CPU#{n}\n" + " ".join(f"{k}={v:016x}" for k, v in cpu.items()) + "\n" for n, cpu in enumerate(cpus)
    )
    assert monitor.registers(text) == cpus
