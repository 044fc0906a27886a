"""Network namespaces.

Knows `net_namespace_list` and `struct net` (include/net/net_namespace.h).
"""

from __future__ import annotations

import numpy as np

from vmi_inside import walk
from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs

#: More network namespaces than any machine has.
NAMESPACE_LIMIT = 1 << 16


def network_namespaces(kernel: Kernel) -> tuple[Structs, tuple[str, ...]]:
    """All `struct net`, the initial one first, and what cut the list short."""
    net = kernel.struct("net")
    initial = kernel.profile.find_symbol("init_net")
    listed = walk.serial(
        kernel.space, kernel.symbol("net_namespace_list"), what="net_namespace_list", limit=NAMESPACE_LIMIT
    )
    address = listed.address - np.uint64(net.member("list").offset)
    if initial is not None and initial not in address:
        address = np.concatenate((np.array([initial], dtype=np.uint64), address))
    return Structs(kernel.space, net, address), listed.faults
