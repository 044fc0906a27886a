"""Flat arrays by name: the form in which a profile's parts are kept.

Knows how to ask for an array and be sure of its type. Where arrays are kept is left to `cache`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmi_inside.errors import WrongProfile

Arrays = Mapping[str, NDArray[Any]]


def take(arrays: Arrays, name: str, dtype: type[np.generic]) -> NDArray[Any]:
    """The array of that name, one-dimensional, of that type. Raises `WrongProfile` when it is missing or another."""
    found = arrays.get(name)
    if found is None or found.dtype != dtype or found.ndim != 1:
        raise WrongProfile(f"the profile has no {name!r} of {np.dtype(dtype).name} elements")
    return found
