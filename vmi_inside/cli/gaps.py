"""What is not in the guest's memory, said on stderr range by range, and in the exit code."""

from __future__ import annotations

from typing import Final

import click

from vmi_inside.cli.messages import say

#: Ranges that are named; of others it is said how many there are.
_NAMED: Final = 10


class Gaps:
    """Gathers ranges that are missing of something called `what`; ranges that adjoin are one."""

    def __init__(self, what: str) -> None:
        self.what = what
        #: Bytes that are missing.
        self.size = 0
        self._ranges: list[tuple[int, int, str]] = []

    def add(self, start: int, end: int, why: str = "") -> None:
        """From `start` up to `end` nothing is known."""
        self.size += end - start
        if self._ranges and self._ranges[-1][1:] == (start, why):
            start = self._ranges.pop()[0]
        self._ranges.append((start, end, why))

    def tell(self) -> None:
        """Say what is missing, if anything is."""
        for start, end, why in self._ranges[:_NAMED]:
            say(f"{self.what}: {start:#x}-{end:#x} ({end - start} bytes) is missing{': ' + why if why else ''}")
        if len(self._ranges) > _NAMED:
            say(f"{self.what}: {len(self._ranges) - _NAMED} more ranges are missing, {self.size} bytes in all")

    def close(self, code: int) -> None:
        """Say what is missing, and end with this exit code if anything is."""
        self.tell()
        if self._ranges:
            click.get_current_context().exit(code)
