"""Tables for people: plain aligned columns, and rich's terminal when somebody is watching.

Knows columns of text that are safe to show already. What they mean is `fields`' matter. The layout is our own because
a thousand rows in `rich.table` take a second, and here some milliseconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from typing import TYPE_CHECKING

from vmi_inside.cli.escape import width

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_GAP = "  "
_NARROW = 20  # texts are not cut below this; then the line is, at its end, as ps does
#: Other rows are not filled up with spaces beyond this: one text of a guest may be as long as it likes.
_WIDEST = 512


@dataclass(frozen=True, slots=True)
class Grid:
    """Columns of texts of equal length, their headers, and which of them stand at the right."""

    headers: Sequence[str]
    columns: Sequence[Sequence[str]]
    right: Sequence[bool]
    has_headers: bool = True

    def lines(self, limit: int | None = None) -> Iterator[str]:
        """The lines, aligned by spaces, the header first; with texts cut so that they fit into `limit` columns.

        Without a limit nothing is cut; what is too long to be aligned by stands out of its column.
        """
        every = [
            (header, *cells) if self.has_headers else tuple(cells)
            for header, cells in zip(self.headers, self.columns, strict=True)
        ]
        natural = [max(map(width, cells), default=0) for cells in every]
        wide = [min(need, _WIDEST) for need in natural] if limit is None else _fitted(natural, self.right, limit)
        # The last text column ends the line, and needs no spaces behind it.
        padded = [
            cells
            if at == len(every) - 1 and not right and need <= room
            else [_pad(cell, room, right, cut=limit is not None) for cell in cells]
            for at, (cells, right, need, room) in enumerate(zip(every, self.right, natural, wide, strict=True))
        ]
        lines = (_GAP.join(cells).rstrip(" ") for cells in zip(*padded, strict=True))
        return lines if limit is None else (line if width(line) <= limit else _cut(line, limit)[0] for line in lines)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Segments for rich; the texts are not read as markup."""
        from rich.segment import Segment
        from rich.style import Style

        style = Style(bold=True) if self.has_headers else None
        for line in self.lines(None if options.no_wrap and options.overflow == "ignore" else options.max_width):
            yield Segment(line, style)
            yield Segment.line()
            style = None


def show(grid: Grid, wide: bool) -> None:
    """Print to the terminal; texts are cut at its edge unless `wide`."""
    from rich.console import Console

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console()
    console.print(grid, soft_wrap=wide)


def _pad(cell: str, room: int, right: bool, *, cut: bool) -> str:
    if cell.isascii() and len(cell) <= room:
        return cell.rjust(room) if right else cell.ljust(room)
    need = width(cell)
    if need > room and not cut:
        return cell
    if need > room:
        cell, need = _cut(cell, room)
    spaces = " " * (room - need)
    return spaces + cell if right else cell + spaces


def _cut(cell: str, room: int) -> tuple[str, int]:
    kept = cell[: room - 1]
    while width(kept) > room - 1:
        kept = kept[:-1]
    return kept + "…", width(kept) + 1


def _fitted(natural: list[int], right: Sequence[bool], limit: int) -> list[int]:
    """Widths that fit: numbers keep theirs, the widest texts give way, and first to the level of the next widest."""
    texts = [at for at, number in enumerate(right) if not number]
    room = limit - len(_GAP) * (len(natural) - 1) - sum(natural[at] for at in range(len(natural)) if right[at])
    fits: Callable[[int], bool] = lambda level: sum(min(natural[at], level) for at in texts) <= room  # noqa: E731
    level = max((natural[at] for at in texts), default=0)
    while level > _NARROW and not fits(level):
        level -= 1
    return [need if number else min(need, level) for need, number in zip(natural, right, strict=True)]
