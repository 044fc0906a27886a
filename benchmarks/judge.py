"""Whether an answer is right: held against what the guest said of itself before and after.

A live guest goes on while it is looked at, so only what did not change between the two is asked for.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from benchmarks.scene import KIB, MIB

#: Processes that may come and go while one looks: the guest's own helpers.
_PASSING: Final = 4


def wrong(question: str, found: Any, before: dict[str, Any], after: dict[str, Any], peek: Any) -> str:
    """What is wrong with it, in a few words; empty when nothing is. `peek(size)` reads what was to be read."""
    if question.startswith("read"):
        size = 4 * KIB if question == "read 4 KiB" else MIB
        return "" if found == hashlib.sha256(peek(size)).hexdigest() else "other bytes than the guest's"
    told = before[question], after[question]
    if question == "processes":
        return _processes({int(pid): row for pid, row in found.items()}, *told)
    if question == "open files":
        counts = {int(pid): count for pid, count in found.items()}
        stable = {pid for pid in told[0] if told[0][pid] == told[1].get(pid) and pid not in before["asking"]}
        bad = [pid for pid in stable if counts.get(pid) != told[0][pid]]
        return f"{len(bad)} of {len(stable)} processes" if bad else ""
    if question == "5 symbols":
        return "" if found == told[0] else "other addresses than the guest's"
    missing = (told[0] & told[1]) - set(found)
    return f"{len(missing)} of {len(told[0])} are missing" if missing else ""


def _processes(found: dict[int, Any], before: dict[int, Any], after: dict[int, Any]) -> str:
    stable = {pid for pid in before if before[pid] == after.get(pid)}
    missing = [pid for pid in stable if pid not in found]
    if missing:
        return f"{len(missing)} of {len(stable)} are missing"
    invented = [pid for pid in found if pid not in before and pid not in after and pid != 0]
    if len(invented) > _PASSING:
        return f"{len(invented)} are not there"
    for pid in stable:
        parent, name = found[pid]
        # /proc adds to a kernel worker's name what it works on, which changes; tools cut names at 15 bytes.
        same = before[pid][1].startswith(name) or name.startswith("kworker/")
        if not same or parent not in (None, before[pid][0]):
            return f"process {pid} is {before[pid]}, not {(parent, name)}"
    return ""
