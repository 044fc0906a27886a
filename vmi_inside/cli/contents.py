"""What `cat` and `extract` share: writing a file's content, and saying what of it is missing."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Final

import click

from vmi_inside.cli.options import Command

if TYPE_CHECKING:
    from vmi_inside.cli.gaps import Gaps
    from vmi_inside.linux.files.file_content import FileContent

_PAGE: Final = 4096
#: Zeros that are written at once, where a file cannot have holes.
_ZEROS: Final = bytes(1 << 20)


def file_choice(command: Command) -> Command:
    """--device and --inode, given to the command under these names."""
    command = click.option(
        "--inode", type=int, metavar="N", help="Of several files of that path, the one of this inode."
    )(command)
    return click.option(
        "--device", metavar="MAJOR:MINOR", help="Of several files of that path, the one on this device."
    )(command)


def write_content(content: FileContent, file: IO[bytes], gaps: Gaps, *, sparse: bool) -> None:
    """Write all of a file: holes and what is missing as zeros; as holes into a new file, which can be `sparse`."""
    at = 0
    for chunk in content.chunks():
        _skip(file, chunk.offset - at, sparse)
        file.write(chunk.data.data)
        at = chunk.offset + len(chunk.data)
        for page in chunk.bad.nonzero()[0].tolist():
            start = chunk.offset + page * _PAGE
            gaps.add(start, min(start + _PAGE, content.size), "could not be read")
    if sparse and at < content.size:
        file.truncate(content.size)
    else:
        _skip(file, content.size - at, False)
    for start, end in content.missing():
        gaps.add(start, end, "in swap, or moved away" if content.sparse else "not in the page cache")


def _skip(file: IO[bytes], size: int, sparse: bool) -> None:
    if sparse:
        file.seek(size, 1)
        return
    while size > 0:
        size -= file.write(_ZEROS[:size])
