"""Pointers to code in the kernel's own data: no word of it may lead to code that is nobody's.

Looks at every word of the image's data, tables of operations (`*_fops`, `*_ops`, `*_operations`, `seq_ops`), hooks of
security modules, protocols and terminals among them, and knows no layout. Objects on the heap are `operations`' matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.integrity.findings import Finding
from vmi_inside.linux.integrity.reading import Reading, Stretch

#: Stretches of the image: first and last symbol, and whether nothing in it may lead into a module: what is read-only
#: was written before the first module came.
STRETCHES: Final = (
    ("__start_rodata", "__end_rodata", True), ("_sdata", "_edata", False), ("__bss_start", "__bss_stop", False),
)  # fmt: skip
#: Variables that hold where code begins or ends, and pages of code that the kernel made itself and keeps in no list:
#: thunks (ITS, 6.15), what wakes other processors, the hypercall page of Hyper-V.
_KNOWN: Final = frozenset((
    "mod_tree", "execmem_info", "init_mm", "builtin_coretext", "its_page", "its_pages", "real_mode_header",
    "trampoline_header", "trampoline_cr4_features", "trampoline_pgd_entry", "hv_hypercall_pg",
))  # fmt: skip


def data_pointers(kernel: Kernel, reading: Reading) -> Iterator[Finding]:
    """Words of the kernel's data that lead to code of nobody; of read-only data, also those into modules."""
    for first, last, constant in STRETCHES:
        start, end = kernel.profile.find_symbol(first), kernel.profile.find_symbol(last)
        if start is None or end is None or start >= end:
            yield Finding("info", first, detail="not looked at: the kernel does not say where it lies")
            continue
        yield from _stretch(reading, Stretch(kernel, start, end), constant)


def _stretch(reading: Reading, stretch: Stretch, constant: bool) -> Iterator[Finding]:
    words = stretch.words
    hit = np.flatnonzero(reading.executable.hold(words))
    owners = reading.code.owners(words[hit])
    # All ones above some bit: a mask, and where the modules' space begins. With nokaslr code lies right there.
    below = ~words[hit]
    strange = (owners == "") & (below & (below + np.uint64(1)) != 0)
    if constant:
        strange |= ~np.isin(owners, ["", "kernel", "init", "bpf", "ftrace", "kprobes"])
    hit, owners = hit[strange], owners[strange]
    at = np.uint64(stretch.start) + np.uint64(8) * hit.astype(np.uint64)
    places, symbols = reading.code.symbols(at), reading.code.symbols(words[hit])
    for place, symbol, owner, address, word in zip(
        places.tolist(), symbols.tolist(), owners.tolist(), at.tolist(), words[hit].tolist(), strict=True
    ):
        if place.partition("+")[0] in _KNOWN or symbol == "_etext":
            continue
        yield Finding(
            "high" if owner else "critical", place, "code of the kernel" if constant else "code that somebody owns",
            f"{word:#x}, {owner or 'nobody'}'s", address, symbol,
        )  # fmt: skip
