"""AppArmor's labels: under which profile a process runs.

Knows where AppArmor keeps its label in `cred.security` (security/apparmor/include/cred.h), `aa_label` and `aa_profile`.
Profiles' rules are left to others.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vmi_inside import ragged
from vmi_inside.errors import MemoryFault
from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs
from vmi_inside.table import Text, text
from vmi_inside.types import Mask

#: Profiles that are stacked in one label.
STACK_LIMIT: Final = 16
_NAME_LIMIT: Final = 512
_BLOB_LIMIT: Final = 4096
#: enum profile_mode (security/apparmor/include/policy.h); what is unconfined has no mode behind its name.
_MODES: Final = ("enforce", "complain", "kill", "unconfined", "user")
_UNCONFINED: Final = 3


def labels(kernel: Kernel, creds: Structs) -> tuple[Text, Mask]:
    """Labels (n,) of credentials as /proc/PID/attr/current has them, and (n,) bool: which could be read.

    All are empty where AppArmor is not built in or not on.
    """
    none = text("" for _ in range(len(creds))), np.ones(len(creds), dtype=np.bool_)
    sizes, on = kernel.profile.find_symbol("apparmor_blob_sizes"), kernel.profile.find_symbol("apparmor_initialized")
    if sizes is None or kernel.find_struct("aa_label") is None:
        return none
    try:
        if on is not None and not kernel.number(4, "apparmor_initialized"):
            return none
        # By now the sizes are offsets (lsm_set_blob_sizes).
        offset = int(kernel.object("lsm_blob_sizes", "apparmor_blob_sizes").unsigned("lbs_cred")[0])
    except MemoryFault:
        return none
    if offset > _BLOB_LIMIT:
        return none
    unique, back = np.unique(creds.pointer("security"), return_inverse=True)
    raw, ok = kernel.space.gather(unique + np.uint64(offset), 8)
    ok |= unique == 0
    label, again = np.unique(np.where(unique == 0, np.uint64(0), raw.view("<u8")[:, 0]), return_inverse=True)
    shown, whole = _shown(kernel, kernel.structs("aa_label", label))
    return shown[again][back], (ok & whole[again])[back]


def _shown(kernel: Kernel, rows: Structs) -> tuple[Text, Mask]:
    size = np.clip(rows.number("size"), 0, STACK_LIMIT)
    got = ragged.gather(kernel.space, rows.at("vec"), 8 * size)
    profile, owner, _ = got.words()
    profiles = kernel.structs("aa_profile", profile).fetch("base.hname", "mode")
    names, good = kernel.strings(profiles.pointer("base.hname"), _NAME_LIMIT)
    ok = ~rows.fault & got.ok & (rows.number("size") <= STACK_LIMIT)
    ok[owner[profiles.fault | ~good]] = False
    parts: list[list[str]] = [[] for _ in range(len(rows))]
    modes: list[set[int]] = [set() for _ in range(len(rows))]
    for row, name, mode in zip(owner.tolist(), names, profiles.number("mode").tolist(), strict=True):
        parts[row].append(name)
        modes[row].add(mode)
    return text("//&".join(part) + _mode(mode) for part, mode in zip(parts, modes, strict=True)), ok


def _mode(modes: set[int]) -> str:
    if modes <= {_UNCONFINED}:
        return ""
    if len(modes) > 1:
        return " (mixed)"
    mode = modes.pop()
    return f" ({_MODES[mode]})" if 0 <= mode < len(_MODES) else ""
