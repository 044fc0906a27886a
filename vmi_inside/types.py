"""Names for the array types used throughout, and page arithmetic.

Knows NumPy dtypes and the 4 KiB page. Everything else is somebody else's.
"""

from __future__ import annotations

from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]
Number = TypeVar("Number", bound=np.integer)

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
PAGE_MASK: Final = PAGE_SIZE - 1
MASK64: Final = (1 << 64) - 1


def align_down(value: int, to: int) -> int:
    """`value` rounded down to a multiple of `to`, a power of two."""
    return value & ~(to - 1)


def align_up(value: int, to: int) -> int:
    """`value` rounded up to a multiple of `to`, a power of two."""
    return (value + to - 1) & ~(to - 1)


def distinct(values: NDArray[Number]) -> NDArray[Number]:
    """The distinct ones of `values` (n,), ascending; integers only.

    As `np.unique`, which since NumPy 2.3 hashes first, and takes ten times as long for addresses.
    """
    ordered = np.sort(values)
    new = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return ordered[new]


def among(values: NDArray[Number], ordered: NDArray[Number]) -> Mask:
    """Which of `values` (n,) are in the sorted array `ordered`; as `np.isin`, which would sort it anew."""
    if not len(ordered):
        return np.zeros(len(values), dtype=np.bool_)
    at = np.searchsorted(ordered, values)
    at[at == len(ordered)] = 0
    hit: Mask = ordered[at] == values
    return hit
