"""For volatility3's `-p`: lets `vol -f vmi-inside://NAME` open guests through vmi_inside.

Nothing but an import: volatility3 finds what it uses by the classes that there are.
"""

from vmi_inside.bridges import volatility3_parts

__all__ = ["volatility3_parts"]
