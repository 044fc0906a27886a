"""The memory of a paravirtualized Xen guest: what it calls physical, it lays out itself, over machine frames.

Knows the guest's own table from its frames to machine frames (p2m), found through what it shares with the hypervisor
(`struct arch_shared_info`, public/arch-x86/xen.h; arch/x86/xen/p2m.c, Linux since 4.4), and the way back: page tables
of such a guest hold machine frames, and are given to readers as if they held the guest's own.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vmi_inside.drivers.xen import Domain, Writing, XenMemory
from vmi_inside.drivers.xenlib import Xen
from vmi_inside.drivers.xenram import joined, stretches
from vmi_inside.errors import NotRunning
from vmi_inside.memory import Run
from vmi_inside.types import PAGE_MASK, PAGE_SHIFT, U64, Mask

# Of struct shared_info of a 64-bit guest: 32 vcpu_infos of 64 bytes, two bitmaps of 64 words, 16 bytes of clock, arch.
_ARCH: Final = 32 * 64 + 2 * 64 * 8 + 16
_MAX_PFN, _P2M_CR3, _P2M_VADDR, _P2M_GENERATION = (_ARCH // 8 + index for index in (0, 3, 4, 5))
_ENTRIES: Final = 512
#: The two highest bits of an entry say that the frame is another domain's, or the machine's own (asm/xen/page.h).
_OURS: Final = np.uint64(1 << 62)
_RUNS_LIMIT: Final = 4096
# An entry of x86_64's page tables, of which PV guests have four levels and no large pages (Intel SDM 3A, 4.5).
_ADDRESS: Final = np.uint64(0x000F_FFFF_FFFF_F000)
_PRESENT: Final = np.uint64(1)
_SHIFTS: Final = (39, 30, 21, 12)


class PvMemory(XenMemory):
    """`PhysicalMemory` of a PV guest, by its own (pseudo-)physical addresses."""

    def __init__(self, xen: Xen, domain: Domain) -> None:
        self._shared: U64 | None = None
        self._table: U64 | None = None  # the guest's own, mapped
        self._told = (-1, 0)  # its generation and length
        self._p2m = self._machine = self._guest = np.empty(0, dtype=np.uint64)
        super().__init__(xen, domain)

    def entries(self, entry: U64) -> U64:
        """Page-table entries as if they held the guest's frames; what maps other frames than its own maps nothing."""
        present = entry & _PRESENT != 0
        frame = (entry & _ADDRESS) >> np.uint64(PAGE_SHIFT)
        if not len(self._machine):
            return np.where(present, np.uint64(0), entry)
        at = np.minimum(self._machine.searchsorted(frame), len(self._machine) - 1)
        own = self._machine[at] == frame
        inside = (entry & ~_ADDRESS) | (self._guest[at] << np.uint64(PAGE_SHIFT))
        return np.where(present, np.where(own, inside, np.uint64(0)), entry)

    def close(self) -> None:
        """Let go of the guest's memory and of the hypervisor."""
        for view in (self._table, self._shared):
            if view is not None:
                self._frames.forget(view.view(np.uint8))
        self._table = self._shared = None
        super().close()

    def _find_runs(self) -> tuple[Run, ...]:
        view = self._frames.view(np.array([self.domain.info.shared_info], dtype=np.uint64))
        if view is None:
            self.check_alive()
            raise NotRunning(f"{self.domain.name}: what the guest shares with Xen cannot be read")
        self._shared = view.view("<u8")
        self._begin()
        found = stretches(np.flatnonzero(self._p2m < _OURS).astype(np.uint64))
        return joined(found if len(found) <= _RUNS_LIMIT else [(found[0][0], found[-1][1])])

    def _begin(self) -> None:
        """See whether the guest has moved frames about, and take its table anew if so."""
        shared = self._shared
        if shared is None:
            return
        told = int(shared[_P2M_GENERATION]), int(shared[_MAX_PFN])
        if self._table is None or told != self._told:
            self._map_table(shared, told[1])
            self._told = told
        table = None if self._table is None else self._table[: told[1]]
        if table is None or np.array_equal(table, self._p2m):
            return
        self._p2m = table.copy()
        own = np.flatnonzero(self._p2m < _OURS)
        machine = self._p2m[own]
        order = machine.argsort(kind="stable")
        self._machine, self._guest = machine[order], own[order].astype(np.uint64)

    def _map_table(self, shared: U64, count: int) -> None:
        """Map the pages of the guest's table. Raises `NotRunning` when it has none yet."""
        root, at = int(shared[_P2M_CR3]), int(shared[_P2M_VADDR])
        most = 64 * (self.domain.info.most_pages + self.domain.info.pages) + (1 << 20)
        if not root or not at or at & PAGE_MASK or not 0 < count <= most:
            self.check_alive()
            raise NotRunning(
                f"{self.domain.name}: the guest has not told Xen of its memory (it is still booting, or its kernel is "
                "older than 4.4 or no Linux)"
            )
        page = np.uint64(at) + (np.arange((count + _ENTRIES - 1) // _ENTRIES, dtype=np.uint64) << np.uint64(PAGE_SHIFT))
        frame, mapped = self._walk(root, page)
        view = self._frames.view(frame) if mapped.all() else None
        if view is None:
            self.check_alive()
            raise NotRunning(f"{self.domain.name}: the guest's table of its memory cannot be read; try again")
        if self._table is not None:
            self._frames.forget(self._table.view(np.uint8))
        self._table = view.view("<u8")
        self._p2m = np.empty(0, dtype=np.uint64)

    def _walk(self, root: int, va: U64) -> tuple[U64, Mask]:
        """The machine frames that hold these virtual addresses, by the page tables at the machine address `root`."""
        frame = np.full(len(va), root >> PAGE_SHIFT, dtype=np.uint64)
        ok = np.ones(len(va), dtype=np.bool_)
        for shift in _SHIFTS:
            offset = (va >> np.uint64(shift) & np.uint64(_ENTRIES - 1)) * np.uint64(8)
            raw = np.empty((len(va), 8), np.uint8)
            ok &= self._frames.gather(frame, offset, raw)
            entry = raw.view("<u8")[:, 0]
            ok &= entry & _PRESENT != 0
            frame = np.where(ok, (entry & _ADDRESS) >> np.uint64(PAGE_SHIFT), np.uint64(0))
        return frame, ok

    def _of_pages(self, page: U64) -> tuple[U64, Mask]:
        there = page < np.uint64(len(self._p2m))
        frame = self._p2m[np.where(there, page, np.uint64(0)).view(np.int64)]
        there &= frame < _OURS
        return frame, there


class WritablePvMemory(PvMemory, Writing):
    """`PvMemory` that may be written to."""
