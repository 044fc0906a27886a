"""Raw dumps: nothing but memory.

Knows the two layouts that such a file may have, and that nothing in it tells which. Finding out by looking for a
kernel is left to who attaches.

- padded: the offset is the guest-physical address, and the hole below 4 GiB is in the file (`pmemsave`, most tools);
- joined: RAM without the hole, as QEMU keeps it (a copy of a `memory-backend-file`, `/dev/shm`): what lies behind
  `split` bytes belongs at 4 GiB.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vmi_inside.drivers.dumpfile import DumpFile, MappedDump
from vmi_inside.errors import BadDump
from vmi_inside.types import PAGE_SIZE

SMALLEST: Final = 1 << 20
_GIB: Final = 1 << 30
_TEXT: Final = bytes(range(32, 127)) + b"\t\n\r\f\b\x1b" + bytes(range(128, 256))

# RAM below 4 GiB of a guest with more RAM than fits there, and from which size of RAM on (QEMU 7.2: hw/i386/pc_q35.c,
# pc_q35_init; hw/i386/pc_piix.c, pc_init1).
_SPLITS: Final = ((2 * _GIB, 0xB0000000), (3 * _GIB, 0xE0000000))


def splits(size: int) -> tuple[int | None, ...]:
    """Layouts that a raw file of `size` bytes may have, the likeliest first: None for padded, else a `split`."""
    return None, *(split for split, least in _SPLITS if size >= least)


def open_raw(file: DumpFile, *, split: int | None = None) -> MappedDump:
    """The memory of a raw file. `split` is None for a padded file; else the bytes of RAM below 4 GiB, no hole inside.

    Raises `BadDump` for a size that no machine's memory has, for text, and for a `split` that does not fit.
    """
    if file.size % PAGE_SIZE or file.size < SMALLEST:
        raise BadDump(f"{file.path} is no memory dump: no known format, and as raw memory its {file.size} bytes would "
                      f"have to be a multiple of {PAGE_SIZE}, and 1 MiB at least; it may be truncated")  # fmt: skip
    if not file.data[: 1 << 16].tobytes().translate(None, _TEXT):
        raise BadDump(f"{file.path} is no memory dump: it is text")
    if split is None:
        return MappedDump(file, np.array([(0, file.size, 0)], np.int64), "raw dump")
    if split % PAGE_SIZE or not 0 < split < file.size or split > 4 * _GIB:
        raise BadDump(f"{file.path}: a raw dump of {file.size:#x} bytes cannot be split at {split:#x}")
    ranges = np.array([(0, split, 0), (4 * _GIB, file.size - split, split)], np.int64)
    return MappedDump(file, ranges, f"raw dump, {split:#x} bytes of it below 4 GiB")
