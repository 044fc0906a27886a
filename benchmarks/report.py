"""The figures as Markdown: a table a guest, a contestant a column, each with its ratio to vmi-inside."""

from __future__ import annotations

import statistics
from typing import Any, Final

#: Rows in this order, as far as there are figures.
ROWS: Final = (
    "attach, nothing prepared", "attach", "processes", "sockets", "open files", "modules", "5 symbols", "read 4 KiB",
    "read 1 MiB", "dump", "dump, SHA-256", "whole command, processes", "whole command, sockets",
    "whole command, open files", "whole command, modules",
)  # fmt: skip
OURS: Final = "vmi-inside"


def median(values: list[Any] | None) -> float | str:
    """The median in seconds, or the words that stand in its place."""
    if not values:
        return "-"
    words = [value for value in values if isinstance(value, str)]
    return words[0] if words else statistics.median(values)


def seconds(value: float) -> str:
    """A time as people read it, three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value / size < 1000 else f"{value / size:.0f} {unit}"
    return f"{value * 1e6:.3g} µs"


def cell(value: float | str, ours: float | str) -> str:
    """A figure, and how many times ours it is."""
    if isinstance(value, str):
        return value
    if isinstance(ours, str) or value is ours:
        return seconds(value)
    ratio = value / ours
    return f"{seconds(value)} (×{ratio:.0f})" if ratio >= 10 else f"{seconds(value)} (×{ratio:.2g})"


def markdown(results: list[dict[str, Any]]) -> str:
    """All guests' tables."""
    parts = []
    for result in results:
        figures = result["figures"]
        names = list(figures)
        lines = [f"### {result['guest']} ({result['processes']} processes, {result['kernel']})", ""]
        lines += ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for row in ROWS:
            values = {name: median(figures[name].get(row)) for name in names}
            if any(value != "-" for value in values.values()):
                cells = [cell(values[name], values[OURS] if name != OURS else "") for name in names]
                lines.append(f"| {row} | " + " | ".join(cells) + " |")
        for row in ("process, MiB", "whole command, processes, MiB", "dump, MiB"):
            values = {name: median(figures[name].get(row)) for name in names}
            if any(value != "-" for value in values.values()):
                cells = [value if isinstance(value, str) else f"{value:.0f} MiB" for value in values.values()]
                lines.append(f"| most memory, {row.removesuffix(', MiB')} | " + " | ".join(cells) + " |")
        notes = [f"{name}: {figures[name]['said']}." for name in names if figures[name].get("said")]
        notes += [f"{what} took {took:.1f} s, not counted." for what, took in result["prepared"].items()]
        parts.append("\n".join([*lines, "", *notes]))
    return "\n\n".join(parts) + "\n"
