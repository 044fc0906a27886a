"""The notes of a process's core: its threads' registers, what it is called, its auxiliary vector, its files.

Knows the layouts of `elf_prstatus` and `elf_prpsinfo` on x86_64 (include/linux/elfcore.h, include/uapi/linux/elfcore.h)
and of NT_FILE (fs/binfmt_elf.c `fill_files_note`). What memory the core holds is left to `core_dump`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, SupportsInt

import numpy as np

from vmi_inside import elf
from vmi_inside.kernel import Kernel
from vmi_inside.linux.contents.process_contents import ProcessContents
from vmi_inside.linux.contents.regions import Region
from vmi_inside.linux.contents.user_registers import COUNT, user_registers
from vmi_inside.linux.memory import mm
from vmi_inside.linux.processes.view import DEFAULT_PRIORITY
from vmi_inside.linux.tasks import PIDTYPE_PID
from vmi_inside.linux.tasks import pids as all_pids
from vmi_inside.structs import Structs
from vmi_inside.types import PAGE_SHIFT, PAGE_SIZE

NT_PRSTATUS: Final = 1
NT_PRPSINFO: Final = 3
NT_AUXV: Final = 6
NT_FILE: Final = 0x46494C45

#: Signal and errno, pending and held signals, ids, times as pairs of seconds and microseconds, registers, fpvalid.
_PRSTATUS: Final = struct.Struct(f"<3i h2x 2Q 4i 8q {COUNT}Q i4x")
#: State, its letter, zombie, nice; flags; ids; name; arguments.
_PRPSINFO: Final = struct.Struct("<bcbb4x Q 2I 4i 16s 80s")
_STATES: Final = b"RSDTZW"
#: enum pid_type: process group and session.
_PGID, _SID = 2, 3
_ARGS: Final = 80


@dataclass(frozen=True, slots=True)
class Notes:
    """The notes' bytes, how many `threads` they tell of, and what is to be said of them."""

    data: bytes
    threads: int
    warnings: tuple[str, ...]


def notes(kernel: Kernel, memory: ProcessContents, regions: Iterable[Region]) -> Notes:
    """The notes of one process: its leader first, then its other threads."""
    warnings: list[str] = []
    with kernel.operation():
        number, _, tasks = all_pids(kernel).tasks(kernel, PIDTYPE_PID)
        mine = np.flatnonzero(tasks.number("tgid") == memory.pid)
        mine = mine[np.argsort(number[mine] != memory.pid, kind="stable")]
        threads = tasks.select(mine)
        ids = _Ids(kernel, threads)
        registers = user_registers(kernel, threads)
        said = [
            _note(NT_PRSTATUS, ids.prstatus(row, thread, registers.values[row].tolist()))
            for row, thread in enumerate(number[mine].tolist())
        ]
        out = [*said[:1], _note(NT_PRPSINFO, ids.prpsinfo(memory)), *_auxv(kernel, memory), _files(regions), *said[1:]]
    lost = int((~registers.ok).sum())
    if lost:
        warnings.append(f"{lost} of {len(mine)} threads have no registers that make sense: zeros stand for them")
    busy = int((registers.running & registers.ok).sum())
    if busy:
        warnings.append(f"{busy} of {len(mine)} threads were running: their registers may be those of a moment before")
    return Notes(b"".join(out), len(mine), tuple(warnings))


class _Ids:
    """What `elf_prstatus` and `elf_prpsinfo` say of threads, read for all of them at once."""

    def __init__(self, kernel: Kernel, threads: Structs) -> None:
        self.kernel = kernel
        self.tasks = threads.fetch(
            ("__state", "state"), "exit_state", "flags", "static_prio", "comm", "real_parent", "real_cred", "signal",
            "mm", "utime", "stime", "pending.signal", "blocked",
        )  # fmt: skip
        self.parent = threads.follow("real_parent").number("tgid")
        cred = threads.follow("real_cred")
        self.uid, self.gid = cred.unsigned("uid.val"), cred.unsigned("gid.val")
        signal = threads.follow("signal")
        self.group, self.session = (
            signal.follow(f"pids[{kind}]", kernel.struct("pid")).number("numbers[0].nr") for kind in (_PGID, _SID)
        )

    def prstatus(self, row: int, thread: int, registers: list[int]) -> bytes:
        """NT_PRSTATUS of one thread."""
        times: list[int] = []
        for name in ("utime", "stime"):
            micro = int(self.tasks.unsigned(name)[row]) // 1000 & (1 << 62) - 1
            times += divmod(micro, 1_000_000)
        return _PRSTATUS.pack(
            0, 0, 0, 0, self._signals("pending.signal", row), self._signals("blocked", row), _int(thread),
            _int(self.parent[row]), _int(self.group[row]), _int(self.session[row]), *times, 0, 0, 0, 0, *registers, 0,
        )  # fmt: skip

    def prpsinfo(self, memory: ProcessContents) -> bytes:
        """NT_PRPSINFO of the process, which the first thread leads."""
        state = int(self.tasks.number(("__state", "state"))[0]) | int(self.tasks.number("exit_state")[0])
        letter = (state & 0xFF).bit_length()
        shown = _STATES[min(letter, len(_STATES) - 1) :][:1]
        nice = int(self.tasks.number("static_prio")[0]) - DEFAULT_PRIORITY
        holder = self.kernel.structs("mm_struct", [memory.mm]).fetch(*mm.CMDLINE)
        line = mm.command_lines(self.kernel, holder)[0][0].encode()[: _ARGS - 1]
        name = self.tasks.text("comm")[0].encode("utf-8", "backslashreplace")[:15]
        return _PRPSINFO.pack(
            min(letter, 127), shown, int(shown == b"Z"), max(-128, min(nice, 127)),
            int(self.tasks.unsigned("flags")[0]) & 0xFFFF_FFFF, int(self.uid[0]), int(self.gid[0]), _int(memory.pid),
            _int(self.parent[0]), _int(self.group[0]), _int(self.session[0]), name, line,
        )  # fmt: skip

    def _signals(self, name: str, row: int) -> int:
        raw = np.ascontiguousarray(self.tasks[name][row]).tobytes()[:8]
        return int.from_bytes(raw, "little")


def _auxv(kernel: Kernel, memory: ProcessContents) -> Iterator[bytes]:
    """NT_AUXV, up to its end."""
    rows = kernel.structs("mm_struct", [memory.mm])
    if not rows.has("saved_auxv"):
        return
    rows.fetch("saved_auxv")
    words = np.ascontiguousarray(rows["saved_auxv"][0]).view("<u8")
    ends = np.flatnonzero(words[::2] == 0)
    last = 2 * (int(ends[0]) + 1) if len(ends) else len(words)
    yield _note(NT_AUXV, words[:last].tobytes())


def _files(regions: Iterable[Region]) -> bytes:
    """NT_FILE: what is mapped where."""
    mapped = [region for region in regions if region.file]
    words = [len(mapped), PAGE_SIZE]
    for region in mapped:
        words += (region.start, region.end, region.offset >> PAGE_SHIFT)
    names = b"".join(region.path.encode("utf-8", "backslashreplace").replace(b"\0", b"") + b"\0" for region in mapped)
    return _note(NT_FILE, struct.pack(f"<{len(words)}Q", *words) + names)


def _note(kind: int, data: bytes) -> bytes:
    return elf.note("CORE", kind, data)


def _int(value: SupportsInt) -> int:
    """As a C int."""
    number = int(value) & 0xFFFF_FFFF
    return number - (1 << 32) if number >> 31 else number
