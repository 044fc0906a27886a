"""Rows that were asked for, by the values of one column."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmi_inside.table import Table


def keep(table: Table, column: str, fits: Callable[[Any], object]) -> Table:
    """The rows whose value of `column` fits."""
    import numpy as np

    values = table.column(column).tolist()
    return table.where(np.fromiter((bool(fits(value)) for value in values), np.bool_, len(values)))
