"""The figures as a picture: for each question a bar a contestant, on a logarithmic scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from benchmarks.report import median, seconds

_SHOWN: Final = (
    "attach", "processes", "sockets", "open files", "modules", "5 symbols", "read 4 KiB", "read 1 MiB",
    "whole command, processes", "whole command, sockets",
)  # fmt: skip
_COLOURS: Final = {"vmi-inside": "#1b7f4d", "drgn": "#3b6fb6", "volatility3": "#b65f3b", "LibVMI": "#8a63b0"}


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Write the picture of the guest with about 1,000 processes, or of the first one. Needs matplotlib."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "vmi-inside"
    from matplotlib import pyplot

    result = next((each for each in results if 1000 <= each["processes"] < 5000), results[0])
    figures = result["figures"]
    names = [name for name in _COLOURS if name in figures]
    figure, axes = pyplot.subplots(figsize=(9, 8))
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        for row, question in enumerate(_SHOWN):
            value = median(figures[name].get(question))
            at = row + (place - (len(names) - 1) / 2) * height
            if isinstance(value, str):
                if value != "-":
                    axes.text(1.2e-6, at, f"{name}: {value[:60]}", va="center", fontsize=6, color=_COLOURS[name])
                continue
            axes.barh(at, value, height * 0.9, left=0, color=_COLOURS[name], label=name if row == 1 else None)
            axes.text(value * 1.1, at, seconds(value), va="center", fontsize=7)
    axes.set_xscale("log")
    axes.set_xlim(1e-6, 100)
    axes.set_yticks(range(len(_SHOWN)), _SHOWN)
    axes.invert_yaxis()
    axes.set_xlabel("seconds (logarithmic)")
    axes.set_title(f"A live guest: {result['guest']}, Linux {result['kernel']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=_COLOURS[name]) for name in names]
    axes.legend(handles, names, loc="upper center", bbox_to_anchor=(0.4, -0.07), ncols=len(names), frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
