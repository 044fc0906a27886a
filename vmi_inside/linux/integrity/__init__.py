"""Is the guest lying? What it says of itself in one place, held against what it says in another.

`check` runs the detectors and gives `Findings`; `DETECTORS` are all that there are, each a function in a file of its
own.
"""

from vmi_inside.linux.integrity.checks import DETECTORS, check
from vmi_inside.linux.integrity.findings import ALARM, SEVERITIES, Findings

__all__ = ["ALARM", "DETECTORS", "SEVERITIES", "Findings", "check"]
