"""What the checks find: the table, its rows, and how grave they are.

Knows nothing of kernels. What is looked for is each detector's matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.table import Table, Text, text
from vmi_inside.types import U64

#: From what is only told to what no honest kernel has.
SEVERITIES: Final = ("info", "low", "medium", "high", "critical")
#: From here on a finding says that the guest lies.
ALARM: Final = "medium"


class Findings(Table):
    """One row for each thing that a check found."""

    #: The detector's name: a column, where other tables have a method.
    check: Text = property(lambda self: self._data["check"])  # type: ignore[assignment]
    severity: Text  # info low medium high critical
    subject: Text  # a process, a module, a symbol
    expected: Text
    seen: Text
    address: U64  # of what the row is about; 0 where it has none
    symbol: Text  # what lies there, or what a pointer leads to
    detail: Text

    @property
    def alarms(self) -> Findings:
        """The rows that are medium or graver."""
        return self.at_least(ALARM)

    def at_least(self, severity: str) -> Findings:
        """The rows of this severity and of graver ones."""
        graver = SEVERITIES[SEVERITIES.index(severity) :]
        return self.where(np.array([each in graver for each in self.severity.tolist()], dtype=np.bool_))


@dataclass(frozen=True, slots=True)
class Finding:
    """One row in the making; the check's name is put in by the one who runs it."""

    severity: str
    subject: str
    expected: str = ""
    seen: str = ""
    address: int = 0
    symbol: str = ""
    detail: str = ""
    fault: str = ""

    @property
    def key(self) -> tuple[str, int, str]:
        """What makes it the same finding when it is looked for again."""
        return self.subject, self.address, self.symbol

    @property
    def alarming(self) -> bool:
        """Whether it says that the guest lies."""
        return SEVERITIES.index(self.severity) >= SEVERITIES.index(ALARM)


def table(rows: Iterable[tuple[str, Finding]], notes: Iterable[str] = ()) -> Findings:
    """Pairs of a check's name and its finding as a table, the gravest first."""
    ordered = sorted(rows, key=lambda row: -SEVERITIES.index(row[1].severity))
    found = [finding for _, finding in ordered]
    return Findings({
        "check": text(name for name, _ in ordered),
        "severity": text(each.severity for each in found),
        "subject": text(each.subject for each in found),
        "expected": text(each.expected for each in found),
        "seen": text(each.seen for each in found),
        "address": np.array([each.address for each in found], dtype=np.uint64),
        "symbol": text(each.symbol for each in found),
        "detail": text(each.detail for each in found),
        "fault": text(each.fault for each in found),
    }, notes)  # fmt: skip
