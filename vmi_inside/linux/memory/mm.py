"""What a process's `mm_struct` says: sizes, and the command line and environment in the process's own memory.

Source: include/linux/mm_types.h, fs/proc/base.c `get_mm_cmdline`, `environ_read`.
"""

from __future__ import annotations

import numpy as np

from vmi_inside import ragged
from vmi_inside.kernel import Kernel
from vmi_inside.linux import percpu
from vmi_inside.structs import Structs
from vmi_inside.types import I64, PAGE_SIZE, Mask

#: Of a longer command line only so much is read; execve allows more, nobody types it.
CMDLINE_LIMIT = 128 << 10
#: Nor of a larger environment.
ENVIRONMENT_LIMIT = 256 << 10
#: MM_FILEPAGES, MM_ANONPAGES, MM_SHMEMPAGES; 2 is swap (include/linux/mm_types_task.h).
RESIDENT = (0, 1, 3)

CMDLINE = ("pgd", "arg_start", "arg_end", "env_start", "env_end")


def resident_bytes(kernel: Kernel, mms: Structs) -> tuple[I64, Mask]:
    """Resident bytes (n,) of `n` mm_structs, per-CPU parts added, and (n,) bool: which are exact."""
    pages, ok = counted_pages(kernel, mms, RESIDENT)
    return np.maximum(pages.sum(axis=1), 0) * PAGE_SIZE, ok


def counted_pages(kernel: Kernel, mms: Structs, kinds: tuple[int, ...]) -> tuple[I64, Mask]:
    """Pages (n, kinds) that `n` mm_structs count, per-CPU parts added, and (n,) bool: which are exact.

    A sum of parts that were read one after the other can be below 0.
    """
    ok = np.ones(len(mms), dtype=np.bool_)
    if mms.has("rss_stat.count"):  # struct mm_rss_stat, until 6.1
        names = [f"rss_stat.count[{kind}].counter" for kind in kinds]
        mms.fetch(*names)
        return np.stack([mms.number(name) for name in names], axis=1), ok
    # percpu_counter[NR_MM_COUNTERS] since 6.2
    counts = [f"rss_stat[{kind}].count" for kind in kinds]
    counters = [f"rss_stat[{kind}].counters" for kind in kinds]
    mms.fetch(*counts, *counters)
    pages = np.stack([mms.number(name) for name in counts], axis=1)
    rows = np.flatnonzero(mms.address)
    each = np.stack([mms.pointer(name)[rows] for name in counters], axis=1)
    parts, whole = percpu.pending(kernel, each.ravel())
    pages[rows] += parts.reshape(each.shape)
    ok[rows] = whole.reshape(each.shape).all(axis=1)
    return pages, ok


def command_lines(kernel: Kernel, mms: Structs) -> tuple[list[str], Mask]:
    """Command lines (n,), arguments joined by blanks as `ps` does, and (n,) bool: which were in memory whole.

    A process that wrote over its arguments and beyond them into its environment (setproctitle) shows what it wrote.
    """
    pgd, ok = kernel.space.translate(mms.pointer("pgd"))
    ok |= mms.address == 0
    start, end = mms.pointer("arg_start"), mms.pointer("arg_end")
    sane = ok & (end > start) & (mms.address != 0)
    size = np.where(sane, np.minimum(end - start, np.uint64(CMDLINE_LIMIT)), np.uint64(0)).astype(np.int64)
    got = ragged.gather(kernel.space, start, size, pgd)
    ok &= got.ok
    raw = got.rows()
    env_end = mms.pointer("env_end")
    # No NUL at the end of the arguments: they were overwritten, and go on where the environment was.
    spilled = np.array([bool(part) and part[-1] != 0 for part in raw], dtype=np.bool_) & (env_end > end) & got.ok
    rows = np.flatnonzero(spilled)
    if len(rows):
        rest = np.minimum(env_end[rows] - end[rows], np.uint64(PAGE_SIZE)).astype(np.int64)
        more = ragged.gather(kernel.space, end[rows], rest, pgd[rows])
        for row, part in zip(rows.tolist(), more.rows(), strict=True):
            raw[row] = (raw[row] + part).split(b"\0", 1)[0]
    return [_joined(part) for part in raw], ok


def _joined(raw: bytes) -> str:
    return raw.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "backslashreplace")


def environments(kernel: Kernel, mms: Structs) -> tuple[list[bytes], Mask, Mask]:
    """Environments (n,) as execve laid them out, (n,) bool: which were in memory whole, and which were cut.

    What a process changed since it began (setenv) is elsewhere, in memory that only the process knows.
    """
    pgd, ok = kernel.space.translate(mms.pointer("pgd"))
    ok |= mms.address == 0
    start, end = mms.pointer("env_start"), mms.pointer("env_end")
    sane = ok & (end > start) & (mms.address != 0)
    size = np.where(sane, np.minimum(end - start, np.uint64(ENVIRONMENT_LIMIT)), np.uint64(0)).astype(np.int64)
    got = ragged.gather(kernel.space, start, size, pgd)
    return got.rows(), ok & got.ok, sane & (end - start > np.uint64(ENVIRONMENT_LIMIT))
