"""Shared guests that were replaced, which the run's summary tells of."""

from __future__ import annotations

from typing import Final

import pytest

REPLACED: Final = pytest.StashKey[list[str]]()
