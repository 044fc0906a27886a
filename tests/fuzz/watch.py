"""What must hold of a case, whatever its bytes: it ends within bounds, and what goes wrong is a `VmiError`.

Knows processor time, memory and exceptions. What is read meanwhile is the target's matter.
"""

from __future__ import annotations

import resource
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from vmi_inside.errors import VmiError

#: Seconds of this process's own processor time that no case needs: none that ends takes a tenth of it.
CPU_LIMIT: Final = 60
#: Bytes that a case may take beside what the process had: readings are capped at 64 MiB each (`ragged.TOTAL_LIMIT`).
MEMORY_LIMIT: Final = 768 << 20
#: All address space that the process may have: a claimed size that is believed ends in a `MemoryError`.
ADDRESS_LIMIT: Final = 12 << 30

_HERE: Final = str(Path(__file__).resolve().parents[2])


class Endless(BaseException):
    """A case went on and on. Not an `Exception`: nobody may catch it on the way."""


class Violation(Exception):  # a name in the sense of a broken promise
    """A case ended otherwise than it may; the message says how."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A case that broke the promise: `where` tells two of the same cause from two of different ones."""

    target: str
    number: int
    what: str
    where: str
    trace: str


def limit_address_space() -> None:
    """Let allocations of a claimed size fail, rather than take the machine's memory."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_LIMIT, hard))


@contextmanager
def bounded() -> Iterator[None]:
    """Raise `Endless` in what takes more than `CPU_LIMIT`, `Violation` for what takes more than `MEMORY_LIMIT`."""

    def over(number: int, frame: FrameType | None) -> None:
        raise Endless(f"more than {CPU_LIMIT} s of processor time")

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT)
    start = _peak(reset=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    grown = _peak() - start
    if grown > MEMORY_LIMIT:
        raise Violation(f"took {grown >> 20} MiB of memory")


def judge(target: str, number: int, case: Callable[[int], None]) -> Finding | None:
    """Run one case; what it broke, if anything."""
    try:
        with bounded():
            case(number)
    except VmiError:
        return None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [one for one in frames if "/vmi_inside/" in one.filename] or frames
        last = ours[-1]
        where = f"{type(error).__name__} at {last.filename.removeprefix(_HERE + '/')}:{last.lineno}"
        if isinstance(error, Violation):
            where = f"{where}: {str(error).partition(':')[0]}"
        return Finding(target, number, f"{type(error).__name__}: {error}", where, traceback.format_exc())
    return None


def _peak(*, reset: bool = False) -> int:
    """The most memory that was resident, in bytes; since the last `reset`."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))
